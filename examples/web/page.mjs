// The page: choose a package, load it, write. What takes long is done by worker.mjs.

import { Refusal } from "./package.mjs";
import { size } from "./store.mjs";

const at = (id) => document.getElementById(id);
const form = at("write");
let offered = []; // packages that can be loaded: { entry, from }
let current; // the entry that is open
let loading; // stops the load in progress

const library = startWorker(); // loads, checks and keeps packages
let engine; // computes. One for each model: what WebAssembly took, it gives back only by ending

function startWorker() {
  let last = 0;
  const waiting = new Map();
  const thread = new Worker("worker.js", { type: "module" });
  thread.addEventListener("message", ({ data }) => {
    if (data.ready) return;
    const { told, resolve, reject } = waiting.get(data.id);
    if (data.told) {
      told(data.told);
      return;
    }
    waiting.delete(data.id);
    if (data.error === undefined) resolve(data.value);
    else reject(Object.assign(new Refusal(data.error), { paused: data.paused }));
  });
  function end(error) {
    thread.terminate();
    for (const { reject } of waiting.values()) reject(error);
    waiting.clear();
  }
  thread.addEventListener("error", ({ message }) => {
    end(new Refusal(message || "worker.js did not start: reload the page"));
  });
  return {
    end: () => end(Object.assign(new Refusal("ended"), { paused: true })),
    /** Ask for one of the worker's tasks; the promise has a `stop`. */
    ask(does, request = {}, told = () => {}) {
      const id = ++last;
      const answer = new Promise((resolve, reject) => waiting.set(id, { told, resolve, reject }));
      thread.postMessage({ id, does, ...request });
      return Object.assign(answer, { stop: () => thread.postMessage({ stop: id }) });
    },
  };
}

function fail(message) {
  at("error").textContent = message;
  at("error").hidden = false;
}

/** Run what a click began; its error is shown. */
async function run(task) {
  at("error").hidden = true;
  at("error").textContent = "";
  try {
    await task();
  } catch (error) {
    fail(error.message ?? String(error));
  }
}

/** What a browser lacks for this page, or undefined. */
function lacks() {
  if (!window.isSecureContext) {
    return "the browser keeps models only for pages from https:// or http://localhost: open this one so";
  }
  if (typeof WebAssembly !== "object") {
    return "this browser has no WebAssembly (Lockdown Mode and some settings turn it off): the model can't run here";
  }
  if (!navigator.storage?.getDirectory) {
    return "this browser has no storage for models (OPFS): use a newer one, and no private window";
  }
  return undefined;
}

/** The list: stored packages first, then those that can be loaded. */
async function show() {
  const kept = await library.ask("stored");
  const keys = new Set(kept.map(({ key }) => key));
  const rest = offered.filter(({ entry }) => !keys.has(entry.key));
  at("models").replaceChildren(
    ...kept.map((entry) => item(entry, "on this device", [
      ["Open", () => open(entry)],
      ["Remove", () => forget(entry)],
    ])),
    ...rest.map(({ entry, from }) => item(entry, from.url ? "to be loaded once" : "picked files", [
      ["Load", () => load(entry, from)],
    ])),
  );
  at("none").hidden = keys.size + rest.length > 0;
}

function item(entry, where, actions) {
  const [line, what, small, choice] = ["li", "span", "small", "span"].map((tag) =>
    document.createElement(tag),
  );
  choice.className = "choice";
  what.className = "what";
  const isOpen = entry.key === current?.key;
  if (isOpen) line.setAttribute("aria-current", "true");
  what.textContent = `${entry.title} · ${entry.target}`;
  small.textContent = `${size(entry.bytes)}, ${isOpen ? "open" : where}`;
  what.append(small);
  const buttons = actions
    .filter(([name]) => !(isOpen && name === "Open"))
    .map(([name, act]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.setAttribute("aria-label", `${name} ${entry.title} ${entry.target}`);
      button.disabled = Boolean(loading);
      button.addEventListener("click", () => run(act));
      return button;
    });
  choice.append(...buttons);
  line.append(what, choice);
  return line;
}

async function load(entry, from) {
  if (loading) return;
  await navigator.storage.persist?.(); // asks the browser not to clear it; it may refuse
  const began = { at: performance.now(), done: undefined };
  loading = library.ask("add", { entry, ...from }, ({ step, done }) => {
    if (began.done === undefined) Object.assign(began, { at: performance.now(), done });
    const seconds = (performance.now() - began.at) / 1000;
    at("bar").value = done / entry.bytes;
    const rate = seconds > 1 && step === "loading" ? `, ${size((done - began.done) / seconds)}/s` : "";
    at("bar-text").textContent = `${step}: ${size(done)} of ${size(entry.bytes)}${rate}`;
  });
  at("bar-label").textContent = `Loading ${entry.title} ${entry.target}`;
  at("bar").value = 0;
  at("bar-text").textContent = "";
  at("loading").hidden = false;
  await show();
  try {
    await loading;
  } catch (error) {
    if (!error.paused) throw error;
    tell("paused: Load goes on from there");
    return;
  } finally {
    loading = undefined;
    at("loading").hidden = true;
    await show();
  }
  await open(entry);
}

function close() {
  engine?.end();
  engine = current = undefined;
  at("go").disabled = true;
}

async function open(entry) {
  close();
  engine = startWorker();
  tell("opening");
  try {
    await engine.ask("open", { entry });
    current = entry;
    tell("ready");
  } catch (error) {
    if (error.paused) return; // another was opened meanwhile
    tell("");
    throw error;
  } finally {
    at("go").disabled = !current;
    await show();
  }
}

async function forget(entry) {
  if (!window.confirm(`Remove ${entry.title} ${entry.target} (${size(entry.bytes)}) from this device?`)) return;
  await library.ask("remove", { key: entry.key });
  if (current?.key === entry.key) {
    close();
    tell("");
  }
  await show();
}

/** Add what a source offers to the list. */
async function look(from) {
  tell("looking");
  try {
    const found = await library.ask("look", from);
    const keys = new Set(found.map(({ key }) => key));
    offered = [...offered.filter(({ entry }) => !keys.has(entry.key)), ...found.map((entry) => ({ entry, from }))];
    await show();
  } finally {
    tell("");
  }
}

const ENDS = {
  "end of text": "done: the text ends here",
  length: "done",
  stopped: "stopped",
  context: "done: the model's context is full",
};

async function write() {
  const { prompt, temperature, seed, count } = form.elements;
  const drawn = seed.value === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number(seed.value);
  at("out").textContent = "";
  at("speed").textContent = "";
  at("go").disabled = true;
  at("stop").hidden = false;
  tell("reading the text");
  const request = {
    prompt: prompt.value,
    count: Number(count.value),
    temperature: Number(temperature.value),
    seed: drawn,
  };
  const answer = engine.ask("generate", request, ({ piece, produced, speed }) => {
    at("out").append(piece);
    if (at("status").value !== "writing") tell("writing");
    at("speed").textContent = `${produced} tokens${speed ? `, ${speed.toFixed(1)} tok/s` : ""}`;
  });
  at("stop").onclick = answer.stop;
  try {
    const { end, produced, speed, read, toFirst } = await answer;
    const how = request.temperature > 0 ? `seed ${drawn}` : "temperature 0";
    const rate = speed ? ` at ${speed.toFixed(1)} tok/s` : "";
    at("speed").textContent =
      `${produced} tokens${rate}, ${read} read, the first after ${(toFirst / 1000).toFixed(1)} s, ${how}`;
    tell(ENDS[end]);
  } catch (error) {
    if (error.paused) return; // another was opened, or this one removed, meanwhile
    tell("");
    throw error;
  } finally {
    at("stop").hidden = true;
    at("go").disabled = !current;
  }
}

function tell(words) {
  at("status").value = words;
}

/** The list that build.mjs wrote beside the page; without a network, what is stored has to do. */
async function nextToPage() {
  const response = await fetch("packages.json").catch((error) => {
    if (!(error instanceof TypeError)) throw error; // that is: no answer
  });
  if (!response?.ok) return;
  for (const { url } of await response.json()) {
    const from = { url: new URL(url, document.baseURI).href };
    const found = await library.ask("look", from).catch((error) => fail(error.message) ?? []);
    offered.push(...found.map((entry) => ({ entry, from })));
  }
}

async function offline() {
  if (!navigator.serviceWorker) return;
  await navigator.serviceWorker.register("sw.js");
  await navigator.serviceWorker.ready;
  at("network").textContent += " It opens without a network from now on.";
}

at("by-url").addEventListener("submit", (event) => {
  event.preventDefault();
  run(() => look({ url: new URL(at("url").value.trim(), document.baseURI).href }));
});
for (const id of ["folder", "files"]) {
  at(id).addEventListener("change", () => {
    const files = [...at(id).files];
    if (files.length > 0) run(() => look({ files }));
  });
}
at("pause").addEventListener("click", () => loading?.stop());
form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!at("go").disabled) run(write);
});

const missing = lacks();
if (missing) fail(missing);
else {
  await run(async () => {
    await show();
    if (navigator.onLine) await nextToPage();
    await show();
    at("more").open = at("models").childElementCount === 0;
    await offline();
  });
}
document.documentElement.dataset.ready = "";
