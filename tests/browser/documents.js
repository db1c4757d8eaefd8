// Documents as a job sends them, for the player.

export const NOON = Date.UTC(2026, 10, 26, 12, 4, 11);

const BLOCKS = ["all", "hosts", "hours", "minutes", "visitors"].map((of) => `statistics_${of}`);
const HOUR_MS = 3_600_000;

/** The statistics of the last day, of this many hosts; without visitors, they are not counted. */
export function lastDay(hosts, { at = NOON, visitors = true } = {}) {
  const from = Math.floor(at / HOUR_MS) * HOUR_MS - 24 * HOUR_MS;
  const summary = (sessions) => ({
    sessions,
    events: sessions * 4,
    duration_ms: sessions * 200_000,
    singles: Math.floor(sessions / 2),
    events_median: [2, 2],
    events_p95: [16, 17],
    duration_median_ms: [57_344, 65_535],
    duration_p95_ms: [917_504, 983_039],
  });
  const line = (host, sessions) => ({
    host,
    day: summary(sessions),
    hour: summary(Math.floor(sessions / 20)),
    minute: { sessions: 1, events: 4, duration_ms: 200_000 },
    visitors: visitors ? Math.floor(sessions / 2) : null,
  });
  const rows = Array.from({ length: hosts }, (_, i) =>
    line(`h${i}.example`, Math.max(1, Math.floor(20_000 / (i + 1)))),
  );
  const sum = rows.reduce((all, row) => all + row.day.sessions, 0);
  const hours = Array.from({ length: 25 }, (_, i) => {
    const of = summary(Math.floor((sum / 25) * (1 + Math.sin(i / 4) / 2)));
    return [from + i * HOUR_MS, ...Object.values(of)];
  });
  const busy = Array.from({ length: 10 }, (_, i) => ({
    host: "h0.example",
    ip: i ? `198.51.100.${i}` : "2001:db8:1234:5678:9abc:def0:1234:5678",
    sessions: 40 - i,
  }));
  return {
    statistics: {
      state: "counting",
      as_of: at - 1000,
      watermark: at - 16_000,
      from,
      rows_read: 12_000,
      rows_from: null,
      visitors_from: null,
      hosts,
      hosts_limit: 10_000,
      cells: 1000,
      visitors_kept: visitors ? 10_000 : 0,
      too_old: 0,
      broken: 0,
    },
    statistics_all: { rows: [line("", sum)] },
    statistics_hosts: {
      rows: rows.slice(0, 20),
      other: { hosts: Math.max(0, hosts - 20), sessions: hosts > 20 ? 5 : 0, events: 5 },
    },
    statistics_hours: { columns: ["at", ...Object.keys(summary(0))], rows: hours },
    statistics_minutes: {
      columns: ["at", "sessions", "events", "duration_ms"],
      rows: [[Math.floor(at / 60_000) * 60_000, 1, 4, 200_000]],
    },
    statistics_visitors: visitors
      ? { least: 5, rows: busy }
      : { rows: null, why: { rows: "visitors are not counted (--statistics hosts)" } },
  };
}

/** A job that is up to date, with `minutes` of history; `blocks` replaces blocks of it. */
export function document_(blocks = {}, { at = NOON, minutes = 15 } = {}) {
  const points = Array.from({ length: minutes * 60 }, (_, i) => {
    const t = i - minutes * 60 + 1;
    const wave = Math.sin(t / 40);
    return [
      at + t * 1000,
      9800 + 900 * wave,
      1180 + 90 * Math.sin(t / 25),
      0.3 + 0.2 * Math.abs(wave),
      16 + wave,
      0.4 + 0.1 * Math.abs(Math.cos(t / 17)),
    ];
  });
  const started_at = at - 3_600_000;
  return {
    schema: 1,
    at,
    run: "5f0c1d2e9a7b4c33",
    version: "0.1.0",
    revision: "1a2b3c4d5e",
    job: {
      name: "sessionizer",
      table: "public.sessionized_events",
      topics: ["web-events"],
      gap_ms: 300000,
      out_of_orderness_ms: 15000,
      idle_timeout_ms: 30000,
      epoch_ms: 1000,
      late: "merge",
      until_end: false,
      process: 0,
      processes: 1,
      workers: 2,
      writers: 1,
      scope: "job",
      scope_text: null,
      masked: false,
      started_at,
    },
    sentence: {
      state: "up_to_date",
      tone: "good",
      text: "up to date, 0.4 s behind",
      since: at - 60000,
      cause: null,
    },
    health: { live: { ok: true, text: null }, ready: { ok: true, text: null } },
    tiles: {
      events_per_s: 10012,
      records: 123456789,
      sessions_per_s: 1204.5,
      rows: 1203123,
      rows_removed: 12,
      late_sessions: 10,
      lag_s: 0.2,
      lag_records: 34,
      left_s: null,
      durable_delay_s: 0.41,
      durable_at: at - 500,
      watermark: at - 16000,
      durable_watermark: at - 17000,
      open_sessions: 123456,
      dead_letters: 3,
      memory_used: 1048576,
      memory_limit: 268435456,
      anomalies: null,
      why: {
        left_s: "nothing is left to read",
        anomalies: "this version does not look for anomalies",
      },
    },
    history: {
      every_ms: 1000,
      keep_ms: 900000,
      columns: ["at", "in", "out", "lag_s", "watermark_s", "durable_s"],
      points,
    },
    marks: { rows: [] },
    partitions: partitions(4, at),
    writers: {
      rows: [
        {
          writer: 0,
          process: 0,
          waiting_epochs: 0,
          waiting_rows: 0,
          committing_since: null,
          failing_since: null,
          error: null,
          durable_epoch: at - 1000,
          commits: 812,
          rows: 1203123,
          last_commit_ms: 12.1,
        },
      ],
    },
    hosts: {
      since: started_at,
      known: 3,
      limit: 10000,
      rows: [
        { host: "www.example", sessions: 1200, events: 4800, duration_ms: 36000000 },
        { host: "shop.example", sessions: 411, events: 1650, duration_ms: 9900000 },
        { host: "blog.example", sessions: 12, events: 13, duration_ms: 39000 },
      ],
      other: { hosts: 0, sessions: 0, events: 0, duration_ms: 0 },
    },
    statistics: {
      state: null,
      as_of: null,
      why: { state: "they are switched off (--statistics none)" },
    },
    ...Object.fromEntries(BLOCKS.map((block) => [block, { rows: null }])),
    latest: { keep: 50, rows: Array.from({ length: 12 }, (_, i) => session(i, at)) },
    dead_letters: {
      since: started_at,
      total: 3,
      rows: [
        {
          reason: "bad_json",
          count: 3,
          last_at: at - 4000,
          examples: [
            {
              at: at - 4000,
              topic: "web-events",
              partition: 3,
              offset: 123455,
              detail: "expected value at column 1",
              payload: "not json",
              cut: false,
            },
          ],
        },
      ],
    },
    balance: {
      as_of: at - 2000,
      records: 123456000,
      closed: 100000000,
      open: 23455997,
      dead: 3,
      lost: 0,
      difference: 0,
      ok: true,
      read_at: at - 900,
    },
    proof: {
      verified_through: null,
      audited_at: null,
      differences: null,
      why: {
        verified_through: "no audit has been recorded",
        audited_at: "no audit has been recorded",
        differences: "no audit has been recorded",
      },
    },
    anomalies: { rows: null, why: { rows: "this version does not look for anomalies" } },
    peers: { rows: [{ process: 0, workers: 2, seen_at: at, text: null }] },
    ...blocks,
  };
}

export function partitions(total, at = NOON) {
  const rows = Array.from({ length: total }, (_, number) => ({
    id: `web-events/${number}`,
    topic: "web-events",
    number,
    offset: 123456 + number,
    end: 123490 + number,
    lag_records: 34,
    lag_s: 0.2,
    rate: 2503,
    promise: at - 16000,
    state: "reading",
    state_text: null,
    since: null,
    holds_back: false,
    process: 0,
  }));
  return { total, order: rows.map((row) => row.id), rows };
}

export function session(i, at = NOON, host = "shop.example") {
  const start = at - 700_000 - i * 1000;
  return {
    at: at - i * 100,
    ip: `98.41.179.${i}`,
    host,
    start,
    end: start + 300_000 + i * 7000,
    events: i + 1,
    change: i === 3 ? "merged" : "added",
  };
}

/** A change of a second later, at rest. */
export function tick(at, blocks = {}) {
  return { at, history: { points: [[at, 9900, 1200, 0.2, 16, 0.4]] }, ...blocks };
}
