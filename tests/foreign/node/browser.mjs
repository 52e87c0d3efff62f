// A page of another origin in headless Chromium that watches. Generates its client from the proto files, bundles it, and obeys the
// lines of standard input: {"do": "follow" | "update" | "socket" | "change" | "close", ...}. Prints what the page reports, a JSON line each.
//
// Environment: CARILLON_URLS (comma separated), CARILLON_KEY, CARILLON_ORIGIN, CARILLON_OUT (a folder for generated files).

import { execFileSync } from "node:child_process";
import { createInterface } from "node:readline";
import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { chromium } from "playwright-core";

const here = fileURLToPath(new URL(".", import.meta.url));
const out = process.env.CARILLON_OUT;
const urls = process.env.CARILLON_URLS.split(",");
const key = process.env.CARILLON_KEY;
const origin = process.env.CARILLON_ORIGIN;
const print = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

// The client, from the proto files alone.
const template = {
  version: "v2",
  plugins: [{ local: join(here, "node_modules/.bin/protoc-gen-es"), out: join(out, "gen"), opt: ["target=js"] }],
};
execFileSync(join(here, "node_modules/.bin/buf"), ["generate", join(here, "../../../proto"), "--template", JSON.stringify(template)], { stdio: "inherit" });
const { outputFiles } = await build({
  entryPoints: [join(here, "browser-page.mjs")],
  bundle: true, write: false, format: "iife", target: "es2022",
  alias: { carillon: join(out, "gen/carillon") },
  nodePaths: [join(here, "node_modules")],
});

const isProgram = (path) => {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
};
const executablePath = process.env.PATH.split(delimiter)
  .flatMap((folder) => ["chromium", "chromium-browser", "google-chrome"].map((name) => join(folder, name)))
  .find(isProgram);
if (!executablePath) throw new Error("no Chromium on the PATH; get it with: apt-get install chromium");

const browser = await chromium.launch({
  executablePath,
  // As root there is no sandbox; a page that Playwright answers itself may speak to loopback without being asked.
  args: ["--no-sandbox", "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests"],
});
const page = await browser.newPage();
page.on("pageerror", (error) => print({ pageError: String(error) }));
// The page belongs to the origin that the service allows; nothing of it comes from the network.
await page.route(`${origin}/**`, (route) => route.fulfill({ contentType: "text/html", body: "<!doctype html><title>watch</title>" }));
await page.exposeFunction("report", print);
await page.goto(`${origin}/`);
await page.addScriptTag({ content: outputFiles[0].text });

const commands = {
  follow: () => page.evaluate(([urls, key]) => void globalThis.follow(urls, key), [urls, key]),
  update: async ({ at, add, version }) => {
    print({ updated: await page.evaluate(([url, key, add, version]) => globalThis.update(url, key, add, version), [urls[at], key, add, version]) });
  },
  socket: ({ at, key: other }) => page.evaluate(([url, key]) => globalThis.openSocket(url, key), [urls[at], other ?? key]),
  change: ({ add }) => page.evaluate((add) => globalThis.changeSocket(add), add),
  close: ({ code }) => page.evaluate((code) => globalThis.closeSocket(code), code),
};
print({ ready: await browser.version() });
for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  await commands[command.do](command);
}
await browser.close();
process.exit(0);
