// A fake job, for states that are hard to bring about with a real one. It serves
// the page's own files with the job's own headers, and sends whatever documents a test hands it.

import { readFile, readdir } from "node:fs/promises";
import { createServer } from "node:http";
import { extname } from "node:path";

export const PAGE = new URL("../../src/monitor/page/", import.meta.url);

export const CSP =
  "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; " +
  "img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; form-action 'none'";

const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
};

/** The names of the page's files that a browser asks for. */
export async function pageFiles() {
  return (await readdir(PAGE)).filter((name) => extname(name) in TYPES);
}

export class Player {
  constructor(prefix = "") {
    this.prefix = prefix;
    this.streams = new Set();
    this.requests = [];
    this.document = null;
    this.refusesStreams = false;
    this.bytes = 0;
  }

  async start(port = 0) {
    this.server = createServer((request, response) => this.answer(request, response));
    await new Promise((ready) => this.server.listen(port, "127.0.0.1", ready));
    this.port = this.server.address().port;
    this.url = `http://127.0.0.1:${this.port}${this.prefix}/`;
    return this;
  }

  async answer(request, response) {
    const path = new URL(request.url, "http://x").pathname;
    this.requests.push(path);
    const name = path.startsWith(`${this.prefix}/`)
      ? path.slice(this.prefix.length + 1) || "index.html"
      : null;
    response.setHeader("X-Content-Type-Options", "nosniff");
    if (name === "events") return this.stream(response);
    if (name === "status" && this.document) {
      response.writeHead(200, { "Content-Type": "application/json" });
      return response.end(JSON.stringify(this.document));
    }
    if (!(await pageFiles()).includes(name)) return response.writeHead(404).end();
    response.writeHead(200, {
      "Content-Type": TYPES[extname(name)],
      "Content-Security-Policy": CSP,
      "Cache-Control": "no-cache",
    });
    response.end(await readFile(new URL(name, PAGE)));
  }

  stream(response) {
    if (this.refusesStreams) return response.writeHead(503).end("too many pages");
    response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
    response.write("retry: 1000\n\n");
    this.streams.add(response);
    response.on("close", () => this.streams.delete(response));
    if (this.document) response.write(message("snapshot", this.document));
  }

  /** What the next connection begins with; those that are there get it now. */
  snapshot(document) {
    this.document = document;
    this.send("snapshot", document);
  }

  /** A change, which is also what a later snapshot would have. */
  change(change) {
    const { history, partitions, latest, marks, ...blocks } = change;
    this.document = { ...this.document, ...blocks };
    if (history) this.document.history.points.push(...history.points);
    this.send("change", change);
  }

  send(event, data) {
    for (const stream of this.streams) stream.write(message(event, data));
  }

  /** Ends the connections, as a job does that dies; and takes no new ones. */
  async stop() {
    for (const stream of this.streams) stream.destroy();
    this.server.closeAllConnections();
    await new Promise((closed) => this.server.close(closed));
  }
}

const message = (event, data) => `event: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
