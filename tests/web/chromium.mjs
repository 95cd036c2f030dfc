// Opens a page in headless Chromium, evaluates an expression there and prints its value as JSON:
//   node chromium.mjs PROFILE_FOLDER URL EXPRESSION
// Chromium is that of @sparticuz/chromium, spoken to in its DevTools protocol.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";

import chromium from "@sparticuz/chromium";

const [profile, url, expression] = process.argv.slice(2);
const flags = ["--headless", "--no-sandbox", "--no-zygote", "--disable-gpu"];
const where = ["--remote-debugging-port=0", `--user-data-dir=${profile}`, "about:blank"];
// With the package's own font configuration its renderer ends as soon as it draws (153.0.0).
const { FONTCONFIG_PATH: _, ...env } = process.env;
const browser = spawn(await chromium.executablePath(), [...flags, ...where], {
  env,
  stdio: ["ignore", "ignore", "pipe"],
});
try {
  const value = await evaluate(await blankPage(await devToolsPort()));
  console.log(JSON.stringify(value));
} finally {
  browser.kill();
}
process.exit();

async function devToolsPort() {
  const said = [];
  for await (const line of createInterface({ input: browser.stderr })) {
    const found = /^DevTools listening on ws:\/\/127\.0\.0\.1:(\d+)\//.exec(line);
    if (found) return found[1];
    said.push(line);
  }
  throw new Error(`Chromium did not start:\n${said.join("\n")}`);
}

async function blankPage(port) {
  const address = `http://127.0.0.1:${port}/json/new?about:blank`;
  const page = await (await fetch(address, { method: "PUT" })).json();
  const socket = new WebSocket(page.webSocketDebuggerUrl);
  await once(socket, "open");
  return socket;
}

/** The first message that `wanted` takes; fails when the browser reports an error or goes away. */
function message(socket, wanted) {
  return new Promise((resolve, reject) => {
    socket.addEventListener("close", () => reject(new Error("Chromium closed the page")));
    socket.addEventListener("message", ({ data }) => {
      const found = JSON.parse(data);
      if (found.error || found.result?.exceptionDetails) reject(new Error(data));
      else if (wanted(found)) resolve(found);
    });
  });
}

function send(socket, id, method, params = {}) {
  socket.send(JSON.stringify({ id, method, params }));
}

async function evaluate(socket) {
  const loaded = message(socket, (found) => found.method === "Page.loadEventFired");
  send(socket, 1, "Page.enable");
  send(socket, 2, "Page.navigate", { url });
  await loaded; // its modules have run
  const value = message(socket, (found) => found.id === 3);
  send(socket, 3, "Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
  return (await value).result.result.value;
}
