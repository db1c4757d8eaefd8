// A real job, with a Kafka and a PostgreSQL of its own that a test may take away.

import { execFile, spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const run = promisify(execFile);

/** The program to test; scripts/lib/check-page names it. */
export const program = process.env.SESSIONIZER_TEST_PROGRAM;

export class World {
  children = new Set();
  topics = [];

  async start() {
    this.dir = await mkdtemp(join(tmpdir(), "sessionizer-page-"));
    // PostgreSQL may run as another user, who has to pass here.
    await chmod(this.dir, 0o711);
    this.port = await freePort();
    this.url = `http://127.0.0.1:${this.port}/`;
    const started = ["kafka", "postgres"].map((kind) => this.services(kind, "start"));
    await Promise.allSettled(started);
    const [kafka, postgres] = await Promise.all(started);
    this.env = {
      ...Object.fromEntries(
        Object.entries(process.env).filter(
          ([name]) => !/^(KAFKA|POSTGRES|SESSIONIZER)_/.test(name),
        ),
      ),
      KAFKA_URL: kafka,
      KAFKA_GROUP: "page",
      POSTGRES_URL: `postgres://postgres@${postgres}/postgres`,
    };
    return this;
  }

  async services(kind, verb, ...more) {
    const { stdout } = await run(
      join(ROOT, "scripts/services"),
      [kind, verb, join(this.dir, kind), ...more],
      { env: { ...process.env, TMPDIR: this.dir } },
    );
    return stdout.trim();
  }

  /** The job reads all topics that were made. */
  async makeTopic(name, partitions) {
    await this.services(
      "kafka",
      "tool",
      "org.apache.kafka.tools.TopicCommand",
      "--create",
      "--topic",
      name,
      "--partitions",
      String(partitions),
    );
    this.topics.push(name);
  }

  /** Short gaps, so that sessions close while a test looks. */
  job(...more) {
    return this.spawn("job", this.topics.join(), [
      "--gap",
      "3s",
      "--out-of-orderness",
      "1s",
      "--idle-timeout",
      "5s",
      "--http",
      `127.0.0.1:${this.port}`,
      ...more,
    ]);
  }

  /** Writes events until it is stopped, or has written all. */
  produce(topic, ...args) {
    return this.spawn("produce", topic, ["produce", "--append", ...args]);
  }

  /** Visits of one host; an access log is how a host may have any name. */
  async visit(host, visits = 5) {
    const log = join(this.dir, "access.log");
    const time = new Date()
      .toUTCString()
      .replace(/^\w+, (\d+) (\w+) (\d+) (.*) GMT$/, "$1/$2/$3:$4 +0000");
    const line = (i) => `10.1.2.${i} - - [${time}] "GET / HTTP/1.1" 200 12 "-" "test"\n`;
    await writeFile(log, Array.from({ length: visits }, (_, i) => line(i)).join(""));
    await this.produce(this.topics[0], "--access-log", log, "--host", host).ended;
  }

  spawn(name, topic, args) {
    const log = openSync(join(this.dir, `${name}.log`), "a");
    const child = spawn(program, args, {
      env: { ...this.env, KAFKA_TOPIC: topic },
      stdio: ["ignore", log, log],
    });
    closeSync(log);
    this.children.add(child);
    const ended = new Promise((done) =>
      child.once("exit", (code, signal) => {
        this.children.delete(child);
        done(code ?? signal);
      }),
    );
    return {
      pid: child.pid,
      ended,
      end: (signal = "SIGTERM") => {
        child.kill(signal);
        return ended;
      },
    };
  }

  async stop() {
    for (const child of this.children) child.kill("SIGKILL");
    if (!this.dir) return;
    await run(join(ROOT, "scripts/services"), ["sweep", this.dir]);
    await rm(this.dir, { recursive: true, force: true, maxRetries: 10 });
  }
}

async function freePort() {
  const server = createServer();
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  const { port } = server.address();
  await new Promise((closed) => server.close(closed));
  return port;
}

/** Seconds of CPU that a process has used. */
export async function cpu(pid) {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100;
}
