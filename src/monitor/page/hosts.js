// Sessions by host and by hour, and the busiest visitors: of the last day. Where the last day is not
// counted, there are only those by host, since the start.

import { byId, hide, text } from "./dom.js";
import { UNKNOWN, count, duration, hour, known, moment, percent, plural, short } from "./format.js";
import { Table, named, numbers } from "./tables.js";

const HOSTS_SHOWN = 10;

const length = (ms) => duration(ms / 1000);
const mean = (of, sum, say) => (of.sessions > 0 ? say(of[sum] / of.sessions) : UNKNOWN);

/** What 95 % of the sessions stay within, and half of them. */
function most(of, [median, p95], say) {
	if (!of[median] || !of[p95]) return UNKNOWN;
	return { text: say(of[p95][1]), title: `half of the sessions: ${say(of[median][1])} at most` };
}

const HOST = { ...named("host", "host"), head: true };
const SESSIONS = numbers("sessions", ({ of, share }) => ({ text: count(of.sessions), share }));
const EVENTS = numbers("events each", ({ of }) => mean(of, "events", short));
const LENGTH = numbers("length", ({ of }) => mean(of, "duration_ms", length));
const SINGLES = numbers("one event", ({ of }) => percent(of.singles, of.sessions));

const COLUMNS = {
	start: [
		HOST,
		SESSIONS,
		numbers("share", (row) => percent(row.of.sessions, row.all)),
		EVENTS,
		LENGTH,
	],
	day: [
		HOST,
		SESSIONS,
		numbers("last full hour", (row) => count(row.hour.sessions)),
		EVENTS,
		numbers("95 % have at most", ({ of }) => most(of, ["events_median", "events_p95"], short)),
		LENGTH,
		numbers("95 % last at most", ({ of }) =>
			most(of, ["duration_median_ms", "duration_p95_ms"], length),
		),
		SINGLES,
	],
};
COLUMNS.visitors = [
	...COLUMNS.day.slice(0, 3),
	numbers("visitors", (row) => count(row.visitors)),
	...COLUMNS.day.slice(3),
];

/** Rows with their share of the longest bar. */
function bars(rows) {
	const longest = Math.max(1, ...rows.map((row) => row.of.sessions));
	return rows.map((row) => ({ ...row, share: Math.max(0, row.of.sessions) / longest }));
}

export class Hosts {
	constructor() {
		this.all = false;
		byId("host-filter").addEventListener("input", () => this.last && this.show(this.last));
		byId("host-all").addEventListener("click", () => {
			this.all = !this.all;
			if (this.last) this.show(this.last);
		});
	}

	show(doc) {
		this.last = doc;
		const day = doc.statistics?.state === "counting";
		const given = day ? ofTheDay(doc) : sinceTheStart(doc);
		const { mode, rows, total, nothing } = given;
		if (this.mode !== mode) {
			this.mode = mode;
			this.table = new Table(byId("hosts"), "Sessions by host", COLUMNS[mode]);
		}
		const wanted = byId("host-filter").value.trim().toLowerCase();
		const fits = (row) => row.host.toLowerCase().includes(wanted);
		const found = wanted ? rows.filter(fits) : rows;
		const shown = this.all || wanted ? found : found.slice(0, HOSTS_SHOWN);
		hide(byId("host-tools"), rows.length <= HOSTS_SHOWN);
		hide(byId("host-all"), Boolean(wanted));
		text(byId("host-all"), this.all ? `Show ${HOSTS_SHOWN}` : `Show ${count(rows.length)}`);
		const sum = wanted || rows.length < 2 ? [] : total;
		this.table.show(
			[...sum, ...shown],
			wanted ? `None of these ${count(rows.length)} hosts fits "${wanted}".` : nothing,
		);
		for (const node of document.querySelectorAll(".day"))
			text(node, `as of ${moment(day ? doc.statistics.as_of : doc.at, doc.at)}`);
		text(byId("hosts-what"), given.what.join(" "));
		const rest = rows.length ? others(given, rows.filter((row) => !shown.includes(row))) : [];
		text(byId("host-rest"), rest.join(" "));
		hide(byId("host-rest"), !rest.length);
	}
}

function ofTheDay(doc) {
	const head = doc.statistics;
	const { rows = [], other } = doc.statistics_hosts ?? {};
	const total = doc.statistics_all?.rows ?? [];
	const what = [
		`Sessions that ended since ${moment(head.rows_from ?? head.from, doc.at)}, ` +
			`up to the watermark (${moment(head.watermark, doc.at)}). Late events correct them.`,
	];
	if (known(head.rows_from))
		what.push("Earlier sessions are not known: reading the table failed at the start.");
	if (known(head.visitors_from))
		what.push(`Too many visitors: counted since ${moment(head.visitors_from, doc.at)}.`);
	if (head.broken > 0)
		what.push("These figures are wrong: more was removed than was there. This is a bug.");
	return {
		mode: total.some((row) => known(row.visitors)) ? "visitors" : "day",
		rows: bars(rows.map((row) => ({ ...row, of: row.day }))),
		total: total.map((row) => ({ ...row, host: "all hosts", of: row.day, share: 0 })),
		nothing: "No session has ended in the last day.",
		what: rows.length ? what : [],
		other,
		known: head.hosts,
		limit: head.hosts_limit,
	};
}

function sinceTheStart(doc) {
	const { rows = [], other, known: hosts, since, limit } = doc.hosts ?? {};
	const head = doc.statistics ?? {};
	const all = rows.reduce((sum, row) => sum + row.sessions, 0) + (other?.sessions ?? 0);
	const what = [];
	if (head.state === "reading")
		what.push(
			`Reading the rows of the last day: ${plural(head.rows_read, "row")} so far. Until then,`,
			`sessions since the start at ${moment(since, doc.at)}.`,
		);
	else what.push(`Sessions since the start at ${moment(since, doc.at)}.`);
	if (!head.state && head.why?.state) what.push(`Statistics of the last day: ${head.why.state}.`);
	return {
		mode: "start",
		rows: bars(rows.map((row) => ({ host: row.host, of: row, all }))),
		total: [],
		nothing: doc.hosts?.why?.rows ?? "No session has closed yet.",
		what: rows.length || head.state ? what : [],
		other,
		known: hosts,
		limit,
	};
}

/** What is said of the hosts that are not shown: those that have no row, and those left out. */
function others({ other, known: hosts, limit }, left) {
	const said = [];
	const more = (other?.hosts ?? 0) + left.length;
	const sessions = left.reduce((sum, row) => sum + row.of.sessions, other?.sessions ?? 0);
	if (more > 0 || sessions > 0) {
		const uncounted = other?.sessions > 0 && !(other.hosts > 0);
		const who = uncounted ? "All others" : plural(more, "other host");
		said.push(`${who} had ${plural(sessions, "session")} together.`);
	}
	if (known(limit) && hosts >= limit)
		said.push(`No more than ${count(limit)} hosts are told apart.`);
	return said;
}

export class Hours {
	constructor() {
		this.table = new Table(byId("hours"), "Sessions by hour", [
			{ name: "hour", head: true, cell: (row) => hour(row.of.at, this.at) },
			SESSIONS,
			EVENTS,
			LENGTH,
			SINGLES,
		]);
	}

	show(doc) {
		const counts = doc.statistics?.state === "counting";
		hide(byId("hours-block"), !counts);
		hide(byId("visitors-block"), !counts);
		if (!counts) return;
		this.at = doc.at;
		const { columns = [], rows = [] } = doc.statistics_hours ?? {};
		const of = (row) => Object.fromEntries(columns.map((column, i) => [column, row[i]]));
		const hours = rows.map((row) => ({ of: of(row) })).sort((a, b) => b.of.at - a.of.at);
		this.table.show(bars(hours), "No session has ended in the last day.");
	}
}

export class Visitors {
	constructor() {
		this.table = new Table(byId("visitors"), "Busiest visitors", [
			{ ...named("visitor", "ip"), head: true },
			named("host", "host"),
			numbers("sessions", (row) => count(row.sessions)),
		]);
	}

	show(doc) {
		const { rows = [], least, why: reasons } = doc.statistics_visitors ?? {};
		const nothing = reasons?.rows ?? `Nobody had ${count(least)} sessions or more.`;
		this.table.show(rows ?? [], nothing);
	}
}
