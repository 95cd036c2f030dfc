// The page's other half: loads packages, and computes, where it cannot hold up the page.
//
// A request is { id, does, … }; answers are { id, told } any number of times and then { id, value }
// or { id, error }. { stop: id } ends one.

import * as ort from "onnxruntime-web";

import { generate, Model, openTokenizer, sampler, text } from "./emo.mjs";
import { readPackage, Refusal } from "./package.mjs";
import { fromFiles, fromUrl } from "./sources.mjs";
import { add, bytesOf, remove, size, stored } from "./store.mjs";

const WASM_LIMIT = 4 * 2 ** 30; // what a 32-bit WebAssembly can address
const SMALL = 96 * 2 ** 20; // bytes of a model whose threads would mostly wait for each other
let opened; // { model, tokenizer }

const source = ({ url, files }) => (url ? fromUrl(url) : fromFiles(files));

const tasks = {
  stored,
  remove: ({ key }) => remove(key),
  look: (request) => readPackage(source(request)),
  async add({ entry, ...from }, tell, signal) {
    if (entry.bytes >= WASM_LIMIT) {
      throw new Refusal(
        `the model has ${size(entry.bytes)}, and WebAssembly's memory ends at ${size(WASM_LIMIT)}: ` +
          "export with fewer experts (--keep) or fewer bits",
      );
    }
    await add(entry, source(from), (step, done) => tell({ step, done }), signal);
  },

  async open({ entry }) {
    // It is asked once, when WebAssembly starts: the page has a worker for each model.
    if (entry.bytes < SMALL) ort.env.wasm.numThreads = 1;
    const files = new Map(entry.files.map((file) => [file.name, file]));
    const read = (name) => bytesOf(files.get(name));
    try {
      const tokenizer = await openTokenizer(read);
      opened = { tokenizer, model: await Model.open(read) };
    } catch (error) {
      throw shortOfMemory(error) ? tooLarge(entry) : error;
    }
  },

  async generate({ prompt, count, temperature, seed }, tell, signal) {
    const { model, tokenizer } = opened;
    const ids = tokenizer.encode(prompt, { add_special_tokens: false }).ids;
    if (ids.length >= model.contextLength) {
      throw new Refusal(
        `the text has ${ids.length} tokens and the model's context ${model.contextLength}: shorten it`,
      );
    }
    const began = performance.now();
    let [first, produced] = [0, 0];
    async function* counted() {
      for await (const token of generate(model, ids, count, sampler(temperature, seed))) {
        first ||= performance.now();
        produced += 1;
        yield token;
        await new Promise((resolve) => setTimeout(resolve)); // let a stop come through
        if (signal.aborted) return;
      }
    }
    const speed = () => (produced > 1 ? ((produced - 1) * 1000) / (performance.now() - first) : 0);
    for await (const piece of text(counted(), tokenizer)) {
      tell({ piece, produced, speed: speed() });
    }
    let end = "end of text";
    if (signal.aborted) end = "stopped";
    else if (produced === count) end = "length";
    else if (model.length === model.contextLength) end = "context";
    const toFirst = first ? first - began : performance.now() - began;
    return { end, produced, speed: speed(), read: ids.length, toFirst };
  },
};

/** Whether an engine or the browser had no memory left: each says it in its own way. */
function shortOfMemory(error) {
  return error instanceof RangeError || /bad_alloc|out of memory|allocat/i.test(String(error?.message ?? error));
}

function tooLarge(entry) {
  return new Refusal(
    `this device's memory is too small: the model has ${size(entry.bytes)}, and is in memory twice while ` +
      "it opens. Close other tabs and try again, or export with fewer experts (--keep)",
  );
}

const running = new Map();

self.addEventListener("message", async ({ data }) => {
  if (data.stop) {
    running.get(data.stop)?.abort();
    return;
  }
  const { id, does } = data;
  const control = new AbortController();
  running.set(id, control);
  const tell = (told) => self.postMessage({ id, told });
  try {
    self.postMessage({ id, value: await tasks[does](data, tell, control.signal) });
  } catch (error) {
    const paused = error?.name === "AbortError";
    self.postMessage({ id, error: String(error?.message ?? error), paused });
  } finally {
    running.delete(id);
  }
});

// onnxruntime-web's own files lie beside this one.
ort.env.wasm.wasmPaths = new URL("./", self.location.href).href;
self.postMessage({ ready: true, threads: self.crossOriginIsolated });
