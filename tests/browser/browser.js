// A headless Chromium, and what the tests ask of a page.

import { existsSync } from "node:fs";
import { chromium } from "playwright-core";

const PLACES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

export const executablePath =
  process.env.SESSIONIZER_TEST_CHROMIUM ?? PLACES.find((path) => existsSync(path));

/** Root has no sandbox; and nothing on this machine should be asked but what is tested. */
export const FLAGS = [
  ...(process.getuid() === 0 ? ["--no-sandbox"] : []),
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-dev-shm-usage",
];

export const launch = () => chromium.launch({ executablePath, args: FLAGS });

/**
 * Opens a page. What it complains about (errors, refusals of the content security policy) is
 * collected; that a server is away is no complaint: some tests take it away.
 */
export async function open(browser, url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => {
    const text = message.text();
    if (message.type() === "error" && !/net::ERR_|status of 503|status of 404/.test(text))
      complaints.push(text);
  });
  await page.goto(url);
  return { page, context, complaints };
}

export const text = (page, selector) => page.locator(selector).first().innerText();

/** Waits until a condition holds; says what was seen last if it never does. */
export async function until(what, seen, holds, limit = 30_000) {
  const end = Date.now() + limit;
  let last;
  for (;;) {
    last = await seen();
    if (holds(last)) return last;
    if (Date.now() > end) throw new Error(`${what}: last seen ${JSON.stringify(last)}`);
    await new Promise((later) => setTimeout(later, 50));
  }
}
