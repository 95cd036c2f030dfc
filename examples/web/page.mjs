// The page: text from an exported folder that the same server offers.

import { greedy, Model, openTokenizer, text } from "./emo.mjs";

const form = document.querySelector("form");
const shown = document.querySelector("pre");
let opened; // the folder that was opened last: { folder, model, tokenizer }

async function open(folder) {
  const base = new URL(folder.replace(/\/?$/, "/"), document.baseURI);
  const read = async (name) => {
    const response = await fetch(new URL(name, base));
    if (!response.ok) throw new Error(`${response.url}: ${response.status}`);
    return new Uint8Array(await response.arrayBuffer());
  };
  await opened?.model.session.release();
  opened = undefined;
  opened = { folder, tokenizer: await openTokenizer(read), model: await Model.open(read) };
}

async function generate(folder, prompt, count) {
  if (opened?.folder !== folder) await open(folder);
  const { model, tokenizer } = opened;
  const ids = tokenizer.encode(prompt, { add_special_tokens: false }).ids;
  shown.textContent = "";
  for await (const piece of text(greedy(model, ids, count), tokenizer)) {
    shown.textContent += piece;
    await new Promise(requestAnimationFrame); // let the browser paint it
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { folder, prompt, count, status } = form.elements;
  status.value = "working";
  try {
    await generate(folder.value, prompt.value, Number(count.value));
    status.value = "done";
  } catch (error) {
    status.value = `failed: ${error.message ?? error}`;
  }
});
