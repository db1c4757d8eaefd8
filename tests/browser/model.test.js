// The parts of the page that know no browser: numbers, and what changes do to the document.

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  bytes,
  clock,
  count,
  cut,
  duration,
  hour,
  known,
  moment,
  percent,
  short,
  whole,
} from "../../src/monitor/page/format.js";
import { Model, why } from "../../src/monitor/page/model.js";
import { NOON, document_, session, tick } from "./documents.js";

test("whatever is not a number is a dash", () => {
  for (const odd of [null, undefined, NaN, Infinity, -Infinity, "12", {}]) {
    assert.equal(known(odd), false);
    for (const say of [count, short, duration, whole, bytes, clock, moment])
      assert.equal(say(odd), "–");
    assert.equal(percent(odd, 1), "–");
    assert.equal(percent(1, odd), "–");
  }
  assert.equal(clock(9e15), "–");
  assert.equal(percent(1, 0), "–");
});

test("numbers and durations read like those of the status line", () => {
  assert.deepEqual([0, 1, 999, 1000, 1234567].map(count), ["0", "1", "999", "1,000", "1,234,567"]);
  assert.deepEqual([0.04, 0.44, 12, 200, 4000, 11100, 266400].map(duration), [
    "< 0.1 s",
    "0.4 s",
    "12 s",
    "3 min 20 s",
    "1 h 6 min",
    "3 h 5 min",
    "3 d 2 h",
  ]);
  assert.deepEqual([0, 0.04, 0.4, 12.3, 9876, 123456, 1234567, 2.5e9].map(short), [
    "0",
    "< 0.1",
    "0.4",
    "12",
    "9,876",
    "123 k",
    "1.2 M",
    "2.5 G",
  ]);
  assert.deepEqual([0, 1023, 1024, 12000, 64 << 20].map(bytes), [
    "0 B",
    "1023 B",
    "1 KiB",
    "12 KiB",
    "64 MiB",
  ]);
  assert.deepEqual(
    [
      [1, 3],
      [1, 10000],
      [0, 5],
      [5, 5],
    ].map(([a, b]) => percent(a, b)),
    ["33 %", "< 0.1 %", "0 %", "100 %"],
  );
  assert.equal(clock(NOON), "12:04:11");
  assert.equal(moment(NOON - 86_400_000, NOON), "2026-11-25 12:04:11");
  assert.equal(duration(0), "0 s");
  assert.equal(cut("a🙂b", 3), "a🙂b");
  assert.equal(cut("a🙂bc", 3), "a🙂…");
});

test("an hour has its date unless it is of today, whenever that is looked at", () => {
  for (const now of [0, 9, 12, 23].map((hours) => Date.UTC(2026, 10, 27, hours, 30))) {
    assert.equal(hour(Date.UTC(2026, 10, 27, 0), now), "00:00");
    assert.equal(hour(Date.UTC(2026, 10, 26, 23), now), "11-26 23:00");
  }
  assert.equal(hour(Date.UTC(2025, 11, 31, 23), Date.UTC(2026, 0, 1)), "12-31 23:00");
  assert.equal(hour(NaN, NOON), "–");
  assert.equal(hour(NOON, null), "–");
});

test("a change replaces blocks, and adds to those that grow", () => {
  const model = new Model();
  model.snapshot(document_({}, { minutes: 1 }));
  model.change({
    at: NOON + 1000,
    sentence: {
      state: "quiet",
      tone: "good",
      text: "no new events for 10 s",
      since: NOON,
      cause: null,
    },
    partitions: {
      rows: [
        { id: "web-events/2", lag_s: 9 },
        { id: "web-events/9", lag_s: 1 },
      ],
      order: ["web-events/2", "web-events/9"],
      total: 2,
    },
    latest: { add: [session(77, NOON)] },
    marks: { add: [{ at: NOON, kind: "kafka_lost", text: "Kafka: refused" }] },
    history: { points: [[NOON + 1000, 1, 2, 3, 4, 5]] },
    from_the_future: {},
  });
  assert.equal(model.doc.at, NOON + 1000);
  assert.equal(model.doc.sentence.state, "quiet");
  assert.equal(model.doc.from_the_future, undefined);
  assert.deepEqual(
    model.doc.partitions.rows.map((row) => [row.id, row.lag_s]),
    [
      ["web-events/2", 9],
      ["web-events/9", 1],
    ],
  );
  assert.equal(model.doc.partitions.total, 2);
  assert.equal(model.doc.latest.rows[0].ip, "98.41.179.77");
  assert.equal(model.doc.latest.rows.length, 13);
  assert.deepEqual(model.points.at(-1), [NOON + 1000, 1, 2, 3, 4, 5]);
  assert.equal(model.marks.length, 1);
});

test("rows without an order stay, and rows that no order names are gone", () => {
  const model = new Model();
  model.snapshot(document_());
  model.change({ at: NOON, partitions: { rows: [{ id: "web-events/1", lag_s: 5 }] } });
  assert.deepEqual(
    model.doc.partitions.rows.map((row) => row.lag_s),
    [0.2, 5, 0.2, 0.2],
  );
  model.change({ at: NOON, partitions: { rows: [], order: ["web-events/1"] } });
  assert.deepEqual(
    model.doc.partitions.rows.map((row) => row.id),
    ["web-events/1"],
  );
});

test("a gap in the history is a row of nulls, and not of zeros", () => {
  const model = new Model();
  model.snapshot(document_({}, { minutes: 1 }));
  model.change(tick(NOON + 3000));
  assert.equal(model.columns()[0].length, 61, "three seconds are no gap");
  model.change(tick(NOON + 7000));
  assert.deepEqual(
    model.columns().map((column) => column.at(-2)),
    [(NOON + 4000) / 1000, null, null, null, null, null],
  );
  model.change({ at: NOON + 8000, history: { points: [[NOON + 8000, 1, null, null, 16, null]] } });
  assert.deepEqual(
    model.columns().map((column) => column.at(-1)),
    [(NOON + 8000) / 1000, 1, null, null, 16, null],
  );
});

test("the page remembers what was before a restart, and marks it", () => {
  const model = new Model();
  model.snapshot(document_({}, { minutes: 5 }));
  const later = document_({ run: "another" }, { at: NOON + 60_000, minutes: 0 });
  later.history.points = [[NOON + 60_000, 1, 1, 1, 1, 1]];
  later.job.started_at = NOON + 55_000;
  model.snapshot(later);
  assert.equal(model.points.length, 301);
  assert.deepEqual(
    model.marks.map((mark) => [mark.at, mark.kind]),
    [[NOON + 55_000, "started"]],
  );
});

test("the job's own mark of a start is not doubled", () => {
  const model = new Model();
  model.snapshot(document_());
  const later = document_({ run: "another" }, { at: NOON + 60_000, minutes: 0 });
  later.job.started_at = NOON + 55_000;
  later.marks.rows = [{ at: NOON + 56_000, kind: "started", text: "started, replayed 41 epochs" }];
  model.snapshot(later);
  assert.deepEqual(
    model.marks.map((mark) => mark.text),
    ["started, replayed 41 epochs"],
  );
});

test("a snapshot of the same run fills what was missed", () => {
  const model = new Model();
  model.snapshot(document_());
  model.snapshot(document_({}, { at: NOON + 30_000 }));
  assert.equal(model.columns()[1].filter((value) => value === null).length, 0);
  assert.equal(model.points.length, 901);
});

test("a clock that is set back takes the later points with it", () => {
  const model = new Model();
  model.snapshot(document_({}, { minutes: 2 }));
  model.change(tick(NOON - 60_000));
  assert.equal(model.points.at(-1)[0], NOON - 60_000);
  assert.ok(model.points.every((point, i) => !i || point[0] > model.points[i - 1][0]));
});

test("what is older than the charts show is forgotten", () => {
  const model = new Model();
  model.snapshot(document_());
  model.mark(NOON - 899_000, "kafka_lost", "x");
  for (let i = 1; i <= 120; i++) model.change(tick(NOON + i * 1000));
  assert.ok(model.points.length <= 901);
  assert.deepEqual(model.marks, []);
});

test("what is unknown has a reason", () => {
  const { tiles } = document_();
  assert.equal(why(tiles, "left_s"), "nothing is left to read");
  assert.equal(why(undefined, "x"), "not known yet");
});

test("a trend is said only when it is known", () => {
  const model = new Model();
  model.snapshot(document_({}, { minutes: 0 }));
  assert.equal(model.trend(3), null);
  const say = (lag) => {
    model.points = [];
    for (let i = 0; i < 60; i++) model.addPoint([NOON + i * 1000, 0, 0, lag(i), 0, 0]);
    return model.trend(3);
  };
  assert.equal(
    say(() => 0.3),
    "steady",
  );
  assert.equal(
    say((i) => i),
    "growing",
  );
  assert.equal(
    say((i) => 600 - 5 * i),
    "falling",
  );
});
