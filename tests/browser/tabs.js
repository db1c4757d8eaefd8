// Two tabs of one window, of which only one is seen. Playwright makes every page believe that it
// has the focus, so this talks to Chromium itself, over the pipe that it offers for that.

import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FLAGS, executablePath } from "./browser.js";

export class Tabs {
  async start() {
    this.profile = await mkdtemp(join(tmpdir(), "sessionizer-tabs-"));
    this.process = spawn(
      executablePath,
      [
        ...FLAGS,
        "--headless=new",
        "--remote-debugging-pipe",
        `--user-data-dir=${this.profile}`,
        "about:blank",
      ],
      { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] },
    );
    this.ended = new Promise((ended) => this.process.once("exit", ended));
    this.calls = new Map();
    let rest = "";
    this.process.stdio[4].on("data", (data) => {
      const messages = (rest + data).split("\0");
      rest = messages.pop();
      for (const message of messages) this.hear(JSON.parse(message));
    });
    return this;
  }

  hear({ id, result, error }) {
    const call = this.calls.get(id);
    this.calls.delete(id);
    if (error) call?.failed(new Error(error.message));
    else call?.done(result);
  }

  call(method, params = {}, sessionId = undefined) {
    const id = (this.id = (this.id ?? 0) + 1);
    this.process.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    return new Promise((done, failed) => this.calls.set(id, { done, failed }));
  }

  async open(url) {
    const { targetId } = await this.call("Target.createTarget", { url });
    const { sessionId } = await this.call("Target.attachToTarget", { targetId, flatten: true });
    return {
      front: () => this.call("Target.activateTarget", { targetId }),
      async evaluate(expression) {
        const { result } = await this.tabs.call(
          "Runtime.evaluate",
          { expression, returnByValue: true },
          sessionId,
        );
        return result.value;
      },
      tabs: this,
    };
  }

  async stop() {
    this.process.kill();
    await this.ended;
    await rm(this.profile, { recursive: true, force: true, maxRetries: 10 });
  }
}
