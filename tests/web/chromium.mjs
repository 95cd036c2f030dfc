// Opens a page in headless Chromium, evaluates an expression there and prints its value as JSON:
//   node chromium.mjs PROFILE_FOLDER URL EXPRESSION

import { launch } from "./browser.mjs";

const [profile, url, expression] = process.argv.slice(2);
const browser = await launch(profile);
try {
  const value = await evaluate(await browser.openPage());
  console.log(JSON.stringify(value));
} finally {
  browser.kill();
}
process.exit();

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
