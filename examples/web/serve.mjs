// Serve a built site on this machine, with ranges and the headers for threads:
//   node serve.mjs SITE [PORT]

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, resolve, sep } from "node:path";
import { pipeline } from "node:stream/promises";

const TYPES = {
  ".css": "text/css",
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".json": "application/json",
  ".mjs": "text/javascript",
  ".wasm": "application/wasm",
};
const HEADERS = {
  "Accept-Ranges": "bytes",
  "Cache-Control": "no-cache",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Opener-Policy": "same-origin",
};
const [folder, port = "8000"] = process.argv.slice(2);
if (folder === undefined || !/^\d+$/.test(port)) {
  console.error("usage: node serve.mjs SITE [PORT]");
  process.exit(2);
}
const site = resolve(folder);

async function answer(request, response) {
  let path;
  try {
    path = join(site, decodeURIComponent(new URL(request.url, "http://localhost").pathname));
  } catch {
    return response.writeHead(400).end();
  }
  if (path.endsWith(sep)) path += "index.html";
  const found = path.startsWith(site + sep) && (await stat(path).catch(() => undefined));
  if (!found || !found.isFile()) return response.writeHead(404).end();
  const headers = { ...HEADERS, "Content-Type": TYPES[extname(path)] ?? "application/octet-stream" };
  const from = /^bytes=(\d+)-$/.exec(request.headers.range ?? "");
  const start = from ? Number(from[1]) : 0;
  if (from && start >= found.size) return response.writeHead(416, { "Content-Range": `bytes */${found.size}` }).end();
  headers["Content-Length"] = found.size - start;
  if (from) headers["Content-Range"] = `bytes ${start}-${found.size - 1}/${found.size}`;
  response.writeHead(from ? 206 : 200, headers);
  // A reader that went away is no error.
  return pipeline(createReadStream(path, { start }), response).catch(() => response.destroy());
}

const server = createServer(answer).listen(Number(port), "127.0.0.1", () => {
  console.log(`http://localhost:${server.address().port}/`);
});
