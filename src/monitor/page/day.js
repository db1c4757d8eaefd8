// The statistics of the last day: by host, by hour, and the busiest visitors.

import { byId, hide, text } from "./dom.js";
import { UNKNOWN, count, duration, known, moment, percent, plural, short } from "./format.js";
import { why } from "./model.js";
import { Table } from "./tables.js";

/** A value that is known only to lie between two. */
const between = ([low, high], say) => (low === high ? say(low) : say((low + high) / 2));

/** Two ranks: what half of the sessions stay within, and 95 % of them. */
function ranks(of, median, p95, say) {
	if (!of[median] || !of[p95]) return UNKNOWN;
	const title =
		`half of the sessions have at most ${say(of[median][1])}, ` +
		`95 % at most ${say(of[p95][1])}`;
	return { text: `${between(of[median], say)} · ${between(of[p95], say)}`, title };
}

const length = (ms) => duration(ms / 1000);
const mean = (of, sum, say) => (of.sessions > 0 ? say(of[sum] / of.sessions) : UNKNOWN);

const FIGURES = [
	{ name: "events each", number: true, cell: (row) => mean(row.of, "events", short) },
	{
		name: "median · 95 %",
		number: true,
		cell: (row) => ranks(row.of, "events_median", "events_p95", short),
	},
	{ name: "length", number: true, cell: (row) => mean(row.of, "duration_ms", length) },
	{ name: "one event", number: true, cell: (row) => percent(row.of.singles, row.of.sessions) },
];

export class Day {
	constructor() {
		this.hosts = new Table(byId("day-hosts"), "The last day by host", [
			{
				name: "host",
				head: true,
				foreign: true,
				cell: (row) => ({ text: row.host || "all hosts", title: row.host }),
			},
			{
				name: "sessions",
				number: true,
				cell: (row) => ({ text: count(row.of.sessions), share: row.share }),
			},
			{ name: "last full hour", number: true, cell: (row) => count(row.hour.sessions) },
			{ name: "visitors", number: true, cell: (row) => count(row.visitors) },
			...FIGURES,
			{
				name: "length: median · 95 %",
				number: true,
				cell: (row) => ranks(row.of, "duration_median_ms", "duration_p95_ms", length),
			},
		]);
		this.hours = new Table(byId("day-hours"), "The last day by hour", [
			{ name: "hour", head: true, cell: (row) => moment(row.of.at, this.at).slice(-14, -3) },
			{
				name: "sessions",
				number: true,
				cell: (row) => ({ text: count(row.of.sessions), share: row.share }),
			},
			...FIGURES,
		]);
		this.visitors = new Table(byId("day-visitors"), "Busiest visitors", [
			{ name: "visitor", head: true, foreign: true, cell: (row) => this.named(row, "ip") },
			{ name: "host", foreign: true, cell: (row) => this.named(row, "host") },
			{ name: "sessions", number: true, cell: (row) => count(row.sessions) },
		]);
	}

	named(row, field) {
		return row[field] === null
			? { text: UNKNOWN, title: why(row, field) }
			: { text: row[field], title: row[field] };
	}

	show(doc) {
		this.at = doc.at;
		const head = doc.statistics ?? {};
		const counts = head.state === "counting";
		hide(byId("day-block"), !head.state && !head.why?.state?.includes("process 0"));
		hide(byId("day-tables"), !counts);
		text(byId("day-asof"), known(head.as_of) ? `as of ${moment(head.as_of, doc.at)}` : "");
		text(byId("day-state"), this.state(head, doc));
		if (!counts) return;
		const rows = doc.statistics_hosts?.rows ?? [];
		const all = doc.statistics_all?.rows ?? [];
		const most = Math.max(1, ...rows.map((row) => row.day.sessions));
		const shown = (row) => ({ ...row, of: row.day, share: row.day.sessions / most });
		this.hosts.show(
			[...all, ...rows].map((row) => ({ ...shown(row), ...(row.host ? {} : { share: 0 }) })),
			"No session has ended in the window.",
		);
		const { other } = doc.statistics_hosts ?? {};
		text(
			byId("day-rest"),
			other?.sessions
				? `All others had ${plural(other.sessions, "session")} together.`
				: "",
		);
		this.showHours(doc.statistics_hours ?? {});
		const visitors = doc.statistics_visitors ?? {};
		this.visitors.show(
			visitors.rows ?? [],
			visitors.why?.rows ?? `Nobody had ${count(visitors.least)} sessions or more.`,
		);
	}

	state(head, doc) {
		if (head.state === "reading")
			return `Reading the rows of the last day: ${plural(head.rows_read, "row")} so far.`;
		if (head.state !== "counting") return head.why?.state ?? "";
		const said = [
			`Sessions that ended since ${moment(head.rows_from ?? head.from, doc.at)}, ` +
				`up to the watermark (${moment(head.watermark, doc.at)}), with every correction.`,
		];
		if (known(head.rows_from))
			said.push("What ended before is not known: reading the table failed at the start.");
		if (known(head.visitors_from))
			said.push(`Too many visitors: counted since ${moment(head.visitors_from, doc.at)}.`);
		if (head.broken > 0)
			said.push("These figures are wrong: more was removed than was there. This is a bug.");
		return said.join(" ");
	}

	showHours({ columns = [], rows = [] }) {
		const named = (row) => Object.fromEntries(columns.map((column, i) => [column, row[i]]));
		const hours = rows.map(named).sort((a, b) => b.at - a.at);
		const most = Math.max(1, ...hours.map((hour) => hour.sessions));
		this.hours.show(
			hours.map((of) => ({ of, share: of.sessions / most })),
			"No session has ended in the window.",
		);
	}
}
