// Headless Chromium of @sparticuz/chromium, spoken to in its DevTools protocol.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";

import chromium from "@sparticuz/chromium";

/**
 * Start it with a profile folder of its own, and more flags: `openPage` answers a socket to a blank
 * page.
 */
export async function launch(profile, more = []) {
  const flags = [...more, "--headless", "--no-sandbox", "--no-zygote", "--disable-gpu"];
  const where = ["--remote-debugging-port=0", `--user-data-dir=${profile}`, "about:blank"];
  // With the package's own font configuration its renderer ends as soon as it draws (153.0.0).
  const { FONTCONFIG_PATH: _, ...env } = process.env;
  const browser = spawn(await chromium.executablePath(), [...flags, ...where], {
    env,
    stdio: ["ignore", "ignore", "pipe"],
  });
  try {
    const port = await devToolsPort(browser);
    return { openPage: () => openPage(port), kill: () => browser.kill() };
  } catch (error) {
    browser.kill();
    throw error;
  }
}

async function devToolsPort(browser) {
  const said = [];
  for await (const line of createInterface({ input: browser.stderr })) {
    const found = /^DevTools listening on ws:\/\/127\.0\.0\.1:(\d+)\//.exec(line);
    if (found) return found[1];
    said.push(line);
  }
  throw new Error(`Chromium did not start:\n${said.join("\n")}`);
}

async function openPage(port) {
  const address = `http://127.0.0.1:${port}/json/new?about:blank`;
  const page = await (await fetch(address, { method: "PUT" })).json();
  const socket = new WebSocket(page.webSocketDebuggerUrl);
  await once(socket, "open");
  return socket;
}
