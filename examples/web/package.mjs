// What an exported package offers to a browser, by its manifest.json (docs/manifest.md).

import { createSHA256 } from "hash-wasm";

const GRAPHS = ["if", "standard"]; // those that onnxruntime-web opens
const FILES = [
  "model.onnx",
  "model.onnx.data",
  "config.json",
  "emo_export.json",
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
];

/** A package, a file or a browser that will not do; the message says what to do. */
export class Refusal extends Error {}

/**
 * The targets of a package that a browser can open: [{ key, title, target, bytes, files }], a file
 * being { name, path, bytes, sha256 }. `source` is one of sources.mjs. Throws Refusal.
 */
export async function readPackage(source) {
  const text = new TextDecoder().decode(await source.whole("manifest.json"));
  const manifest = parse(text, source.name);
  const hash = await createSHA256();
  const unsealed = text.replace(manifest.sha256, "0".repeat(64));
  if (hash.init().update(unsealed).digest() !== manifest.sha256) {
    throw new Refusal(`${source.name}/manifest.json is not as it was written: copy the package anew`);
  }
  const found = Object.entries(manifest.targets)
    .filter(([, entry]) => GRAPHS.includes(entry.graph))
    .map(([target, entry]) => describe(source.name, manifest, target, entry.path));
  if (found.length === 0) {
    const has = Object.keys(manifest.targets).join(", ");
    throw new Refusal(
      `a browser can open none of this package's targets (${has}): export with --to onnx:int4@if`,
    );
  }
  return found;
}

function parse(text, name) {
  let manifest;
  try {
    manifest = JSON.parse(text);
  } catch {
    throw new Refusal(`${name}/manifest.json is not JSON: is this a folder that emo-export wrote?`);
  }
  const { version, targets, files, sha256 } = manifest ?? {};
  if (!targets || !Array.isArray(files)) {
    throw new Refusal(`${name}/manifest.json is not of a package that emo-export export wrote`);
  }
  if (version !== 2 || !/^[0-9a-f]{64}$/.test(sha256)) {
    throw new Refusal(`${name}/manifest.json has version ${version}, expected 2: export anew`);
  }
  return manifest;
}

function describe(name, manifest, target, folder) {
  const files = FILES.map((file) => {
    const path = `${folder}/${file}`;
    const entry = manifest.files.find((one) => one.path === path);
    if (!entry) throw new Refusal(`${name}/manifest.json has no ${path}: export anew`);
    return { name: file, path, bytes: entry.bytes, sha256: entry.sha256 };
  });
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
  const key = `${manifest.sha256.slice(0, 16)}-${folder}`;
  return { key, title: name, target, bytes, files };
}
