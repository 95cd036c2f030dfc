// Where a package's files come from: a server, or files that were picked on the device.

import { Refusal } from "./package.mjs";

const TRIES = 5; // that bring nothing, before it is given up
const PAUSE = 500; // ms before the next try, times its number

/**
 * A package on a server. `read(file, start, signal)` yields { at, chunk }: bytes of a file and where
 * they belong. A connection that breaks is made again from where it broke. A server that knows no
 * ranges sends the file from its beginning.
 */
export function fromUrl(address) {
  const base = new URL(address.replace(/\/?$/, "/"));
  const name = decodeURIComponent(base.pathname.split("/").at(-2) || base.host);

  async function ask(path, options = {}) {
    const url = new URL(path.split("/").map(encodeURIComponent).join("/"), base);
    const response = await fetch(url, options);
    if (response.ok) return response;
    const hint = path === "manifest.json" ? ": give the folder in which manifest.json lies" : "";
    const { status } = response;
    const error = new Refusal(`${url}: the server says ${status}${hint}`);
    throw Object.assign(error, { again: status >= 500, ended: status === 416 });
  }

  async function* once(file, start, signal) {
    const headers = start > 0 ? { Range: `bytes=${start}-` } : {};
    const response = await ask(file.path, { headers, signal, cache: "no-store" });
    let at = 0;
    if (response.status === 206) {
      at = Number(/^bytes (\d+)-/.exec(response.headers.get("Content-Range"))?.[1] ?? NaN);
      if (at !== start) throw new Refusal(`${response.url}: another range than ${start} was sent`);
    }
    const reader = response.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield { at, chunk: value };
      at += value.length;
    }
  }

  async function* read(file, start, signal) {
    for (let at = start, tries = 0; at < file.bytes; ) {
      const before = at;
      try {
        for await (const piece of once(file, at, signal)) {
          yield piece;
          at = piece.at + piece.chunk.length;
        }
        if (at < file.bytes) throw new TypeError(`the server sent ${at} of ${file.bytes} bytes`);
      } catch (error) {
        if (error.ended) {
          throw new Refusal(`${file.path} has ${at} bytes, the manifest says ${file.bytes}`);
        }
        // fetch and its body report a broken connection as a TypeError.
        if (!(error instanceof TypeError || error.again)) throw error;
        tries = at > before ? 1 : tries + 1;
        if (tries >= TRIES) {
          throw new Refusal(
            `${file.path}: the connection broke (${error.message}). What was loaded is kept: press ` +
              "Load to go on",
          );
        }
        await new Promise((resolve) => setTimeout(resolve, PAUSE * tries));
        signal.throwIfAborted();
      }
    }
  }

  async function whole(path) {
    try {
      return new Uint8Array(await (await ask(path, { cache: "no-cache" })).arrayBuffer());
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      throw new Refusal(
        `${base}: no answer. Offline, or the server does not let this page read it (CORS)`,
      );
    }
  }

  return { name, whole, read };
}

/** A package of picked files: a folder's, or those of one target and manifest.json. */
export function fromFiles(files) {
  const pathOf = (file) => file.webkitRelativePath || file.name;
  function find(path) {
    const fits = (file) => `/${pathOf(file)}`.endsWith(`/${path}`);
    const found = files.filter(fits);
    // Files picked one by one have no folder.
    const named = files.filter((file) => !file.webkitRelativePath && path.endsWith(`/${file.name}`));
    const all = found.length > 0 ? found : named;
    if (all.length === 1) return all[0];
    const what = all.length === 0 ? "is not among the picked files" : "was picked more than once";
    throw new Refusal(`${path} ${what}: pick one package's folder, or manifest.json and all of ` +
      "one onnx-… folder");
  }
  async function* read(file, start, signal) {
    const reader = find(file.path).slice(start).stream().getReader();
    for (let at = start; ; ) {
      signal.throwIfAborted();
      const { done, value } = await reader.read();
      if (done) return;
      yield { at, chunk: value };
      at += value.length;
    }
  }
  const whole = async (path) => new Uint8Array(await find(path).arrayBuffer());
  const top = pathOf(files[0] ?? { name: "" }).split("/");
  return { name: top.length > 1 ? top[0] : "picked files", whole, read };
}
