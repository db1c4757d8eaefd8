// Blocks about what became of the records: anomalies, dead letters, the balance, the proof, and who
// commits them.

import { attribute, byId, children, el, hide, text } from "./dom.js";
import { UNKNOWN, count, cut, known, moment, plural, short, whole } from "./format.js";
import { why } from "./model.js";
import { Table, ago, figures, named, numbers } from "./tables.js";

const PAYLOAD_SHOWN = 200;
/** A longer query may be cut to six lines; it is whole once it has the focus. */
const SQL_SHOWN = 150;

// ---- anomalies and dead letters ------------------------------------------------------------

export class Anomalies {
	constructor() {
		this.table = new Table(byId("anomalies"), "Anomalies", [
			{ name: "kind", head: true, cell: (row) => row.kind },
			named("host", "host"),
			named("subject", "subject"),
			{ name: "at", cell: (row) => moment(row.at, this.now) },
			{ name: "reason", foreign: true, cell: (row) => row.reason },
			{
				name: "look at it with",
				foreign: true,
				cell: ({ sql }) => ({ text: sql, title: sql, opens: sql?.length > SQL_SHOWN }),
			},
		]);
	}

	show(doc, now) {
		this.now = now;
		const rows = doc.anomalies?.rows;
		hide(byId("anomalies-block"), !rows);
		this.table.show(rows ?? [], "Nothing is unlike the host's own sessions.");
		const said = missing(doc.anomalies ?? {}, now);
		hide(byId("anomalies-missing"), !said.length);
		text(byId("anomalies-missing"), said.join(" "));
	}
}

/** What there was no room for. */
function missing({ rows_refused: refused, hosts_limit: limit, visitors_from: from }, now) {
	const said = [];
	if (refused > 0)
		said.push(
			`No more than ${count(limit)} hosts are looked at: ` +
				`${plural(refused, "session")} of others ${refused === 1 ? "was" : "were"} not.`,
		);
	if (known(from))
		said.push(
			"There were too many visitors: repeat visitors and networks are looked for again " +
				`from ${moment(from, now)} on.`,
		);
	return said;
}

const REASONS = {
	empty: "no payload",
	bad_json: "not one JSON object",
	no_ip: "no ip",
	no_host: "no host",
	no_time: "no event_time",
	bad_time: "event_time cannot be read",
	nul_in_key: "U+0000 in ip or host",
	key_too_long: "ip and host are too long",
	future: "event_time is in the future",
	late: "later than its session (--late drop)",
	row_refused: "the table refused the row",
};

export class DeadLetters {
	constructor() {
		this.table = new Table(byId("dead-letters"), "Dead letters", [
			{
				name: "reason",
				head: true,
				cell: (row) => ({ text: row.reason, title: REASONS[row.reason] }),
			},
			{
				name: "meaning",
				foreign: true,
				cell: (row) => row.examples?.[0]?.detail ?? REASONS[row.reason] ?? "",
			},
			numbers("records", (row) => count(row.count)),
			numbers("last", (row) => ago(this.now, row.last_at)),
			{ name: "newest example", foreign: true, cell: (row) => this.example(row) },
		]);
	}

	example(row) {
		const newest = row.examples?.[0];
		if (!newest) return { text: UNKNOWN, title: "no example is kept" };
		const place = known(newest.offset)
			? `${newest.topic}/${newest.partition} offset ${count(newest.offset)}: `
			: "";
		const payload = newest.payload ?? newest.why?.payload ?? "";
		const shown = cut(payload, PAYLOAD_SHOWN);
		const more = newest.cut && !shown.endsWith("…") ? "…" : "";
		return place + shown + more;
	}

	show(doc, now) {
		this.now = now;
		const { rows = [], since } = doc.dead_letters ?? {};
		this.table.show(
			rows,
			doc.dead_letters?.why?.rows ??
				`None since the start at ${moment(since, doc.at)}: every record became an event.`,
		);
	}
}

// ---- balance and proof ---------------------------------------------------------------------

export function showBalance(doc) {
	const b = doc.balance ?? {};
	const parts = [
		["records", "read", ""],
		["closed", "in closed sessions", "="],
		["open", "in open sessions", "+"],
		["dead", "dead letters", "+"],
		["lost", "lost in Kafka", "+"],
	];
	if (b.forgotten) parts.push(["forgotten", "of forgotten visitors", "+"]);
	const place = byId("balance");
	children(place, parts.length, () =>
		el("div", {}, el("span", { class: "sign" }), el("b"), el("small")),
	);
	parts.forEach(([field, name, sign], i) => {
		const [mark, figure, words] = place.children[i].children;
		text(mark, sign);
		text(figure, known(b[field]) ? count(b[field]) : UNKNOWN);
		attribute(figure, "title", known(b[field]) ? null : why(b, field));
		text(words, name);
	});
	const verdict = byId("balance-verdict");
	const equal = b.ok === true && b.difference === 0;
	const off = `${plural(Math.abs(b.difference), "record")} `;
	attribute(verdict, "data-tone", !known(b.difference) ? "lost" : equal ? "good" : "trouble");
	text(
		verdict,
		!known(b.difference)
			? `– ${why(b, "difference")}`
			: equal
				? "Equal: every record is accounted for"
				: `Not equal: ${off}${b.difference > 0 ? "unaccounted for" : "too many"}`,
	);
	text(byId("balance-asof"), known(b.as_of) ? `as of ${moment(b.as_of, doc.at)}` : "");
}

export function showProof(doc) {
	const p = doc.proof ?? {};
	const verdict = byId("proof-verdict");
	const audited = known(p.differences) && known(p.audited_at);
	const at = moment(p.audited_at, doc.at);
	const through = moment(p.verified_through, doc.at);
	const upTo = known(p.verified_through) ? ` up to ${through}` : "";
	attribute(verdict, "data-tone", !audited ? "lost" : p.differences === 0 ? "good" : "trouble");
	text(
		verdict,
		!audited
			? `– ${why(p, "audited_at")}`
			: p.differences === 0
				? `Verified through ${through} by the audit of ${at}: 0 differences`
				: `The audit of ${at} found ${plural(p.differences, "difference")}${upTo}: ` +
					`\`sessionizer audit\` shows ${p.differences === 1 ? "it" : "them"}`,
	);
	// Whether there was an audit is read with the balance.
	const asOf = audited ? p.audited_at : doc.balance?.read_at;
	text(byId("proof-asof"), known(asOf) ? `as of ${moment(asOf, doc.at)}` : "");
}

// ---- writers and processes -----------------------------------------------------------------

export class Writers {
	constructor() {
		this.table = new Table(byId("writers"), "Writers", [
			{ name: "writer", head: true, cell: (row) => count(row.writer) },
			{ name: "state", cell: (row) => this.state(row) },
			figures("waiting", "waiting_epochs", (n) => plural(n, "epoch")),
			figures("commits", "commits", count),
			figures("rows", "rows", count),
			figures("last commit", "last_commit_ms", (ms) => `${short(ms)} ms`),
		]);
		this.peers = new Table(byId("peers"), "Processes", [
			{ name: "process", head: true, cell: (row) => count(row.process) },
			figures("workers", "workers", count),
			numbers("last heard", (row) => ago(this.now, row.seen_at)),
			{ name: "note", foreign: true, cell: (row) => row.text ?? "" },
		]);
	}

	state(row) {
		if (known(row.failing_since)) {
			const lasts = whole((this.now - row.failing_since) / 1000);
			return {
				text: `failing for ${lasts}: ${row.error ?? "no reason given"}`,
				kind: "held",
			};
		}
		const lasts = (this.now - row.committing_since) / 1000;
		return known(row.committing_since) && lasts >= 1
			? `committing for ${whole(lasts)}`
			: "ready";
	}

	show(doc, now) {
		this.now = now;
		this.table.show(
			doc.writers?.rows ?? [],
			doc.writers?.why?.rows ?? "No writer has started yet.",
		);
		const peers = doc.peers?.rows ?? [];
		hide(byId("peers-block"), peers.length < 2);
		this.peers.show(peers, "");
	}
}
