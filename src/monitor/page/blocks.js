// What each block of the page shows, out of the document.

import { attribute, byId, children, el, hide, text } from "./dom.js";
import { UNKNOWN, bytes, clock, count, cut, duration, known, local, moment, percent, plural, short, whole } from "./format.js";
import { why } from "./model.js";
import { Table } from "./tables.js";

const PARTITIONS_SHOWN = 20;
const PARTITIONS_ALL = 64;
const HOSTS_SHOWN = 10;
const LATEST_SHOWN = 10;
const PAYLOAD_SHOWN = 200;

/** A figure, or "–" with its reason as what is shown on hovering. */
const or = (block, field, say) =>
  known(block?.[field]) ? say(block[field]) : { text: UNKNOWN, title: why(block, field) };

const ago = (now, at) => (known(at) ? `${whole((now - at) / 1000)} ago` : UNKNOWN);

// ---- header and tiles ----------------------------------------------------------------------

export function showJob(doc, now) {
  const { job } = doc;
  text(byId("job"), job.name);
  text(byId("route"), `${job.topics.join(", ")} → ${job.table}`);
  const crew = job.processes > 1 ? `${job.processes} processes, ` : "";
  text(byId("crew"), `${crew}${plural(job.workers, "worker")}, running for ${whole((now - job.started_at) / 1000)}`);
  text(byId("version"), `sessionizer ${doc.version}${doc.revision ? ` (${doc.revision})` : ""}`);
  const part = job.scope === "process" && job.processes > 1;
  text(byId("scope"), part ? `Figures of process ${job.process} of ${job.processes} alone: the page of process 0 is of the whole job.` : "");
  hide(byId("scope"), !part);
}

const tile = (name, value, below, title) => ({ name, value, below, title });

function tiles(doc, model) {
  const t = doc.tiles;
  const value = (field, say) => (known(t[field]) ? say(t[field]) : UNKNOWN);
  const below = (field, words) => (known(t[field]) ? words() : why(t, field));
  const lag = () => {
    const records = known(t.lag_records) ? `${plural(t.lag_records, "record")} to read` : why(t, "lag_records");
    const trend = model.trend(3);
    if (known(t.left_s) && t.left_s >= 3) return `${records}, ${whole(t.left_s)} left`;
    return trend ? `${records}, ${trend}` : records;
  };
  const complete = known(t.durable_watermark)
    ? `the table is complete up to ${moment(t.durable_watermark, doc.at)}`
    : why(t, "durable_watermark");
  const memory = known(t.memory_used) && known(t.memory_limit)
    ? `${bytes(t.memory_used)} of ${bytes(t.memory_limit)} in flight` : "";
  const late = known(t.late_sessions) && t.late_sessions > 0 ? `, ${count(t.late_sessions)} late` : "";
  return [
    tile("Events/s", value("events_per_s", short), below("events_per_s", () => `${count(t.records)} read since the start`)),
    tile("Sessions/s", value("sessions_per_s", short), below("sessions_per_s", () => `${plural(t.rows, "row")} since the start${late}`)),
    tile("Lag", value("lag_s", duration), below("lag_s", lag)),
    tile("Durable delay", value("durable_delay_s", duration), below("durable_delay_s", () => complete)),
    tile("Open sessions", value("open_sessions", count), below("open_sessions", () => memory)),
    known(t.anomalies)
      ? tile("Anomalies", count(t.anomalies), "raised now")
      : tile("Dead letters", value("dead_letters", count),
        below("dead_letters", () => (t.dead_letters ? `${percent(t.dead_letters, t.records)} of what was read` : "since the start"))),
  ];
}

export function showTiles(doc, model) {
  const all = tiles(doc, model);
  const place = byId("tiles");
  children(place, all.length, () => el("div", { class: "tile" }, el("dt"), el("dd", { class: "value" }), el("dd", { class: "below" })));
  all.forEach(({ name, value, below }, i) => {
    const [dt, dd, small] = place.children[i].children;
    text(dt, name);
    text(dd, value);
    text(small, below);
  });
}

// ---- partitions ----------------------------------------------------------------------------

const STATES = {
  reading: "reading", paused: "waits for slower ones", idle: "idle", ended: "ended", retired: "retired",
  replaying: "reading again", waiting: "waiting", held_up: "open transaction",
};

export class Partitions {
  constructor() {
    this.table = new Table(byId("partitions"), "Partitions", [
      { name: "partition", head: true, cell: (row) => row.id },
      { name: "state", cell: (row) => this.state(row) },
      { name: "lag", number: true, cell: (row) => or(row, "lag_s", duration) },
      { name: "records to read", number: true, cell: (row) => or(row, "lag_records", count) },
      { name: "records/s", number: true, cell: (row) => or(row, "rate", short) },
      { name: "promise", number: true, cell: (row) => this.promise(row) },
      { name: "offset", number: true, cell: (row) => or(row, "offset", count) },
      { name: "end", number: true, cell: (row) => or(row, "end", count) },
    ]);
    byId("partition-filter").addEventListener("input", () => this.last && this.show(...this.last));
  }

  state(row) {
    const words = row.state_text || STATES[row.state] || row.state || UNKNOWN;
    const since = known(row.since) ? ` since ${moment(row.since, this.now)}` : "";
    const kind = row.holds_back ? "holds-back" : row.state === "held_up" || row.state === "waiting" ? "held" : null;
    return { text: `${row.holds_back ? "holds back · " : ""}${words}${since}`, kind };
  }

  promise(row) {
    if (!known(row.promise)) return { text: UNKNOWN, title: why(row, "promise") };
    return { text: ago(this.now, row.promise), title: `${moment(row.promise, this.now)} UTC: no on-time event is older` };
  }

  show(doc, now) {
    this.last = [doc, now];
    this.now = now;
    const { rows = [], total = rows.length } = doc.partitions ?? {};
    const wanted = byId("partition-filter").value.trim().toLowerCase();
    const fits = (row) => `${row.id} ${this.state(row).text}`.toLowerCase().includes(wanted);
    const found = wanted ? rows.filter(fits) : rows;
    const shown = rows.length > PARTITIONS_ALL ? found.slice(0, PARTITIONS_SHOWN) : found;
    hide(byId("partition-tools"), rows.length <= PARTITIONS_ALL);
    const of = wanted ? `${count(found.length)} found` : `${count(total)} in all`;
    const sent = total > rows.length ? `, of which the first ${count(rows.length)} can be searched` : "";
    text(byId("partition-count"), `${count(shown.length)} shown, the worst first; ${of}${sent}`);
    this.table.show(shown.map((row) => ({ ...row, kind: row.holds_back ? "holds-back" : null })),
      wanted ? `No partition fits "${wanted}".` : doc.partitions?.why?.rows ?? "No partition is known yet.");
  }
}

// ---- hosts and sessions --------------------------------------------------------------------

export class Hosts {
  constructor() {
    this.table = new Table(byId("hosts"), "Hosts", [
      { name: "host", head: true, foreign: true, cell: (row) => ({ text: row.host, title: row.host }) },
      { name: "sessions", number: true, cell: (row) => ({ text: count(row.sessions), share: row.share }) },
      { name: "share", number: true, cell: (row) => percent(row.sessions, row.of) },
      { name: "events each", number: true, cell: (row) => (row.sessions > 0 ? short(row.events / row.sessions) : UNKNOWN) },
      { name: "length", number: true, cell: (row) => (row.sessions > 0 ? whole(row.duration_ms / row.sessions / 1000) : UNKNOWN) },
    ]);
    this.all = false;
    byId("host-filter").addEventListener("input", () => this.last && this.show(this.last));
    byId("host-all").addEventListener("click", () => {
      this.all = !this.all;
      if (this.last) this.show(this.last);
    });
  }

  show(doc) {
    this.last = doc;
    const { rows = [], other, known: seen, since, limit } = doc.hosts ?? {};
    const of = rows.reduce((sum, row) => sum + row.sessions, 0) + (other?.sessions ?? 0);
    const most = Math.max(1, ...rows.map((row) => row.sessions));
    const wanted = byId("host-filter").value.trim().toLowerCase();
    const found = wanted ? rows.filter((row) => row.host.toLowerCase().includes(wanted)) : rows;
    const shown = this.all || wanted ? found : found.slice(0, HOSTS_SHOWN);
    hide(byId("host-tools"), rows.length <= HOSTS_SHOWN);
    hide(byId("host-all"), Boolean(wanted));
    text(byId("host-all"), this.all ? `Show ${HOSTS_SHOWN}` : `Show ${count(rows.length)}`);
    this.table.show(shown.map((row) => ({ ...row, of, share: Math.max(0, row.sessions) / most })),
      wanted ? `None of these ${count(rows.length)} hosts fits "${wanted}".` : doc.hosts?.why?.rows ?? "No session has closed yet.");
    const rest = other?.hosts > 0
      ? ` ${plural(other.hosts, "other host")} had ${plural(other.sessions, "session")} together.` : "";
    const full = known(limit) && seen >= limit ? ` No more than ${count(limit)} hosts are told apart.` : "";
    text(byId("host-rest"), rows.length ? `Sessions since the start at ${moment(since, doc.at)}.${rest}${full}` : "");
  }
}

const CHANGES = {
  added: "",
  merged: { text: "merged", title: "a late event has changed this row" },
  removed: { text: "joined", title: "a late event has joined this row with another" },
};

export class Latest {
  constructor() {
    this.table = new Table(byId("latest"), "Latest sessions", [
      { name: "visitor", head: true, foreign: true, cell: (row) => ({ text: row.ip, title: row.ip }) },
      { name: "host", foreign: true, cell: (row) => ({ text: row.host, title: row.host }) },
      { name: "began", number: true, cell: (row) => moment(row.start, this.now) },
      { name: "length", number: true, cell: (row) => whole((row.end - row.start) / 1000) },
      { name: "events", number: true, cell: (row) => count(row.events) },
      { name: "note", cell: (row) => CHANGES[row.change] ?? row.change },
    ]);
    // Rows that run away cannot be read.
    this.held = false;
    const place = byId("latest");
    const hold = (held) => () => {
      this.held = held;
      hide(byId("latest-held"), !held);
      if (!held && this.last) this.show(...this.last);
    };
    place.addEventListener("pointerenter", hold(true));
    place.addEventListener("pointerleave", hold(false));
  }

  show(doc, now) {
    this.last = [doc, now];
    if (this.held) return;
    this.now = now;
    const rows = doc.latest?.rows ?? [];
    this.table.show(rows.slice(0, LATEST_SHOWN).map((row) => ({ ...row, kind: row.change })),
      doc.latest?.why?.rows ?? "No session has closed yet.");
    hide(byId("masked"), !doc.job.masked);
  }
}

// ---- anomalies and dead letters ------------------------------------------------------------

export class Anomalies {
  constructor() {
    this.table = new Table(byId("anomalies"), "Anomalies", [
      { name: "kind", head: true, cell: (row) => row.kind },
      { name: "host", foreign: true, cell: (row) => row.host },
      { name: "subject", foreign: true, cell: (row) => row.subject },
      { name: "at", number: true, cell: (row) => moment(row.at, this.now) },
      { name: "reason", foreign: true, cell: (row) => row.reason },
      { name: "look at it with", foreign: true, cell: (row) => row.sql },
    ]);
  }

  show(doc, now) {
    this.now = now;
    const rows = doc.anomalies?.rows;
    hide(byId("anomalies-block"), !Array.isArray(rows));
    if (Array.isArray(rows)) this.table.show(rows, "Nothing is unlike the host's own sessions.");
  }
}

const REASONS = {
  empty: "no payload", bad_json: "not one JSON object", no_ip: "no ip", no_host: "no host", no_time: "no event_time",
  bad_time: "event_time cannot be read", nul_in_key: "U+0000 in ip or host", key_too_long: "ip and host are too long",
  future: "event_time is in the future", late: "later than its session (--late drop)", row_refused: "the table refused the row",
};

export class DeadLetters {
  constructor() {
    this.table = new Table(byId("dead-letters"), "Dead letters", [
      { name: "reason", head: true, cell: (row) => ({ text: row.reason, title: REASONS[row.reason] }) },
      { name: "meaning", cell: (row) => REASONS[row.reason] ?? "" },
      { name: "records", number: true, cell: (row) => count(row.count) },
      { name: "last", number: true, cell: (row) => ago(this.now, row.last_at) },
      { name: "newest example", foreign: true, cell: (row) => this.example(row) },
    ]);
  }

  example(row) {
    const newest = row.examples?.[0];
    if (!newest) return { text: UNKNOWN, title: "no example is kept" };
    const place = known(newest.offset) ? `${newest.topic}/${newest.partition} offset ${count(newest.offset)}: ` : "";
    const payload = newest.payload ?? newest.why?.payload ?? "";
    const shown = cut(payload, PAYLOAD_SHOWN);
    const more = newest.cut && !shown.endsWith("…") ? "…" : "";
    return { text: place + shown + more, title: newest.detail ?? null };
  }

  show(doc, now) {
    this.now = now;
    const { rows = [], since } = doc.dead_letters ?? {};
    this.table.show(rows, doc.dead_letters?.why?.rows ?? `None since the start at ${moment(since, doc.at)}: every record became an event.`);
  }
}

// ---- balance and proof ---------------------------------------------------------------------

export function showBalance(doc) {
  const b = doc.balance ?? {};
  const parts = [["records", "read", ""], ["closed", "in closed sessions", "="], ["open", "in open sessions", "+"],
    ["dead", "dead letters", "+"], ["lost", "lost in Kafka", "+"]];
  const place = byId("balance");
  children(place, parts.length, () => el("div", {}, el("span", { class: "sign" }), el("b"), el("small")));
  parts.forEach(([field, name, sign], i) => {
    const [mark, figure, words] = place.children[i].children;
    text(mark, sign);
    text(figure, known(b[field]) ? count(b[field]) : UNKNOWN);
    attribute(figure, "title", known(b[field]) ? null : why(b, field));
    text(words, name);
  });
  const verdict = byId("balance-verdict");
  const equal = b.ok === true && b.difference === 0;
  attribute(verdict, "data-tone", !known(b.difference) ? "lost" : equal ? "good" : "trouble");
  text(verdict, !known(b.difference) ? `– ${why(b, "difference")}`
    : equal ? "Equal: every record is accounted for"
      : `Not equal: ${plural(Math.abs(b.difference), "record")} ${b.difference > 0 ? "unaccounted for" : "too many"}`);
  text(byId("balance-asof"), known(b.as_of) ? `as of ${moment(b.as_of, doc.at)}` : "");
}

export function showProof(doc) {
  const p = doc.proof ?? {};
  const verdict = byId("proof-verdict");
  const audited = known(p.differences) && known(p.audited_at);
  attribute(verdict, "data-tone", !audited ? "lost" : p.differences === 0 ? "good" : "trouble");
  text(verdict, !audited ? `– ${why(p, "audited_at")}`
    : `Verified through ${moment(p.verified_through, doc.at)} by the audit of ${moment(p.audited_at, doc.at)}: ` +
      plural(p.differences, "difference"));
  text(byId("proof-asof"), audited ? `as of ${moment(p.audited_at, doc.at)}` : "");
  hide(byId("proof-how"), audited);
}

// ---- writers and processes -----------------------------------------------------------------

export class Crew {
  constructor() {
    this.table = new Table(byId("writers"), "Writers", [
      { name: "writer", head: true, cell: (row) => count(row.writer) },
      { name: "state", cell: (row) => this.state(row) },
      { name: "waiting", number: true, cell: (row) => or(row, "waiting_epochs", (n) => plural(n, "epoch")) },
      { name: "commits", number: true, cell: (row) => or(row, "commits", count) },
      { name: "rows", number: true, cell: (row) => or(row, "rows", count) },
      { name: "last commit", number: true, cell: (row) => or(row, "last_commit_ms", (ms) => `${short(ms)} ms`) },
    ]);
    this.peers = new Table(byId("peers"), "Processes", [
      { name: "process", head: true, cell: (row) => count(row.process) },
      { name: "workers", number: true, cell: (row) => or(row, "workers", count) },
      { name: "last heard", number: true, cell: (row) => ago(this.now, row.seen_at) },
      { name: "note", foreign: true, cell: (row) => row.text ?? "" },
    ]);
  }

  state(row) {
    if (known(row.failing_since)) {
      return { text: `failing for ${whole((this.now - row.failing_since) / 1000)}: ${row.error ?? "no reason given"}`, kind: "held" };
    }
    const lasts = (this.now - row.committing_since) / 1000;
    return known(row.committing_since) && lasts >= 1 ? `committing for ${whole(lasts)}` : "ready";
  }

  show(doc, now) {
    this.now = now;
    this.table.show(doc.writers?.rows ?? [], doc.writers?.why?.rows ?? "No writer has started yet.");
    const peers = doc.peers?.rows ?? [];
    hide(byId("peers-block"), peers.length < 2);
    this.peers.show(peers, "");
  }
}

/** Every block says as of when. */
export function showTimes(at) {
  for (const node of document.querySelectorAll(".asof")) {
    text(node, `as of ${clock(at)}`);
    attribute(node, "title", local(at));
  }
}
