// What can be said of the page's files without a browser.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { PAGE, pageFiles } from "./player.js";

const FORBIDDEN = new RegExp(
  [
    "innerHTML|outerHTML|insertAdjacentHTML|document\\.write",
    "DOMParser|createContextualFragment|srcdoc|\\beval\\(|new Function",
  ].join("|"),
);
const BYTES_MAX = 128_000;

const read = (name) => readFile(new URL(name, PAGE));

test("text from events can become text only", async () => {
  for (const name of await pageFiles()) {
    const source = String(await read(name));
    const found = source.match(FORBIDDEN);
    assert.equal(found, null, `${name} has ${found}`);
  }
});

test("the page fits into 128 kB", async () => {
  const sizes = await Promise.all(
    (await pageFiles()).map(async (name) => (await read(name)).length),
  );
  const all = sizes.reduce((sum, size) => sum + size, 0);
  assert.ok(all <= BYTES_MAX, `${all} bytes are more than ${BYTES_MAX}`);
});

test("nothing in the page is inline, absolute or from elsewhere", async () => {
  const html = String(await read("index.html"));
  assert.doesNotMatch(html, /\sstyle=|\son\w+=|<style/i);
  assert.doesNotMatch(html.replace(/<script[^>]*\ssrc="[^"]*"[^>]*><\/script>/g, ""), /<script/i);
  for (const [, url] of html.matchAll(/(?:src|href)="([^"]*)"/g))
    assert.match(url, /^(#|[a-z]+)/, url);
  for (const name of [
    "index.html",
    "app.css",
    "app.js",
    "stream.js",
    "charts.js",
    "blocks.js",
    "sections.js",
  ]) {
    const source = String(await read(name)).replaceAll("http://www.w3.org/2000/svg", "");
    assert.doesNotMatch(source, /https?:|url\(/, name);
  }
});

test("the program serves every file of the page", async () => {
  const assets = String(await read("../assets.rs"));
  const names = await pageFiles();
  assert.ok(names.length > 5);
  for (const name of names) assert.ok(assets.includes(`include_bytes!("page/${name}")`), name);
});

test("uPlot is the one that its checksums name", async () => {
  const sums = String(await read("uplot.SHA256SUMS"))
    .split("\n")
    .filter((line) => /^[0-9a-f]{64} {2}/.test(line));
  assert.equal(sums.length, 1);
  for (const line of sums) {
    const [sum, name] = line.split("  ");
    assert.equal(
      createHash("sha256")
        .update(await read(name))
        .digest("hex"),
      sum,
      name,
    );
  }
  assert.match(String(await read("uplot.LICENSE")), /MIT License/);
});

test("the lock file names the registry itself", async () => {
  const lock = JSON.parse(await readFile(new URL("package-lock.json", import.meta.url)));
  const packages = Object.entries(lock.packages).filter(([name]) => name);
  assert.ok(packages.length >= 2);
  for (const [name, { resolved, integrity }] of packages) {
    assert.match(resolved, /^https:\/\/registry\.npmjs\.org\//, name);
    assert.match(integrity, /^sha512-/, name);
  }
});
