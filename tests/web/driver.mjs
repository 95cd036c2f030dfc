// Runs jobs on examples/web/emo.mjs for tests/converters/onnx/test_web.py:  node driver.mjs JOBS.json ANSWERS.json
// A job opens a folder and takes steps; its answers, or its error, are an entry of the array.

import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

import * as ort from "onnxruntime-web";

import { greedy, Model, openTokenizer, text } from "./emo.mjs";

ort.env.wasm.numThreads = 1;

const tasks = {
  /** Token ids that follow a prompt's. */
  greedy: ({ model }, { ids, count }) => Array.fromAsync(greedy(model, ids, count)),

  /** Logits of each call, float32, one call after the other in a file; answers their shapes. */
  async logits({ model }, { calls, file }) {
    model.reset(calls[0].rows.length);
    const [shapes, parts] = [[], []];
    for (const { rows, mask } of calls) {
      const { dims, data } = await model.forward(rows, mask);
      shapes.push(dims);
      parts.push(Buffer.from(data.buffer, data.byteOffset, data.byteLength));
    }
    await writeFile(file, Buffer.concat(parts));
    return shapes;
  },

  /** Print what ran since the session was opened: the wasm build writes its profile to stdout. */
  profile: ({ model }) => model.session.endProfiling(),

  /** Token ids of each text. */
  encode: ({ tokenizer }, { texts }) =>
    texts.map((words) => tokenizer.encode(words, { add_special_tokens: false }).ids),

  /** The pieces of text that token ids come as. */
  text: ({ tokenizer }, { ids }) => Array.fromAsync(text(ids, tokenizer)),
};

async function run({ folder, options, steps }) {
  const read = async (name) => new Uint8Array(await readFile(join(folder, name)));
  const opened = { model: await Model.open(read, options), tokenizer: await openTokenizer(read) };
  const answers = [];
  for (const step of steps) answers.push((await tasks[step.task](opened, step)) ?? null);
  await opened.model.session.release();
  return { answers };
}

const [jobs, target] = process.argv.slice(2);
const found = [];
for (const job of JSON.parse(await readFile(jobs, "utf-8"))) {
  found.push(await run(job).catch((error) => ({ error: String(error.message ?? error) })));
}
await writeFile(target, JSON.stringify(found));
