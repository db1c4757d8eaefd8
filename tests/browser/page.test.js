// How the page behaves, in a real Chromium. A player stands in for the job, because these states
// cannot be had from a real one at will; real.test.js has the real job.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { after, afterEach, before, test } from "node:test";
import { launch, open, text, until } from "./browser.js";
import { NOON, document_, lastDay, partitions, session, tick } from "./documents.js";
import { Player } from "./player.js";
import { Tabs } from "./tabs.js";

const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
let browser;
let opened = [];

before(async () => {
  browser = await launch();
});
after(() => browser?.close());
afterEach(async () => {
  for (const end of opened.splice(0).reverse()) await end();
});

/** A player that plays a document, and a page that shows it. */
async function watch(document, { prefix = "", ...options } = {}) {
  const player = await new Player(prefix).start();
  opened.push(() => player.stop());
  player.document = document;
  const seen = await open(browser, player.url, options);
  opened.push(() => seen.context.close());
  if (document) await seen.page.waitForSelector("#main:not([hidden])");
  return { player, ...seen };
}

const sentence = (page) => text(page, "#text");

/** Goes on at rest, a second a second, until it is stopped. */
function goesOn(player, blocks = {}) {
  const timer = setInterval(() => player.change(tick(player.document.at + 1000, blocks)), 1000);
  opened.push(() => clearInterval(timer));
  return () => clearInterval(timer);
}

async function findings(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() =>
    globalThis.axe.run(document, { resultTypes: ["violations"] }),
  );
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ")}`);
}

const overflow = (page) => page.evaluate(() => document.documentElement.scrollWidth - innerWidth);

const STATES = {
  connecting: "busy",
  waiting_for_kafka: "trouble",
  waiting_for_postgres: "trouble",
  waiting: "busy",
  loading: "busy",
  replaying: "busy",
  catching_up: "busy",
  up_to_date: "good",
  held_back: "trouble",
  quiet: "good",
  stopping: "busy",
  stopped: "busy",
  uncommitted: "trouble",
  fenced: "trouble",
  failed: "trouble",
};

test("the sentence, its word, its icon and the title say the same", async () => {
  const { page, player, complaints } = await watch(document_());
  const words = { good: "OK", busy: "Busy", trouble: "Trouble" };
  for (const [state, tone] of Object.entries(STATES)) {
    const words_of_state = `this is ${state.replaceAll("_", " ")}`;
    player.change({
      at: player.document.at + 1000,
      sentence: { state, tone, text: words_of_state, since: NOON, cause: "because" },
    });
    await until(
      state,
      () => sentence(page),
      (said) => said.toLowerCase() === words_of_state,
    );
    const word = state === "stopped" ? "stopped" : words[tone].toLowerCase();
    assert.equal((await text(page, "#word")).toLowerCase(), word);
    assert.equal(await page.title(), `${words_of_state} · sessionizer`);
    assert.equal(await page.getAttribute("#icon use", "href"), `#icon-${tone}`);
    assert.equal(await text(page, "#cause"), "because");
    assert.ok((await text(page, "#means")).length > 5, state);
    assert.match(await page.getAttribute("#favicon", "href"), /^data:image\/svg\+xml,/);
  }
  assert.deepEqual(complaints, []);
});

test("what is unknown is a dash with its reason, and never NaN or nothing", async () => {
  const empty = (block) =>
    Object.fromEntries([
      ...Object.keys(block).map((key) => [key, null]),
      ["why", Object.fromEntries(Object.keys(block).map((key) => [key, `no ${key} yet`]))],
    ]);
  const full = document_({}, { minutes: 0 });
  const { page, complaints } = await watch({
    ...full,
    tiles: empty(full.tiles),
    balance: empty(full.balance),
    proof: empty(full.proof),
    partitions: {
      total: 1,
      order: ["a/0"],
      rows: [{ ...empty(full.partitions.rows[0]), id: "a/0", state: "waiting", holds_back: false }],
    },
    writers: { rows: [{ ...empty(full.writers.rows[0]), writer: 0 }] },
    hosts: { since: NOON, known: 0, limit: 100, rows: [], other: { hosts: 0, sessions: 0 } },
    latest: { keep: 50, rows: [] },
    dead_letters: { since: NOON, total: 0, rows: [] },
  });
  const all = await text(page, "body");
  assert.doesNotMatch(all, /NaN|undefined|null|Infinity|\[object/);
  assert.deepEqual(await page.locator(".value").allInnerTexts(), Array(6).fill("–"));
  assert.match(all, /no events_per_s yet/);
  assert.match(all, /no lag_s yet/);
  assert.match(await text(page, "#balance-verdict"), /^– no difference yet/);
  assert.equal(
    await page.getAttribute("#partitions td[data-name=promise] span", "title"),
    "no promise yet",
  );
  assert.match(await text(page, "#partitions"), /– lag: no lag_s yet; .*promise: no promise yet/);
  assert.match(await page.getAttribute("#chart-lag", "aria-label"), /nothing known yet/);
  const figures = await page.locator("figcaption").allInnerTexts();
  const reasons = ["events_per_s", "lag_s", "watermark", "durable_delay_s"];
  figures.forEach((said, i) => assert.ok(said.includes(`no ${reasons[i]} yet`), said));
  assert.deepEqual(complaints, []);
});

test("after three seconds of silence the figures are called stale", async () => {
  const { page, player } = await watch(document_());
  const stop = goesOn(player);
  await until(
    "live",
    () => text(page, "#h-now ~ .asof"),
    (at) => at !== "as of 12:04:11",
  );
  assert.match(await page.title(), /^up to date/);
  stop();
  const at = () => new Date(player.document.at).toISOString().slice(11, 19);
  await until(
    "stale",
    () => sentence(page),
    (said) => said.startsWith("Lost the job") || said.startsWith("lost the job"),
  );
  assert.match(
    await sentence(page),
    new RegExp(`lost the job [0-9]+(\\.[0-9])? s ago; figures are of ${at()}$`, "i"),
  );
  assert.match(
    await page.title(),
    /^lost the job [0-9]+ s ago; figures are of [0-9:]+ · sessionizer$/,
  );
  assert.equal((await text(page, "#word")).toLowerCase(), "no contact");
  await until(
    "it counts",
    () => page.title(),
    (title) => / ([6-9]|\d\d) s ago/.test(title),
  );
  assert.equal(await text(page, "#h-now ~ .asof"), `as of ${at()}`);
  player.snapshot(document_({}, { at: NOON + 60_000 }));
  await until(
    "back",
    () => page.title(),
    (title) => title.startsWith("up to date"),
  );
  assert.equal(await text(page, "#h-now ~ .asof"), "as of 12:05:11");
  assert.match(await text(page, "#marks"), /lost the connection/);
});

test("a job that is killed is missed, and found again on its port with another run", async () => {
  const { page, player } = await watch(document_());
  const { port } = player;
  await player.stop();
  await until(
    "lost",
    () => page.title(),
    (title) => title.startsWith("lost the job"),
  );
  const next = new Player();
  next.document = document_({ run: "another" }, { at: NOON + 30_000, minutes: 0 });
  next.document.job.started_at = NOON + 25_000;
  await next.start(port);
  opened.push(() => next.stop());
  await until(
    "found",
    () => page.title(),
    (title) => title.startsWith("up to date"),
  );
  const marks = await text(page, "#marks");
  assert.match(marks, /12:04:36\s+the job was restarted/);
  assert.match(marks, /12:04:11\s+this page lost the connection/);
});

test("after a restart the page streams again at once", async () => {
  const { page, player } = await watch(document_());
  const { port } = player;
  await player.stop();
  await until("lost", () => page.title(), (title) => title.startsWith("lost the job"));
  const next = new Player();
  next.document = document_({ run: "another" }, { at: NOON + 30_000 });
  await next.start(port);
  opened.push(() => next.stop());
  await until("streams", () => next.streams.size, (streams) => streams === 1, 5000);
  goesOn(next);
  await until("goes on", () => text(page, ".asof"), (as) => as === "as of 12:04:43", 5000);
  const asked = next.requests.filter((path) => path === "/status").length;
  assert.ok(asked <= 1, `${asked} times`);
});

test("where only streams are refused, they are asked for now and then", async () => {
  const { page, player } = await watch(document_());
  player.refusesStreams = true;
  for (const stream of player.streams) stream.destroy();
  const asked = (path) => player.requests.filter((name) => name === path).length;
  await until("polled", () => asked("/status"), (times) => times >= 4);
  assert.equal(asked("/events"), 2);
  assert.match(await page.title(), /^up to date/);
  // Without any answer, the page starts anew.
  const { document } = player;
  player.document = null;
  await until("lost", () => page.title(), (title) => title.startsWith("lost the job"));
  player.refusesStreams = false;
  player.document = document;
  await until("streams", () => player.streams.size, (streams) => streams === 1, 5000);
});

test("without a job there is a sentence too", async () => {
  const { page, player } = await watch(null);
  assert.equal((await sentence(page)).toLowerCase(), "connecting to the job");
  await until(
    "unreached",
    () => sentence(page),
    (said) => /no answer from the job for [0-9.]+ s/i.test(said),
  );
  assert.equal(await page.locator("#main").isVisible(), false);
  player.snapshot(document_());
  await until(
    "reached",
    () => page.title(),
    (title) => title.startsWith("up to date"),
  );
});

test("a job that has stopped, and one that was overtaken, are not called lost", async () => {
  for (const [state, says] of [
    ["stopped", /the job has stopped/i],
    ["fenced", /another instance took over/i],
  ]) {
    const { page, player } = await watch(
      document_({ sentence: { state, tone: "busy", text: state, since: NOON, cause: null } }),
    );
    await player.stop();
    await until(
      state,
      () => sentence(page),
      (said) => says.test(said) && /figures are of 12:04:11/.test(said),
    );
    const word = await text(page, "#word");
    if (state === "stopped") assert.equal(word.toLowerCase(), "stopped");
  }
});

test("the cause of a failure stays", async () => {
  const failed = { state: "failed", tone: "trouble", text: "failed", cause: "no such table" };
  const { page, player } = await watch(document_({ sentence: { ...failed, since: NOON } }));
  await player.stop();
  await until("it is missed", () => sentence(page), (said) => /the job has failed/i.test(said));
  assert.equal(await text(page, "#cause"), "no such table");
  assert.equal(
    await text(page, "#means"),
    "Start it again when the cause is removed; its log says more.",
  );
});

test("ages go by the job's clock", async () => {
  const at = Date.UTC(2031, 0, 1, 3, 0, 0);
  const { page, player } = await watch(document_({}, { at }));
  assert.match(await text(page, "#partitions td[data-name=promise]"), /^1[6-9] s ago$/);
  assert.match(await text(page, "#dead-letters td[data-name=last]"), /^[4-7] s ago$/);
  assert.match(await text(page, "#crew"), /running for 1 h$/);
  player.change(tick(at + 1000));
  await until(
    "as of",
    () => text(page, ".asof"),
    (as) => as === "as of 03:00:01",
  );
});

test("a hidden page lets go of the stream, and comes back with a fresh snapshot", async () => {
  const player = await new Player().start();
  opened.push(() => player.stop());
  player.document = document_();
  const tabs = await new Tabs().start();
  opened.push(() => tabs.stop());
  const page = await tabs.open(player.url);
  const title = () => page.evaluate("document.title");
  await page.front();
  await until("seen", title, (now) => now === "up to date, 0.4 s behind · sessionizer");
  assert.equal(player.streams.size, 1);

  const other = await tabs.open("about:blank");
  await other.front();
  await until(
    "hidden",
    () => page.evaluate("document.hidden"),
    (hidden) => hidden,
  );
  await until(
    "let go",
    () => player.streams.size,
    (streams) => streams === 0,
  );
  assert.equal(await title(), "not watching · sessionizer");
  player.document = document_({
    sentence: {
      state: "held_back",
      tone: "trouble",
      text: "held back by web-events/3 since 12:03",
      since: NOON,
      cause: null,
    },
  });
  await new Promise((later) => setTimeout(later, 3500));
  assert.equal(player.streams.size, 0);
  assert.equal(await title(), "not watching · sessionizer");

  const { document } = player;
  player.document = null;
  await page.front();
  await until(
    "not yet back",
    title,
    (now) => now === "connecting again; figures are of 12:04:11 · sessionizer",
  );
  assert.equal(await page.evaluate("'stale' in document.body.dataset"), true);
  player.snapshot(document);
  await until(
    "back",
    title,
    (now) => now === "held back by web-events/3 since 12:03 · sessionizer",
  );
  assert.equal(player.streams.size, 1);
});

test("the page works behind a prefix", async () => {
  const { page, player, complaints } = await watch(document_(), { prefix: "/jobs/web" });
  assert.match(await page.title(), /^up to date/);
  assert.ok(
    player.requests.every((path) => path.startsWith("/jobs/web/")),
    player.requests.join(" "),
  );
  assert.deepEqual(complaints, []);
});

test("an unknown schema reloads the page, once", async () => {
  const { page, player } = await watch(document_());
  const loads = () => player.requests.filter((path) => path === "/").length;
  player.snapshot(document_({ schema: 2 }));
  await until("reloaded", loads, (n) => n === 2);
  await until(
    "said",
    () => sentence(page),
    (said) => /cannot read what the job says/.test(said),
  );
  await new Promise((later) => setTimeout(later, 2000));
  assert.equal(loads(), 2);
  assert.equal(await page.locator("#main").isVisible(), false);
});

const HOSTILE = [
  "<script>globalThis.hit = 1</script>",
  "<img src=x onerror=globalThis.hit=1>",
  `${"a".repeat(249)}.com`,
  "مثال.إختبار",
  "\u202Egnp.evil\u202C",
  "שלום.example",
  "\u2066\u2067\u202Eabc",
  "x\n\t y",
  "\u0007bell",
  "🙂".repeat(60),
  "",
  "javascript:alert(1)",
  "${7*7}{{7*7}}",
  "</td></tr></table><h1>mine</h1>",
];

const hostile = () =>
  document_({
    hosts: {
      since: NOON,
      known: 5000,
      limit: 10000,
      other: { hosts: 4900, sessions: 90000, events: 1, duration_ms: 1 },
      rows: HOSTILE.map((host, i) => ({
        host,
        sessions: 100 - i,
        events: 500,
        duration_ms: 600000,
      })),
    },
    latest: {
      keep: 50,
      rows: HOSTILE.slice(0, 10).map((host, i) => ({ ...session(i, NOON, host), ip: host })),
    },
    dead_letters: {
      since: NOON,
      total: HOSTILE.length,
      rows: HOSTILE.slice(0, 6).map((payload, i) => ({
        reason: `bad_json${i}`,
        count: 1,
        last_at: NOON,
        examples: [
          {
            at: NOON,
            topic: "t",
            partition: 0,
            offset: 1,
            detail: payload,
            payload: payload.repeat(3),
            cut: true,
          },
        ],
      })),
    },
    sentence: {
      state: "waiting_for_postgres",
      tone: "trouble",
      text: `waiting for Postgres (12 s, retrying: ${HOSTILE[0]})`,
      since: NOON,
      cause: HOSTILE[4],
    },
    partitions: { ...partitions(1), rows: [{ ...partitions(1).rows[0], state_text: HOSTILE[1] }] },
    marks: { rows: [{ at: NOON, kind: "postgres_lost", text: HOSTILE[1] }] },
  });

test("text from events does no harm, whatever it is", async () => {
  for (const width of [360, 1280]) {
    const { page, complaints } = await watch(hostile(), { viewport: { width, height: 800 } });
    await page.click("#host-all");
    assert.deepEqual(
      await page
        .locator("#hosts td.head bdi")
        .evaluateAll((nodes) => nodes.map((node) => node.textContent)),
      HOSTILE,
    );
    assert.equal(await page.locator("main script, main img, main h1").count(), 0);
    assert.equal(await page.evaluate(() => globalThis.hit), undefined);
    assert.ok((await overflow(page)) <= 0, `${width} px wide`);
    const rtl = page.locator("#hosts tbody tr").nth(3);
    assert.equal(await rtl.locator("td[data-name=sessions]").innerText(), "97");
    assert.match(await text(page, "#host-rest"), /4,900 other hosts had 90,000 sessions/);
    assert.deepEqual(complaints, []);
  }
});

test("a foreign text keeps its direction to itself", async () => {
  const { page } = await watch(hostile());
  await page.click("#host-all");
  const isolated = await page
    .locator("bdi")
    .evaluateAll((nodes) => nodes.map((node) => getComputedStyle(node).unicodeBidi));
  assert.ok(isolated.length > 20 && isolated.every((value) => value === "isolate"));
});

test("of many partitions the worst are shown, and a filter finds the others", async () => {
  const many = partitions(512);
  many.rows[300] = {
    ...many.rows[300],
    holds_back: true,
    state: "held_up",
    since: NOON - 60_000,
    lag_s: 60,
  };
  many.order = ["web-events/300", ...many.order.filter((id) => id !== "web-events/300")];
  many.rows = many.order.map((id) => many.rows.find((row) => row.id === id));
  const { page, player } = await watch(document_({ partitions: { ...many, total: 2000 } }));
  const names = () => page.locator("#partitions td.head").allInnerTexts();
  assert.equal((await names()).length, 20);
  assert.equal((await names())[0], "web-events/300");
  assert.equal(
    await text(page, "#partitions td[data-name=state]"),
    "holds back · open transaction since 12:03:11",
  );
  assert.match(
    await text(page, "#partition-count"),
    /20 shown, the worst first; 2,000 in all, of which the first 512 can be searched/,
  );
  await page.fill("#partition-filter", "events/51");
  assert.deepEqual(
    await names(),
    ["51", "510", "511"].map((n) => `web-events/${n}`),
  );
  player.change(tick(NOON + 1000, { partitions: { rows: [{ ...many.rows[1], lag_s: 99 }] } }));
  await until("still filtered", names, (shown) => shown.length === 3);
  await page.fill("#partition-filter", "no such");
  assert.match(await text(page, "#partitions"), /No partition fits "no such"/);
});

test("up to 64 partitions are all shown, and the one that holds back is named", async () => {
  const some = partitions(64);
  some.rows[0] = { ...some.rows[0], holds_back: true };
  const { page } = await watch(document_({ partitions: some }));
  assert.equal(await page.locator("#partitions tbody tr").count(), 64);
  assert.equal(await page.locator("#partition-tools").isVisible(), false);
  assert.match(await text(page, "#partitions td[data-name=state]"), /^holds back/);
});

test("of many hosts the first are shown, all on demand, and a filter finds one", async () => {
  const rows = Array.from({ length: 100 }, (_, i) => ({
    host: `h${i}.example`,
    sessions: 1000 - i,
    events: 5000,
    duration_ms: 1e6,
  }));
  const { page } = await watch(
    document_({
      hosts: {
        since: NOON,
        known: 5000,
        limit: 10000,
        rows,
        other: { hosts: 4900, sessions: 5, events: 5, duration_ms: 5 },
      },
    }),
  );
  const names = () => page.locator("#hosts td.head").allInnerTexts();
  assert.equal((await names()).length, 10);
  // 90 of those with a row have from 990 to 901 sessions.
  const rest = () => text(page, "#host-rest");
  assert.equal(await rest(), "4,990 other hosts had 85,100 sessions together.");
  await page.click("#host-all");
  assert.equal((await names()).length, 100);
  assert.equal(await rest(), "4,900 other hosts had 5 sessions together.");
  await page.fill("#host-filter", "H77");
  assert.deepEqual(await names(), ["h77.example"]);
});

test("sessions by host are those of the last day as soon as these are known", async () => {
  const { page, player, complaints } = await watch(document_());
  const heads = () => page.locator("#hosts th").allInnerTexts();
  const names = () => page.locator("#hosts td.head").allInnerTexts();
  const row = (n) => page.locator("#hosts tbody tr").nth(n).locator("td").allInnerTexts();
  const what = () => text(page, "#hosts-what");
  assert.equal(await what(), "Sessions since the start at 11:04:11. Statistics of the last day: " +
    "they are switched off (--statistics none).");
  assert.deepEqual(await names(), ["www.example", "shop.example", "blog.example"]);
  assert.deepEqual(await row(0), ["www.example", "1,200", "74 %", "4", "30 s"]);
  assert.equal(await page.locator("#hours-block, #visitors-block").filter({ visible: true }).count(), 0);

  const reading = { state: "reading", rows_read: 1234, as_of: NOON };
  player.change({ at: NOON + 1000, statistics: reading });
  await until("reading", what, (said) => said === "Reading the rows of the last day: 1,234 rows " +
    "so far. Until then, sessions since the start at 11:04:11.");

  player.change({ at: NOON + 2000, ...lastDay(3, { visitors: false }) });
  await until("counting", what, (said) => said === "Sessions that ended since 2026-11-25 12:00:00, " +
    "up to the watermark (12:03:55). Late events correct them.");
  assert.deepEqual(await names(), ["all hosts", "h0.example", "h1.example", "h2.example"]);
  assert.deepEqual(await row(1), ["h0.example", "20,000", "1,000", "4", "17", "3 min 20 s",
    "16 min 23 s", "50 %"]);
  assert.equal(await page.locator("#hours tbody tr").count(), 25);
  assert.deepEqual((await page.locator("#hours td.head").allInnerTexts()).slice(0, 2),
    ["12:00", "11:00"]);
  assert.match(await text(page, "#visitors"), /visitors are not counted/);
  assert.ok(!(await heads()).includes("visitors"));

  player.change({ at: NOON + 3000, ...lastDay(10_000) });
  await until("visitors", heads, (shown) => shown.includes("visitors"));
  assert.equal((await names()).length, 11);
  const left = lastDay(10_000).statistics_hosts.rows.slice(10);
  const sessions = left.reduce((sum, { day }) => sum + day.sessions, 5).toLocaleString("en");
  assert.equal(await text(page, "#host-rest"), `9,990 other hosts had ${sessions} sessions ` +
    "together. No more than 10,000 hosts are told apart.");
  for (const block of ["hosts", "hours", "visitors"])
    assert.equal(await text(page, `#h-${block} ~ .when`), "as of 12:04:10");
  assert.deepEqual(await page.locator("#visitors tbody tr").nth(1).locator("td").allInnerTexts(),
    ["198.51.100.1", "h0.example", "39"]);
  await page.click("#host-all");
  assert.equal((await names()).length, 21);
  await page.fill("#host-filter", "H19");
  assert.deepEqual(await names(), ["h19.example"]);

  const { statistics } = lastDay(3);
  const at_start = { ...statistics, rows_from: NOON - 7_200_000, visitors_from: NOON - 3_600_000, broken: 1 };
  player.change({ at: NOON + 4000, statistics: at_start });
  await until("what is missing", what, (said) =>
    /ended since 10:04:11/.test(said) && /reading the table failed at the start/.test(said) &&
    /Too many visitors: counted since 11:04:11/.test(said) && /This is a bug/.test(said));
  assert.deepEqual(complaints, []);
});

test("the balance says in words and colour whether it holds", async () => {
  const { page, player } = await watch(document_());
  const tone = () => page.getAttribute("#balance-verdict", "data-tone");
  assert.equal(await text(page, "#balance-verdict"), "Equal: every record is accounted for");
  assert.equal(await tone(), "good");
  assert.equal(await text(page, "#balance-asof"), "as of 12:04:09");
  const { balance } = document_();
  player.change({ at: NOON + 1000, balance: { ...balance, difference: 3, ok: false } });
  await until(
    "not equal",
    () => text(page, "#balance-verdict"),
    (said) => said === "Not equal: 3 records unaccounted for",
  );
  assert.equal(await tone(), "trouble");
});

test("the proof says through when, by which audit, and how many differences", async () => {
  const { page, player } = await watch(document_());
  assert.equal(await text(page, "#proof-verdict"), "– no audit has been recorded");
  assert.equal(await text(page, "#proof-asof"), "as of 12:04:10");
  player.change({
    at: NOON + 1000,
    proof: { verified_through: NOON - 240_000, audited_at: NOON - 60_000, differences: 0 },
  });
  await until(
    "verified",
    () => text(page, "#proof-verdict"),
    (said) => said === "Verified through 12:00:11 by the audit of 12:03:11: 0 differences",
  );
  assert.equal(await page.getAttribute("#proof-verdict", "data-tone"), "good");
  for (const [differences, words] of [
    [1, "1 difference up to 12:00:11: `sessionizer audit` shows it"],
    [2, "2 differences up to 12:00:11: `sessionizer audit` shows them"],
  ]) {
    const proof = { ...player.document.proof, differences };
    player.change({ at: NOON + 2000, proof });
    await until(
      "what to do",
      () => text(page, "#proof-verdict"),
      (said) => said === `The audit of 12:03:11 found ${words}`,
    );
    assert.equal(await page.getAttribute("#proof-verdict", "data-tone"), "trouble");
  }
});

test("anomalies are shown only by a job that looks for them", async () => {
  const { page, player } = await watch(document_());
  assert.equal(await page.locator("#anomalies-block").isVisible(), false);
  assert.match(await text(page, "#tiles"), /Dead letters/);
  player.change({
    at: NOON + 1000,
    anomalies: {
      rows: [
        {
          kind: "burst",
          host: "a",
          subject: "b",
          at: NOON,
          reason: "412 events in 31 s",
          sql: "select 1",
        },
      ],
    },
    tiles: { ...document_().tiles, anomalies: 1 },
  });
  await until(
    "shown",
    () => text(page, "#tiles"),
    (tiles) => /Anomalies\s+1/.test(tiles),
  );
  assert.match(await text(page, "#anomalies"), /412 events in 31 s/);
  assert.equal(await page.locator("#anomalies-missing").isVisible(), false);
  player.change({
    at: NOON + 2000,
    anomalies: { rows: [], rows_refused: 3, hosts_limit: 1000, visitors_from: NOON - 3600_000 },
  });
  await until(
    "what is missing is said",
    () => text(page, "#anomalies-missing"),
    (said) =>
      /1,000 hosts are looked at: 3 sessions of others were not/.test(said) &&
      /too many visitors: .* from 11:\d\d:\d\d on/.test(said),
  );
});

test("reasons are whole, and a query is six lines until it has the focus", async () => {
  const reason = "412 events in 31 s; ".repeat(20).trim();
  const anomaly = { kind: "burst", host: "a", subject: "2001:db8:1234:5678:9abc:def0:1234:5678" };
  const sql = (host) => `select * from public.s where host = '${host}'`;
  const anomalies = {
    rows: [
      { ...anomaly, at: NOON, reason, sql: sql("a") },
      { ...anomaly, at: NOON, reason, sql: sql("x".repeat(2600)) },
    ],
  };
  const letters = document_().dead_letters;
  letters.rows[0].examples[0].detail = reason;
  for (const width of [360, 1280]) {
    const { page } = await watch(document_({ anomalies, dead_letters: letters }), {
      viewport: { width, height: 800 },
    });
    const lines = (selector, at = 0) =>
      page.locator(selector).nth(at).evaluate((node) => {
        const line = parseFloat(getComputedStyle(node).lineHeight);
        return { shown: node.clientHeight / line, all: node.scrollHeight / line };
      });
    for (const selector of ["#anomalies td[data-name=reason] bdi", "#dead-letters td[data-name=meaning] bdi"]) {
      const { shown, all } = await lines(selector);
      assert.ok(shown > 2 && shown >= all - 0.1, `${selector}: ${shown} of ${all}`);
    }
    const query = "#anomalies td:last-child bdi";
    const { shown, all } = await lines(query, 1);
    assert.ok(shown < 6.5 && all > 7, `${shown} of ${all}`);
    assert.equal(await page.locator(query).nth(1).getAttribute("title"), sql("x".repeat(2600)));
    assert.equal(await page.locator(query).nth(0).getAttribute("tabindex"), null);
    await page.locator(query).nth(1).focus();
    const open = await lines(query, 1);
    assert.ok(open.shown >= open.all - 0.1, `${open.shown} of ${open.all}`);
    assert.ok((await overflow(page)) <= 0, `${width} px wide`);
  }
});

test("times, addresses, and figures with their unit stay on one line", async () => {
  const day = 86_400_000;
  const hosts = ["zachwilson.techcreator.io", `${"a".repeat(249)}.com`];
  const ips = ["79.214.178.114", "2001:db8:1234:5678:9abc:def0:1234:5678"];
  const rows = hosts.map((host, i) => ({ ...session(i, NOON - day, host), ip: ips[i] }));
  const some = partitions(1);
  const state_text = "waits for a transaction that nobody has ended for a very long time now";
  some.rows[0] = { ...some.rows[0], holds_back: true, state_text, since: NOON };
  for (const width of [360, 1280]) {
    const { page } = await watch(
      document_({ ...lastDay(3), latest: { keep: 50, rows }, partitions: some }),
      { viewport: { width, height: 800 } },
    );
    const broken = await page.locator(
      "#hosts td.number > *, #latest td.number > *, #partitions td:is(.head, .number) > *" +
        (width === 1280 ? ", #latest td.head bdi" : ""),
    ).evaluateAll((nodes) =>
      nodes
        .filter((node) => {
          const range = document.createRange();
          range.selectNodeContents(node);
          return new Set([...range.getClientRects()].map(({ top }) => Math.round(top))).size > 1;
        })
        .map((node) => node.textContent),
    );
    assert.deepEqual(broken, [], `${width} px wide`);
    assert.ok((await overflow(page)) <= 0, `${width} px wide`);
  }
});

test("the crew of a cluster is that of each process", async () => {
  const { job } = document_();
  const { page } = await watch(document_({ job: { ...job, processes: 2, workers: 1 } }));
  assert.match(await text(page, "#crew"), /^2 processes, 1 worker each, running for 1 h$/);
});

test("a payload is cut at 200 characters", async () => {
  const payload = "x".repeat(5000);
  const { page } = await watch(
    document_({
      dead_letters: {
        since: NOON,
        total: 1,
        rows: [
          {
            reason: "bad_json",
            count: 1,
            last_at: NOON,
            examples: [
              { at: NOON, topic: "t", partition: 0, offset: 7, detail: "x", payload, cut: false },
            ],
          },
        ],
      },
    }),
  );
  assert.equal(
    await text(page, "#dead-letters td.foreign:last-child"),
    `t/0 offset 7: ${"x".repeat(199)}…`,
  );
});

test("each chart is an image with its last value in words, and has a table behind it", async () => {
  const { page, player } = await watch(document_());
  for (const id of ["rates", "lag", "watermark", "durable"]) {
    assert.equal(await page.getAttribute(`#chart-${id}`, "role"), "img");
    assert.match(
      await page.getAttribute(`#chart-${id}`, "aria-label"),
      /[0-9.,]+( s|\/s) at 12:04:11/,
    );
  }
  player.change({ at: NOON + 1000, history: { points: [[NOON + 1000, 5, 6, 77, 8, 9]] } });
  await until(
    "label",
    () => page.getAttribute("#chart-lag", "aria-label"),
    (label) => label.includes("1 min 17 s at 12:04:12"),
  );
  const figure = page.locator("figure").nth(1);
  await figure.locator("summary").focus();
  await page.keyboard.press("Enter");
  await until(
    "table",
    () => figure.locator("tbody tr").count(),
    (n) => n >= 60,
  );
  assert.match(await figure.locator("tbody tr").first().innerText(), /12:04:12\s+1 min 17 s/);
});

test("a gap is a gap in what is drawn, and a restart is a line", async () => {
  const doc = document_({}, { minutes: 15 });
  doc.history.points = doc.history.points
    .filter((_, i) => i < 300 || i > 600)
    .map((point) => [point[0], 5000, 500, 5, 15, 5]);
  doc.marks.rows = [{ at: NOON - 450_000, kind: "started", text: "started" }];
  const { page } = await watch(doc);
  // Columns of the plot with the colour of the line, and those with a line from top to bottom.
  const drawn = () =>
    page.evaluate(() => {
      const canvas = document.querySelector("#chart-lag canvas");
      const { width, height } = canvas;
      const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
      const probe = document.createElement("canvas").getContext("2d");
      const rgb = (name) => {
        probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name);
        probe.fillRect(0, 0, 1, 1);
        return [...probe.getImageData(0, 0, 1, 1).data].slice(0, 3);
      };
      const near = (x, y, [r, g, b]) => {
        const i = (y * width + x) * 4;
        return (
          data[i + 3] > 100 &&
          Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b) < 60
        );
      };
      const [line, start] = [rgb("--line-3"), rgb("--mark-start")];
      const columns = { line: [], start: [] };
      for (let x = 50; x < width - 50; x++) {
        let [a, b] = [0, 0];
        for (let y = 0; y < height; y++) {
          a += near(x, y, line);
          b += near(x, y, start);
        }
        if (a) columns.line.push(x / width);
        if (b > height / 2) columns.start.push(x / width);
      }
      return columns;
    });
  const { line, start } = await until("drawn", drawn, (columns) => columns.line.length > 50);
  const inside = line.filter((x) => x > 0.42 && x < 0.58);
  assert.deepEqual(inside, [], "nothing is drawn in the gap");
  assert.ok(line.some((x) => x < 0.35) && line.some((x) => x > 0.68));
  assert.ok(start.length >= 1 && start.length <= 3 && Math.abs(start[0] - 0.5) < 0.05, `${start}`);
});

test("everything can be reached by keyboard", async () => {
  const many = document_({ partitions: partitions(100) });
  many.hosts.rows = Array.from({ length: 30 }, (_, i) => ({
    host: `h${i}`,
    sessions: 9,
    events: 9,
    duration_ms: 9,
  }));
  const { page } = await watch(many);
  const reached = [];
  for (let i = 0; i < 14; i++) {
    await page.keyboard.press("Tab");
    reached.push(
      await page.evaluate(() => {
        const { id, tagName, textContent } = document.activeElement;
        const { outlineStyle } = getComputedStyle(document.activeElement);
        return { what: id || `${tagName} ${textContent}`.trim(), seen: outlineStyle !== "none" };
      }),
    );
  }
  assert.deepEqual(reached.map(({ what }) => what).slice(0, 11), [
    "A Skip to the figures",
    "SUMMARY Table",
    "SUMMARY Table",
    "SUMMARY Table",
    "SUMMARY Table",
    "partition-filter",
    "host-filter",
    "host-all",
    "A status (JSON)",
    "A metrics",
    "A readiness",
  ]);
  assert.ok(
    reached.slice(0, 11).every(({ seen }) => seen),
    JSON.stringify(reached),
  );
});

test("nothing moves for those who asked for it", async () => {
  const { page } = await watch(document_(), { reducedMotion: "reduce" });
  const moving = await page.evaluate(
    () =>
      [...document.querySelectorAll("*")].filter((node) => {
        const { transitionDuration, animationName } = getComputedStyle(node);
        return animationName !== "none" || /[1-9]/.test(transitionDuration);
      }).length,
  );
  assert.equal(moving, 0);
});

const LOOKS = {
  "up to date": () => document_(),
  "the last day": () => document_(lastDay(30)),
  "everything strange": hostile,
  "held back": () =>
    document_({
      sentence: {
        state: "held_back",
        tone: "trouble",
        text: "held back by web-events/0 since 12:03",
        since: NOON,
        cause: null,
      },
      partitions: {
        ...partitions(100),
        rows: partitions(100).rows.map((row, i) => ({ ...row, holds_back: i === 0 })),
      },
      balance: { ...document_().balance, ok: false, difference: 2 },
      marks: {
        rows: ["started", "kafka_lost", "kafka_back"].map((kind, i) => ({
          at: NOON - 1000 * i,
          kind,
          text: kind,
        })),
      },
      peers: {
        rows: [0, 1].map((process) => ({ process, workers: 2, seen_at: NOON, text: null })),
      },
    }),
};

for (const colorScheme of ["light", "dark"]) {
  for (const width of [360, 1280]) {
    test(`axe finds nothing, and nothing sticks out: ${colorScheme}, ${width} px`, async () => {
      for (const [name, make] of Object.entries(LOOKS)) {
        const { page } = await watch(make(), {
          colorScheme,
          viewport: { width, height: 800 },
          reducedMotion: "reduce",
        });
        for (const summary of await page.locator("summary").all()) await summary.click();
        assert.deepEqual(await findings(page), [], name);
        assert.ok((await overflow(page)) <= 0, name);
        await until(
          "stale",
          () => page.title(),
          (title) => title.startsWith("lost the job"),
        );
        assert.deepEqual(await findings(page), [], `${name}, stale`);
      }
    });
  }
}

test("a stream that is refused is replaced by asking now and then", async () => {
  const player = await new Player().start();
  opened.push(() => player.stop());
  player.refusesStreams = true;
  player.document = document_();
  const { page, context } = await open(browser, player.url);
  opened.push(() => context.close());
  await until(
    "polled",
    () => page.title(),
    (title) => title.startsWith("up to date"),
  );
  player.document = document_({}, { at: NOON + 60_000 });
  await until(
    "polled again",
    () => text(page, ".asof"),
    (as) => as === "as of 12:05:11",
  );
  assert.doesNotMatch(await page.title(), /lost/);
});

test("half a message is no message: the page connects again", async () => {
  const { page, player } = await watch(document_());
  player.document = document_({}, { at: NOON + 60_000 });
  for (const stream of player.streams) stream.write('event: change\ndata: {"at": 17\n\n');
  await until(
    "connected again",
    () => text(page, ".asof"),
    (as) => as === "as of 12:05:11",
  );
});

test("a second costs the page little", async () => {
  const { page, player, context } = await watch(document_({ partitions: partitions(64) }));
  const client = await context.newCDPSession(page);
  await client.send("Performance.enable", { timeDomain: "threadTicks" });
  const spent = async () => {
    const { metrics } = await client.send("Performance.getMetrics");
    return (
      metrics.find(({ name }) => name === "ThreadTime")?.value ??
      metrics.find(({ name }) => name === "TaskDuration").value
    );
  };
  const seconds = 20;
  const begin = await spent();
  for (let i = 1; i <= seconds; i++) {
    const at = NOON + i * 1000;
    player.change(
      tick(at, {
        tiles: { ...document_().tiles, events_per_s: 10000 + i },
        latest: { add: [session(i, at), session(i + 1, at)] },
      }),
    );
    await page.evaluate(
      () => new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn))),
    );
  }
  const each = ((await spent()) - begin) / seconds;
  console.log(`# ${(each * 1000).toFixed(1)} ms of the main thread for each second of changes`);
  assert.ok(each < 0.1, `${each} s`);
});

test("nothing sticks out at the widths in between", async () => {
  for (const [name, make] of Object.entries(LOOKS)) {
    const { page } = await watch(make(), { viewport: { width: 480, height: 800 } });
    for (const summary of await page.locator("summary").all()) await summary.click();
    for (const width of [480, 640, 800, 939, 940, 1079, 1080]) {
      await page.setViewportSize({ width, height: 800 });
      assert.ok((await overflow(page)) <= 0, `${name}, ${width} px`);
    }
  }
});

test("figures that are not those of the whole job say so", async () => {
  const said = "1 of 2 processes have reported their figures so far.";
  const doc = document_();
  const { page } = await watch({ ...doc, job: { ...doc.job, processes: 2, scope_text: said } });
  assert.equal(await text(page, "#scope"), said);
  const { page: whole } = await watch(document_());
  assert.equal(await whole.locator("#scope").isVisible(), false);
});
