// An exported ONNX folder in onnxruntime-web: logits and greedy text, in node and in browsers alike.

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web";

const PIECE = 256; // how many tokens of a prompt are computed at once: it bounds the memory

ort.env.logLevel = "error";

/** The decoder and its KV cache. */
export class Model {
  /**
   * Open a folder. `read(name)` gives one of its files as a Uint8Array, now or later; `options` are
   * onnxruntime-web's session options.
   */
  static async open(read, options = {}) {
    const config = await readJson(read, "config.json");
    checkVersion(await readJson(read, "emo_export.json"));
    const stop = (await readJson(read, "generation_config.json")).eos_token_id ?? [];
    const session = await ort.InferenceSession.create(await read("model.onnx"), {
      executionProviders: ["wasm"],
      externalData: [{ path: "model.onnx.data", data: await read("model.onnx.data") }],
      logSeverityLevel: 3, // errors: it would warn that `logits_to_keep` has a default, as it should
      ...options,
    });
    return new Model(session, config, [stop].flat());
  }

  constructor(session, config, stopIds) {
    this.session = session;
    this.contextLength = config.max_position_embeddings;
    this.stopIds = stopIds;
    this.cacheShape = [config.num_key_value_heads, 0, config.head_dim];
    this.reset();
  }

  /** Begin new sequences: `batch` of them. */
  reset(batch = 1) {
    const empty = new ort.Tensor("float32", new Float32Array(0), [batch, ...this.cacheShape]);
    const names = this.session.inputNames.filter((name) => name.startsWith("past_key_values."));
    this.past = Object.fromEntries(names.map((name) => [name, empty]));
    this.length = 0;
  }

  /**
   * Append `rows` of token ids, equally many to each sequence -> logits (batch, positions, vocab).
   * `mask` has a row of 0 (padding, on the left) and 1 for all positions since `reset`. The
   * positions are those appended, or the last alone in a folder exported with --last-logits.
   * GroupQueryAttention takes a batch after the first call by one token of each sequence.
   */
  async forward(rows, mask = rows.map((row) => Array(this.length + row.length).fill(1))) {
    const total = this.length + rows[0].length;
    if (total > this.contextLength) {
      throw new Error(`${total} tokens exceed the context of ${this.contextLength}`);
    }
    const feeds = { input_ids: int64(rows), attention_mask: int64(mask), ...this.past };
    const { logits, ...present } = await this.session.run(feeds);
    for (const name of Object.keys(this.past)) {
      this.past[name] = present[name.replace("past_key_values", "present")];
    }
    this.length = total;
    return logits;
  }
}

/** The folder's tokenizer. */
export async function openTokenizer(read) {
  const config = await readJson(read, "tokenizer_config.json");
  return new Tokenizer(await readJson(read, "tokenizer.json"), config);
}

/** Up to `count` token ids that follow the prompt's: the most likely each time, to the end of text. */
export function greedy(model, prompt, count) {
  return generate(model, prompt, count, mostLikely);
}

/** As `greedy`, with `choose(logits)` to take the next token. */
export async function* generate(model, prompt, count, choose) {
  // A text begins after the token that ends the one before.
  const ids = prompt.length > 0 ? prompt : [Math.min(...model.stopIds)];
  model.reset();
  let logits;
  for (let start = 0; start < ids.length; start += PIECE) {
    logits = await model.forward([ids.slice(start, start + PIECE)]);
  }
  for (let produced = 1; produced <= count; produced++) {
    const token = choose(logits);
    if (model.stopIds.includes(token)) return;
    yield token;
    if (produced === count || model.length === model.contextLength) return;
    logits = await model.forward([[token]]);
  }
}

/**
 * A way to choose the next token for `generate`: drawn from softmax(logits / temperature), the most
 * likely at temperature 0. The same seed draws the same tokens.
 */
export function sampler(temperature, seed) {
  if (temperature === 0) return mostLikely;
  const random = mulberry32(seed);
  return (logits) => {
    const best = mostLikely(logits);
    const row = logits.data.subarray(-logits.dims[2]);
    const weights = row.map((value) => Math.exp((value - row[best]) / temperature));
    let left = random() * weights.reduce((sum, weight) => sum + weight, 0);
    const found = weights.findIndex((weight) => (left -= weight) < 0);
    return found < 0 ? best : found; // rounding may leave a little
  };
}

/** The text of token ids as they come, held back while a character lacks bytes. */
export async function* text(tokens, tokenizer) {
  let pending = [];
  const decode = () => {
    const options = { skip_special_tokens: true, clean_up_tokenization_spaces: false };
    return pending.length > 0 ? tokenizer.decode(pending, options) : "";
  };
  for await (const token of tokens) {
    if (tokenizer.id_to_token(token) === undefined) continue; // the vocabulary is padded
    pending.push(token);
    const piece = decode();
    if (piece.endsWith("\ufffd")) continue;
    pending = [];
    yield piece;
  }
  yield decode();
}

/** The largest logit's index at the last position of (1, positions, vocab). */
function mostLikely(logits) {
  const row = logits.data.subarray(-logits.dims[2]);
  if (row.some(Number.isNaN)) throw new Error("the logits are not numbers");
  return row.reduce((best, value, index) => (value > row[best] ? index : best), 0);
}

/** Tommy Ettinger's generator of 32 bits, as numbers from 0 to below 1. */
function mulberry32(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function int64(rows) {
  const values = BigInt64Array.from(rows.flat(), BigInt);
  return new ort.Tensor("int64", values, [rows.length, rows[0].length]);
}

/** Refuse a graph that needs a newer ONNX Runtime, before its weights are read. */
function checkVersion({ graph, onnxruntime_min: needed }) {
  const found = ort.env.versions.web;
  const [[wantMajor, wantMinor], [major, minor]] = [needed, found].map((version) =>
    version.split(".").map(Number),
  );
  if (major < wantMajor || (major === wantMajor && minor < wantMinor)) {
    throw new Error(
      `the graph "${graph}" needs ONNX Runtime ${needed} and this is onnxruntime-web ${found}: ` +
        "export with --to onnx:int4@if",
    );
  }
}

async function readJson(read, name) {
  return JSON.parse(new TextDecoder().decode(await read(name)));
}
