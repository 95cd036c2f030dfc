// Packages kept in the browser's origin private file system (OPFS), for a worker.
//
// A file is stored by its SHA-256, so that what packages share is stored once. It is PART while it
// grows, and gets its name when its digest was checked. A record, written last, makes a package.

import { createSHA256 } from "hash-wasm";

import { Refusal } from "./package.mjs";

const PART = ".part";
const RECORD = ".json";
const PIECE = 8 << 20; // bytes that are hashed at once

const folder = async () =>
  (await navigator.storage.getDirectory()).getDirectoryHandle("packages", { create: true });

/** Every package that is whole. */
export async function stored() {
  const found = [];
  for await (const [name, handle] of await folder()) {
    if (name.endsWith(RECORD)) found.push(JSON.parse(await (await handle.getFile()).text()));
  }
  return found.sort((a, b) => a.title.localeCompare(b.title) || a.target.localeCompare(b.target));
}

/** A stored file's bytes. */
export async function bytesOf(file) {
  const handle = await existing(await folder(), file.sha256);
  if (!handle) throw new Refusal(`${file.name} is no longer in the browser's storage: load it again`);
  return new Uint8Array(await (await handle.getFile()).arrayBuffer());
}

/**
 * Bring a package of package.mjs in from a source of sources.mjs. `tell(step, done)` hears "loading"
 * or "checking" with the bytes of the whole package so far. Throws Refusal, or AbortError when
 * `signal` stops it; what has come is kept, and a later call goes on from there.
 */
export async function add(entry, source, tell, signal) {
  const place = await folder();
  await makeRoom(place, entry);
  let before = 0;
  for (const file of entry.files) {
    if (!(await existing(place, file.sha256))) {
      await bring(place, file, source, (step, done) => tell(step, before + done), signal);
    }
    before += file.bytes;
    tell("loading", before);
  }
  const text = new TextEncoder().encode(JSON.stringify(entry));
  const part = await place.getFileHandle(entry.key + PART, { create: true });
  await withAccess(part, (access) => {
    access.truncate(0);
    access.write(text, { at: 0 });
  });
  await part.move(entry.key + RECORD);
}

/** Remove a package, and files that no other package has. */
export async function remove(key) {
  const place = await folder();
  await place.removeEntry(key + RECORD);
  const needed = new Set((await stored()).flatMap(({ files }) => files.map((f) => f.sha256)));
  const names = [];
  for await (const name of place.keys()) names.push(name);
  for (const name of names) {
    if (!name.endsWith(RECORD) && !needed.has(name)) await place.removeEntry(name);
  }
}

async function makeRoom(place, entry) {
  let missing = 0;
  for (const file of entry.files) {
    if (await existing(place, file.sha256)) continue;
    const part = await existing(place, file.sha256 + PART);
    missing += file.bytes - (part ? Math.min((await part.getFile()).size, file.bytes) : 0);
  }
  const { quota = Infinity, usage = 0 } = await navigator.storage.estimate();
  const free = Math.max(0, quota - usage);
  if (missing > free) {
    throw new Refusal(
      `the browser grants this page ${size(free)} more, and ${size(missing)} are missing: free ` +
        "storage on the device, or remove another package here",
    );
  }
}

async function bring(place, file, source, tell, signal) {
  const part = await place.getFileHandle(file.sha256 + PART, { create: true });
  try {
    await withAccess(part, async (access) => {
      if (access.getSize() > file.bytes) access.truncate(0);
      for await (const { at, chunk } of source.read(file, access.getSize(), signal)) {
        if (at + chunk.length > file.bytes) {
          access.truncate(0);
          throw new Refusal(`${file.path} has more than the manifest's ${file.bytes} bytes`);
        }
        if (access.write(chunk, { at }) !== chunk.length) throw new DOMException("", QUOTA);
        tell("loading", at + chunk.length);
      }
      const found = access.getSize();
      if (found !== file.bytes) {
        throw new Refusal(`${file.path} has ${found} bytes, the manifest says ${file.bytes}`);
      }
      await check(access, file, tell, signal);
      access.flush();
    });
  } catch (error) {
    if (error.name !== QUOTA) throw error;
    throw new Refusal("the browser's storage is full: free storage on the device and go on");
  }
  await part.move(file.sha256);
}

const QUOTA = "QuotaExceededError";

async function check(access, file, tell, signal) {
  const [hash, piece] = [await createSHA256(), new Uint8Array(Math.min(PIECE, file.bytes))];
  for (let at = 0; at < file.bytes; ) {
    signal.throwIfAborted();
    const read = access.read(piece, { at });
    hash.update(piece.subarray(0, read));
    at += read;
    tell("checking", at);
    await new Promise((resolve) => setTimeout(resolve)); // let a stop come through
  }
  if (hash.digest() !== file.sha256) {
    access.truncate(0);
    throw new Refusal(
      `${file.path} is not what the manifest says (its SHA-256 differs), and was dropped: load it ` +
        "again, or copy the package anew",
    );
  }
}

async function withAccess(handle, use) {
  let access;
  try {
    access = await handle.createSyncAccessHandle();
  } catch (error) {
    if (error.name !== "NoModificationAllowedError") throw error;
    throw new Refusal("another tab is loading this package: wait for it, or close it");
  }
  try {
    return await use(access);
  } finally {
    access.close();
  }
}

async function existing(place, name) {
  try {
    return await place.getFileHandle(name);
  } catch (error) {
    if (error.name !== "NotFoundError") throw error;
    return undefined;
  }
}

/** Bytes as a reader takes them. */
export function size(bytes) {
  const [unit, name] = bytes >= 1e9 ? [1e9, "GB"] : [1e6, "MB"];
  return `${(bytes / unit).toFixed(bytes >= 100e6 && unit === 1e6 ? 0 : 1)} ${name}`;
}
