// A page in headless Chromium that is told what to do, a JSON line on stdin after the other:
//   node session.mjs PROFILE_FOLDER WIDTH SCHEME [FLAG…]
// {evaluate}, {navigate}, {screenshot}, {call: METHOD, params}, {events: true}; each is answered by a
// line of {value} or {error}. It ends with stdin.

import { writeFile } from "node:fs/promises";
import { createInterface } from "node:readline";

import { launch } from "./browser.mjs";

const [profile, width, scheme, ...flags] = process.argv.slice(2);
const browser = await launch(profile, flags);
const socket = await browser.openPage();
const [waiting, events] = [new Map(), []];
let last = 0;
let loaded = () => {};
socket.addEventListener("message", ({ data }) => {
  const told = JSON.parse(data);
  if (!told.id) {
    if (told.method === "Page.loadEventFired") loaded();
    else events.push(told);
    return;
  }
  const { resolve, reject } = waiting.get(told.id);
  if (told.error || told.result.exceptionDetails) reject(new Error(data));
  else resolve(told.result);
});

function call(method, params = {}) {
  return new Promise((resolve, reject) => {
    waiting.set(++last, { resolve, reject });
    socket.send(JSON.stringify({ id: last, method, params }));
  });
}

const steps = {
  async navigate(url) {
    const done = new Promise((resolve) => (loaded = resolve));
    await call("Page.navigate", { url });
    await done;
  },
  async evaluate(expression) {
    const options = { expression, awaitPromise: true, returnByValue: true, userGesture: true };
    return (await call("Runtime.evaluate", options)).result.value ?? null;
  },
  async screenshot(file) {
    const { cssContentSize } = await call("Page.getLayoutMetrics");
    const clip = { x: 0, y: 0, width: Number(width), height: cssContentSize.height, scale: 1 };
    const shot = await call("Page.captureScreenshot", { clip, captureBeyondViewport: true });
    await writeFile(file, Buffer.from(shot.data, "base64"));
  },
  call: ([method, params]) => call(method, params),
  events: () => events.splice(0),
};

for (const domain of ["Page", "Runtime", "Log", "DOM"]) await call(`${domain}.enable`);
const mobile = Number(width) < 600;
const metrics = { width: Number(width), height: mobile ? 800 : 900, deviceScaleFactor: 1, mobile };
await call("Emulation.setDeviceMetricsOverride", metrics);
const features = [{ name: "prefers-color-scheme", value: scheme }];
await call("Emulation.setEmulatedMedia", { features });
for await (const line of createInterface({ input: process.stdin })) {
  const [[step, argument]] = Object.entries(JSON.parse(line));
  try {
    console.log(JSON.stringify({ value: (await steps[step](argument)) ?? null }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error.message) }));
  }
}
browser.kill();
process.exit();
