// Generate text in node:  node generate.mjs ../../out/onnx-int4-if "def main(" 64

import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";

import { greedy, Model, openTokenizer, text } from "./emo.mjs";

const [folder, prompt, count = "64"] = process.argv.slice(2);
if (prompt === undefined || !/^\d+$/.test(count)) {
  console.error("usage: node generate.mjs FOLDER PROMPT [TOKENS]");
  process.exit(2);
}
if (!existsSync(join(folder, "model.onnx"))) {
  console.error(`${folder} has no model.onnx: give the onnx-… folder of an export`);
  process.exit(2);
}
const read = async (name) => new Uint8Array(await readFile(join(folder, name)));
const tokenizer = await openTokenizer(read);
const model = await Model.open(read);
const ids = tokenizer.encode(prompt, { add_special_tokens: false }).ids;
for await (const piece of text(greedy(model, ids, Number(count)), tokenizer)) {
  process.stdout.write(piece);
}
process.stdout.write("\n");
