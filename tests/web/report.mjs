// Opens a local page in headless Chromium once for each view and tells what a reader meets:
//   node report.mjs PROFILE_FOLDER URL VIEWS.json
// A view is {width, scheme, expression, screenshot}: the value of the expression, what the page said
// on the console and what it asked of the network; `screenshot` (or null) is a .png to write.

import { readFile, writeFile } from "node:fs/promises";

import { launch } from "./browser.mjs";

const [profile, url, views] = process.argv.slice(2);
const browser = await launch(profile);
const answers = [];
try {
  for (const view of JSON.parse(await readFile(views))) answers.push(await look(view));
} finally {
  browser.kill();
}
// A pipe takes a long text piece by piece.
process.stdout.write(JSON.stringify(answers), () => process.exit());

/** A page of the browser: `send` answers a command's result, `events` are all that were told. */
async function newPage() {
  const socket = await browser.openPage();
  const [waiting, events, listeners] = [new Map(), [], new Set()];
  socket.addEventListener("close", () => {
    for (const { reject } of waiting.values()) reject(new Error("Chromium closed the page"));
  });
  socket.addEventListener("message", ({ data }) => {
    const told = JSON.parse(data);
    if (!told.id) {
      events.push(told);
      for (const listener of listeners) listener(told);
      return;
    }
    const { resolve, reject } = waiting.get(told.id);
    waiting.delete(told.id);
    if (told.error || told.result.exceptionDetails) reject(new Error(data));
    else resolve(told.result);
  });
  let last = 0;
  const send = (method, params = {}) =>
    new Promise((resolve, reject) => {
      waiting.set(++last, { resolve, reject });
      socket.send(JSON.stringify({ id: last, method, params }));
    });
  const event = (method) =>
    new Promise((resolve) => {
      listeners.add((told) => told.method === method && resolve(told));
    });
  return { send, events, event, close: () => socket.close() };
}

async function look({ width, scheme, expression, screenshot }) {
  const { send, events, event, close } = await newPage();
  for (const domain of ["Page", "Runtime", "Log", "Network"]) await send(`${domain}.enable`);
  const metrics = { width, height: 900, deviceScaleFactor: 1, mobile: width < 600 };
  await send("Emulation.setDeviceMetricsOverride", metrics);
  const features = [{ name: "prefers-color-scheme", value: scheme }];
  await send("Emulation.setEmulatedMedia", { features });
  const loaded = event("Page.loadEventFired");
  await send("Page.navigate", { url });
  await loaded;
  const options = { expression, awaitPromise: true, returnByValue: true };
  const { value } = (await send("Runtime.evaluate", options)).result;
  if (screenshot) {
    const { cssContentSize } = await send("Page.getLayoutMetrics");
    const clip = { x: 0, y: 0, width, height: Math.min(cssContentSize.height, 12000), scale: 1 };
    const shot = await send("Page.captureScreenshot", { clip, captureBeyondViewport: true });
    await writeFile(screenshot, Buffer.from(shot.data, "base64"));
  }
  close();
  const of = (...methods) => events.filter(({ method }) => methods.includes(method));
  return {
    value,
    said: of("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"),
    requests: of("Network.requestWillBeSent").map(({ params }) => params.request.url),
  };
}
