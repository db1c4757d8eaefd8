// The blocks about now: the job, the tiles, partitions and the latest sessions.

import { attribute, byId, children, el, hide, text } from "./dom.js";
import {
	UNKNOWN,
	bytes,
	clock,
	count,
	duration,
	known,
	local,
	moment,
	percent,
	plural,
	short,
	whole,
} from "./format.js";
import { why } from "./model.js";
import { Table, ago, or } from "./tables.js";

const PARTITIONS_SHOWN = 20;
const PARTITIONS_ALL = 64;
const LATEST_SHOWN = 10;

// ---- header and tiles ----------------------------------------------------------------------

export function showJob(doc, now) {
	const { job } = doc;
	text(byId("job"), job.name);
	text(byId("route"), `${job.topics.join(", ")} → ${job.table}`);
	const crew = job.processes > 1 ? `${job.processes} processes, ` : "";
	text(
		byId("crew"),
		`${crew}${plural(job.workers, "worker")}, running for ${whole((now - job.started_at) / 1000)}`,
	);
	text(byId("version"), `sessionizer ${doc.version}${doc.revision ? ` (${doc.revision})` : ""}`);
	const part = job.scope === "process" && job.processes > 1;
	text(
		byId("scope"),
		`Figures of process ${job.process} of ${job.processes} alone: ` +
			"the page of process 0 shows the whole job.",
	);
	hide(byId("scope"), !part);
}

const tile = (name, value, below) => ({ name, value, below });

function tiles(doc, model) {
	const t = doc.tiles;
	const value = (field, say) => (known(t[field]) ? say(t[field]) : UNKNOWN);
	const below = (field, words) => (known(t[field]) ? words() : why(t, field));
	const lag = () => {
		const records = known(t.lag_records)
			? `${plural(t.lag_records, "record")} to read`
			: why(t, "lag_records");
		const trend = model.trend(3);
		if (known(t.left_s) && t.left_s >= 3) return `${records}, ${whole(t.left_s)} left`;
		return t.lag_s >= 1 && trend && trend !== "steady" ? `${records}, ${trend}` : records;
	};
	const complete = known(t.durable_watermark)
		? `the table is complete up to ${moment(t.durable_watermark, doc.at)}`
		: why(t, "durable_watermark");
	const memory =
		known(t.memory_used) && known(t.memory_limit)
			? `${bytes(t.memory_used)} of ${bytes(t.memory_limit)} in flight`
			: "";
	const late =
		known(t.late_sessions) && t.late_sessions > 0 ? `, ${count(t.late_sessions)} late` : "";
	return [
		tile(
			"Events/s",
			value("events_per_s", short),
			below("events_per_s", () => `${count(t.records)} read since the start`),
		),
		tile(
			"Sessions/s",
			value("sessions_per_s", short),
			below("sessions_per_s", () => `${plural(t.rows, "row")} since the start${late}`),
		),
		tile("Lag", value("lag_s", duration), below("lag_s", lag)),
		tile(
			"Durable delay",
			value("durable_delay_s", duration),
			below("durable_delay_s", () => complete),
		),
		tile(
			"Open sessions",
			value("open_sessions", count),
			below("open_sessions", () => memory),
		),
		known(t.anomalies)
			? tile("Anomalies", count(t.anomalies), "raised now")
			: tile(
					"Dead letters",
					value("dead_letters", count),
					below("dead_letters", () =>
						t.dead_letters
							? `${percent(t.dead_letters, t.records)} of what was read`
							: "since the start",
					),
				),
	];
}

export function showTiles(doc, model) {
	const all = tiles(doc, model);
	const place = byId("tiles");
	children(place, all.length, () =>
		el(
			"div",
			{ class: "tile" },
			el("dt"),
			el("dd", { class: "value" }),
			el("dd", { class: "below" }),
		),
	);
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
			{ name: "lag", number: true, cell: (row) => or(row, "lag_s", duration) },
			{ name: "records to read", number: true, cell: (row) => or(row, "lag_records", count) },
			{ name: "records/s", number: true, cell: (row) => or(row, "rate", short) },
			{ name: "promise", number: true, cell: (row) => this.promise(row) },
			{ name: "offset", number: true, cell: (row) => or(row, "offset", count) },
			{ name: "end", number: true, cell: (row) => or(row, "end", count) },
		]);
		byId("partition-filter").addEventListener(
			"input",
			() => this.last && this.show(...this.last),
		);
	}

	state(row) {
		const words = row.state_text || STATES[row.state] || row.state || UNKNOWN;
		const since = known(row.since) ? ` since ${moment(row.since, this.now)}` : "";
		const kind = row.holds_back
			? "holds-back"
			: row.state === "held_up" || row.state === "waiting"
				? "held"
				: null;
		return { text: `${row.holds_back ? "holds back · " : ""}${words}${since}`, kind };
	}

	promise(row) {
		if (!known(row.promise)) return { text: UNKNOWN, title: why(row, "promise") };
		return {
			text: ago(this.now, row.promise),
			title: `${moment(row.promise, this.now)} UTC: no on-time event is older`,
		};
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
			{
				name: "visitor",
				head: true,
				foreign: true,
				cell: (row) => ({ text: row.ip, title: row.ip }),
			},
			{ name: "host", foreign: true, cell: (row) => ({ text: row.host, title: row.host }) },
			{ name: "began", number: true, cell: (row) => moment(row.start, this.now) },
			{ name: "ended", number: true, cell: (row) => moment(row.end, this.now) },
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
