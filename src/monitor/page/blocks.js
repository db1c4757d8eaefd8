// The blocks about now: the job, the tiles, partitions and the latest sessions.

import { attribute, byId, children, el, hide, text } from "./dom.js";
import { UNKNOWN, bytes, clock, count, duration, known, local } from "./format.js";
import { moment, percent, plural, short, whole } from "./format.js";
import { why } from "./model.js";
import { Table, ago, figures, named, numbers } from "./tables.js";

const PARTITIONS_SHOWN = 20;
const PARTITIONS_ALL = 64;
const LATEST_SHOWN = 10;

// ---- header and tiles ----------------------------------------------------------------------

export function showJob(doc, now) {
	const { job } = doc;
	text(byId("job"), job.name);
	text(byId("route"), `${job.topics.join(", ")} → ${job.table}`);
	const [crew, each] = job.processes > 1 ? [`${job.processes} processes, `, " each"] : ["", ""];
	text(
		byId("crew"),
		`${crew}${plural(job.workers, "worker")}${each}, running for ${whole((now - job.started_at) / 1000)}`,
	);
	text(byId("version"), `sessionizer ${doc.version}${doc.revision ? ` (${doc.revision})` : ""}`);
	text(byId("scope"), job.scope_text ?? "");
	hide(byId("scope"), !job.scope_text);
}

function tiles(doc, model) {
	const t = doc.tiles;
	const tile = (name, field, say, words) =>
		known(t[field])
			? { name, value: say(t[field]), below: words() }
			: { name, value: UNKNOWN, below: why(t, field) };
	const lag = () => {
		const records = known(t.lag_records)
			? `${plural(t.lag_records, "record")} to read`
			: why(t, "lag_records");
		const trend = model.trend(3);
		if (known(t.left_s) && t.left_s >= 3) return `${records}, ${whole(t.left_s)} left`;
		return t.lag_s >= 1 && trend && trend !== "steady" ? `${records}, ${trend}` : records;
	};
	const complete = () =>
		known(t.durable_watermark)
			? `the table is complete up to ${moment(t.durable_watermark, doc.at)}`
			: why(t, "durable_watermark");
	const memory = () =>
		known(t.memory_used) && known(t.memory_limit)
			? `${bytes(t.memory_used)} of ${bytes(t.memory_limit)} in flight`
			: "";
	const late = t.late_sessions > 0 ? `, ${count(t.late_sessions)} late` : "";
	const rows = () => `${plural(t.rows, "row")} since the start${late}`;
	const dead = () =>
		t.dead_letters
			? `${percent(t.dead_letters, t.records)} of what was read`
			: "since the start";
	return [
		tile("Events/s", "events_per_s", short, () => `${count(t.records)} read since the start`),
		tile("Sessions/s", "sessions_per_s", short, rows),
		tile("Lag", "lag_s", duration, lag),
		tile("Durable delay", "durable_delay_s", duration, complete),
		tile("Open sessions", "open_sessions", count, memory),
		known(t.anomalies)
			? tile("Anomalies", "anomalies", count, () => "raised now")
			: tile("Dead letters", "dead_letters", count, dead),
	];
}

export function showTiles(doc, model) {
	const all = tiles(doc, model);
	const place = byId("tiles");
	const dd = (name) => el("dd", { class: name });
	const make = () => el("div", { class: "tile" }, el("dt"), dd("value"), dd("below"));
	children(place, all.length, make);
	all.forEach(({ name, value, below }, i) => {
		const [dt, dd, small] = place.children[i].children;
		text(dt, name);
		text(dd, value);
		text(small, below);
	});
}

// ---- partitions ----------------------------------------------------------------------------

const STATES = {
	reading: "reading",
	paused: "waits for slower ones",
	idle: "idle",
	ended: "ended",
	retired: "retired",
	replaying: "replaying",
	waiting: "waiting",
	held_up: "open transaction",
};

export class Partitions {
	constructor() {
		this.table = new Table(byId("partitions"), "Partitions", [
			{ name: "partition", head: true, cell: (row) => row.id },
			{ name: "state", cell: (row) => this.state(row) },
			figures("lag", "lag_s", duration),
			figures("records to read", "lag_records", count),
			figures("records/s", "rate", short),
			figures("promise", "promise", (at) => ({
				text: ago(this.now, at),
				title: `${moment(at, this.now)} UTC: no on-time event is older`,
			})),
			figures("offset", "offset", count),
			figures("end", "end", count),
		]);
		byId("partition-filter").addEventListener(
			"input",
			() => this.last && this.show(...this.last),
		);
	}

	state(row) {
		const words = row.state_text || STATES[row.state] || row.state || UNKNOWN;
		const since = known(row.since) ? ` since ${moment(row.since, this.now)}` : "";
		if (row.holds_back) return { text: `holds back · ${words}${since}`, kind: "holds-back" };
		const held = row.state === "held_up" || row.state === "waiting";
		return { text: words + since, kind: held ? "held" : null };
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
		const sent =
			total > rows.length ? `, of which the first ${count(rows.length)} can be searched` : "";
		text(
			byId("partition-count"),
			`${count(shown.length)} shown, the worst first; ${of}${sent}`,
		);
		this.table.show(
			shown.map((row) => ({ ...row, kind: row.holds_back ? "holds-back" : null })),
			wanted
				? `No partition fits "${wanted}".`
				: (doc.partitions?.why?.rows ?? "No partition is known yet."),
		);
	}
}

// ---- the latest sessions -------------------------------------------------------------------

const CHANGES = {
	added: "",
	merged: { text: "merged", title: "a late event has changed this row" },
	removed: { text: "joined", title: "a late event has joined this row with another" },
};

export class Latest {
	constructor() {
		this.table = new Table(byId("latest"), "Latest sessions", [
			{ ...named("visitor", "ip"), head: true },
			named("host", "host"),
			numbers("began", (row) => moment(row.start, this.now)),
			numbers("ended", (row) => moment(row.end, this.now)),
			numbers("events", (row) => count(row.events)),
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
		this.table.show(
			rows.slice(0, LATEST_SHOWN).map((row) => ({ ...row, kind: row.change })),
			doc.latest?.why?.rows ?? "No session has closed yet.",
		);
		hide(byId("masked"), !doc.job.masked);
	}
}

/** Every block says as of when. */
export function showTimes(at) {
	for (const node of document.querySelectorAll(".asof")) {
		text(node, `as of ${clock(at)}`);
		attribute(node, "title", local(at));
	}
}
