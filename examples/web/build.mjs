// Write the page to a folder that any static host can serve:  node build.mjs SITE [PACKAGE…]
// PACKAGE is a folder that `emo-export export` wrote; its browser targets are copied beside the page.

import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { copyFile, cp, mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

import { readPackage } from "./package.mjs";

const ORT = ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"];
const here = dirname(fileURLToPath(import.meta.url));
const [target, ...packages] = process.argv.slice(2);
if (target === undefined) refuse("usage: node build.mjs SITE [PACKAGE…]");
const site = resolve(target);
if (existsSync(site)) refuse(`${site} exists: give a new folder, or remove it`);
const work = `${site}.part`;
await rm(work, { recursive: true, force: true });
await mkdir(work, { recursive: true });
try {
  const listed = [];
  for (const folder of packages) listed.push(await bring(resolve(folder)));
  await page();
  await writeFile(join(work, "packages.json"), `${JSON.stringify(listed)}\n`);
  await rename(work, site);
} catch (error) {
  await rm(work, { recursive: true, force: true });
  refuse(error.message);
}
console.log(`wrote ${site}`);

function refuse(message) {
  console.error(message);
  process.exit(2);
}

/** Copy what a browser reads of a package. */
async function bring(folder) {
  const whole = (path) => readFile(join(folder, path));
  const name = basename(folder);
  const place = join(work, "packages", name);
  if (existsSync(place)) throw new Error(`two packages are named ${name}: rename one`);
  for (const { files } of await readPackage({ name, whole })) {
    for (const { path } of files) {
      await mkdir(dirname(join(place, path)), { recursive: true });
      await copyFile(join(folder, path), join(place, path));
    }
  }
  await copyFile(join(folder, "manifest.json"), join(place, "manifest.json"));
  return { name, url: `packages/${encodeURIComponent(name)}/` };
}

async function page() {
  for (const name of ["index.html", "style.css"]) await copyFile(join(here, name), join(work, name));
  const dist = join(here, "node_modules", "onnxruntime-web", "dist");
  for (const name of ORT) await cp(join(dist, name), join(work, name));
  const options = { bundle: true, format: "esm", minify: true, target: "es2022", legalComments: "linked" };
  // onnxruntime-web starts its threads from its own file, so it stays one.
  const apart = {
    name: "apart",
    setup: ({ onResolve }) =>
      onResolve({ filter: /^onnxruntime-web$/ }, () => ({ path: `./${ORT[0]}`, external: true })),
  };
  const own = ["page", "worker"];
  for (const name of own) {
    const entryPoints = [join(here, `${name}.mjs`)];
    await build({ ...options, entryPoints, outfile: join(work, `${name}.js`), plugins: [apart] });
  }
  const files = ["index.html", "style.css", ...own.map((name) => `${name}.js`), ...ORT];
  const digest = createHash("sha256");
  for (const name of [...files, ""]) digest.update(await readFile(name ? join(work, name) : join(here, "sw.mjs")));
  const define = {
    FILES: JSON.stringify(files),
    DIGEST: JSON.stringify(digest.digest("hex").slice(0, 16)),
  };
  const entryPoints = [join(here, "sw.mjs")];
  await build({ ...options, format: "iife", entryPoints, outfile: join(work, "sw.js"), define });
}
