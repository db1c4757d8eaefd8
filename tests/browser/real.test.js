// The page of a real job, with a real Kafka and a real PostgreSQL: what it shows from an empty
// topic to a crash. The tests are one story and run in this order.

import assert from "node:assert/strict";
import { get } from "node:http";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { launch, open, text, until } from "./browser.js";
import { World, cpu, program } from "./job.js";

const skip = program ? false : "SESSIONIZER_TEST_PROGRAM names no program";
/** The machine may be busy with other tests. */
const LONG = 90_000;
const HOSTS = ["<script>globalThis.hit=1</script>", `${"a".repeat(249)}.com`, "مثال.إختبار"];

let world, job, browser, page, complaints, live;

before(async () => {
  if (skip) return;
  world = new World();
  await world.start();
  browser = await launch();
  await world.makeTopic("web-events", 4);
  await world.makeTopic("slow", 1);
  job = world.job();
  await until(
    "the job listens",
    () =>
      fetch(`${world.url}livez`).then(
        (answer) => answer.status,
        () => 0,
      ),
    (status) => status > 0,
    LONG,
  );
  ({ page, complaints } = await open(browser, world.url));
});
after(async () => {
  await browser?.close();
  await world?.stop();
});

const title = () => page.title();
const says = (what, words) => until(what, title, (now) => words.test(now), LONG);
const status = () => fetch(`${world.url}status`).then((answer) => answer.json());
/** Whatever comes from events may say "null". */
const FOREIGN = "#dead-letters, #hosts, #latest, #visitors, #anomalies, #marks";
const sound = async () => {
  const own = await page.evaluate((foreign) => {
    const copy = document.body.cloneNode(true);
    for (const node of copy.querySelectorAll(foreign)) node.remove();
    return copy.textContent;
  }, FOREIGN);
  assert.doesNotMatch(own, /NaN|undefined|null|Infinity|\[object/);
  assert.ok((await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)) <= 0);
  assert.deepEqual(complaints, []);
};

test("an empty topic: nothing is wrong, and nothing is made up", { skip }, async () => {
  await says("no events", /^(no events|up to date)/);
  const rows = () => page.locator("#partitions tbody tr").count();
  await until("partitions", rows, (count) => count === 5, LONG);
  assert.match(await text(page, "#hosts"), /No session has (closed yet|ended in the last day)/);
  assert.match(await text(page, "#dead-letters"), /None since the start/);
  assert.equal((await text(page, "#word")).toLowerCase(), "ok");
  await sound();
});

test(
  "live events: tiles, hosts, sessions, dead letters and an equal balance",
  { skip },
  async () => {
    live = world.produce("web-events", "--rate", "200", "--bad", "0.02");
    await says("up to date", /^up to date/);
    await until(
      "hosts",
      () => page.locator("#hosts tbody tr").count(),
      (n) => n > 0,
      LONG,
    );
    await until(
      "sessions",
      () => page.locator("#latest tbody tr").count(),
      (n) => n > 0,
      LONG,
    );
    await until(
      "dead letters",
      () => page.locator("#dead-letters tbody tr").count(),
      (n) => n > 0,
      LONG,
    );
    const tiles = await page.locator(".value").allInnerTexts();
    assert.ok(
      tiles.every((value) => value !== "–"),
      tiles.join(" | "),
    );
    await until(
      "balance",
      () => text(page, "#balance-verdict"),
      (said) => said === "Equal: every record is accounted for",
      LONG,
    );
    assert.match(
      await page.getAttribute("#chart-rates", "aria-label"),
      /events in: [0-9.,]+\/s at/,
    );
    await sound();
  },
);

test("hosts of any name do no harm", { skip }, async () => {
  for (const host of HOSTS) await world.visit(host);
  await until(
    "hosts",
    async () => (await status()).hosts.rows.map((row) => row.host),
    (hosts) => HOSTS.every((host) => hosts.includes(host)),
    LONG,
  );
  await until(
    "shown",
    () =>
      page
        .locator("#hosts td.head bdi")
        .evaluateAll((nodes) => nodes.map((node) => node.textContent)),
    (shown) => HOSTS.every((host) => shown.includes(host)),
    LONG,
  );
  assert.equal(await page.evaluate(() => globalThis.hit), undefined);
  await sound();
});

test("a partition whose events are old holds the others back, and is named", { skip }, async () => {
  const slow = world.produce("slow", "--rate", "5", "--historical", "20m", "--density", "5");
  await says("held back", /^held back by slow\/0 since [0-9:]+/);
  await until(
    "the first row",
    () => text(page, "#partitions tbody tr"),
    (row) => /^slow\/0\s+holds back/.test(row),
    LONG,
  );
  assert.equal((await text(page, "#word")).toLowerCase(), "trouble");
  await sound();
  await slow.end();
  await says("over", /^up to date/);
});

test("PostgreSQL away: it is said, and it is over when it is back", { skip }, async () => {
  await world.services("postgres", "stop");
  await says("waiting", /^waiting for Postgres \(/);
  assert.equal((await text(page, "#word")).toLowerCase(), "trouble");
  await sound();
  await world.services("postgres", "start");
  await says("back", /^(up to date|catching up)/);
  await until(
    "marks",
    () => text(page, "#marks"),
    (marks) => /Postgres/.test(marks),
    LONG,
  );
});

test("Kafka away: it is said, and it is over when it is back", { skip }, async () => {
  await world.services("kafka", "kill");
  await says("waiting", /^waiting for Kafka/);
  await sound();
  await world.services("kafka", "start");
  await says("back", /^(up to date|catching up|no new events)/);
});

test("killed: the page says so, finds the next run, and marks the restart", { skip }, async () => {
  const before = (await status()).run;
  await job.end("SIGKILL");
  await says("lost", /^lost the job [0-9.]+ s ago; figures are of [0-9:]+ · page$/);
  await sound();
  job = world.job();
  await says("found", /^(?!lost)/);
  assert.notEqual((await status()).run, before);
  await until(
    "marked",
    () => text(page, "#marks"),
    (marks) => /start/.test(marks) && /lost the connection/.test(marks),
    LONG,
  );
  await says("up to date", /^(up to date|no new events)/);
});

test(
  "at rest a page costs less than 2 kB a second, and less than 1 % of a core",
  { skip },
  async () => {
    await live.end();
    await says("rest", /^no new events/);
    const seconds = 15;
    const idle = await used(seconds);
    const bytes = [];
    const clients = Array.from({ length: 10 }, (_, i) =>
      get(`${world.url}events`, (answer) => {
        answer.on("data", (data) => {
          bytes[i] = (bytes[i] ?? 0) + data.length;
        });
      }),
    );
    await sleep(3000);
    bytes.fill(0);
    const busy = await used(seconds);
    for (const client of clients) client.on("error", () => {}).destroy();
    assert.equal(bytes.length, clients.length);
    const most = Math.max(...bytes) / seconds;
    const share = ((busy - idle) / seconds / clients.length) * 100;
    console.log(`# a client: ${Math.round(most)} bytes/s, ${share.toFixed(2)} % of a core`);
    assert.ok(most < 2000, `${bytes}`);
    assert.ok(share < 1, `${share} %`);
  },
);

async function used(seconds) {
  const begin = await cpu(job.pid);
  await sleep(seconds * 1000);
  return (await cpu(job.pid)) - begin;
}

test("a clean stop: the page knows that it has not crashed", { skip }, async () => {
  assert.equal(await job.end("SIGTERM"), 0);
  await says(
    "stopped",
    /^the job (has stopped|was stopping), last heard [0-9.]+ s ago; figures are of/,
  );
  await sound();
});
