// Four charts on one time axis, drawn by uPlot. Each is an image with a label that says its last
// value, and has a table behind it.

/* global uPlot */
import { attribute, children, el, hide, text } from "./dom.js";
import { UNKNOWN, clock, duration, known, short } from "./format.js";
import { why } from "./model.js";

const HEIGHT = 150;
const AXIS = 46;
const FONT = "11px system-ui, sans-serif";
/** The table of a chart has a row for this many seconds. */
const TABLE_STEP_S = 15;
const TABLE_EVERY_MS = 5000;

/** Steps of an axis that read well as times: up to years. */
const STEPS_S = [
	...[0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200],
	...[1, 2, 5, 20, 50, 200, 1000, 5000].map((days) => days * 86400),
];

const rate = (n) => (known(n) ? `${short(n)}/s` : UNKNOWN);

/** A line; `field` is the tile that says why it is unknown. */
const line = (column, name, field, say = duration, scale = "y") => ({
	...{ column, name, field, say, scale },
	color: `--line-${column}`,
});

export const CHARTS = [
	{
		id: "rates",
		title: "In and out",
		lines: [
			line(1, "events in", "events_per_s", rate),
			line(2, "rows out", "sessions_per_s", rate, "out"),
		],
	},
	{
		id: "lag",
		title: "Lag",
		about: "how long the oldest unread record has waited in Kafka",
		lines: [line(3, "lag", "lag_s")],
	},
	{
		id: "watermark",
		title: "Watermark behind now",
		about: "sessions close when the watermark has passed them",
		lines: [line(4, "watermark", "watermark")],
	},
	{
		id: "durable",
		title: "Durable delay",
		about: "from the end of an epoch until it is committed",
		lines: [line(5, "durable delay", "durable_delay_s")],
	},
];

/** How a mark is drawn. Kinds that are not here appear only in the list below the charts. */
const MARK_COLORS = {
	started: "--mark-start",
	connection_lost: "--mark-lost",
	kafka_lost: "--mark-bad",
	postgres_lost: "--mark-bad",
};

export class Charts {
	constructor(place, model) {
		this.model = model;
		this.end = 0;
		this.charts = CHARTS.map((chart) => new Chart(chart, this));
		place.replaceChildren(...this.charts.map((chart) => chart.figure));
		this.charts.forEach((chart) => chart.draw());
		matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.repaint());
	}

	/** `now` is the right edge, in ms by the job's clock. */
	show(now) {
		this.end = now / 1000;
		this.columns = this.model.columns();
		for (const chart of this.charts) chart.show();
	}

	repaint() {
		this.charts.forEach((chart) => chart.paint());
	}

	range() {
		return [this.end - this.model.keepMs() / 1000, this.end];
	}
}

class Chart {
	constructor(chart, all) {
		this.all = all;
		this.chart = chart;
		this.at = null;
		this.values = chart.lines.map(() => el("b"));
		const legend = chart.lines.map((line, i) => {
			const name = chart.lines.length > 1 ? `${line.name} ` : null;
			const swatch = el("i", { class: "swatch" });
			swatch.style.background = `var(${line.color})`;
			return el("span", { class: "legend" }, swatch, name, this.values[i]);
		});
		this.place = el("div", { class: "plot", role: "img", id: `chart-${chart.id}` });
		this.body = el("tbody");
		const heads = ["time (UTC)", ...chart.lines.map((line) => line.name)].map((name, i) =>
			el("th", { scope: "col", class: i ? "number" : null }, name),
		);
		const label = `${chart.title}, as a table`;
		this.details = el(
			"details",
			{},
			el("summary", {}, "Table"),
			el(
				"div",
				{ class: "scroll", tabindex: "0", role: "region", "aria-label": label },
				el("table", {}, el("thead", {}, el("tr", {}, ...heads)), this.body),
			),
		);
		this.details.addEventListener("toggle", () => this.table());
		this.when = el("span", { class: "when" });
		const title = el("h3", { title: chart.about }, chart.title);
		const caption = el("figcaption", {}, title, this.when, ...legend);
		this.figure = el("figure", {}, caption, this.place, this.details);
	}

	draw() {
		this.plot = new uPlot(this.options(), [[], ...this.chart.lines.map(() => [])], this.place);
		new ResizeObserver(() => {
			const width = this.place.clientWidth;
			if (width && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
		}).observe(this.place);
		this.paint();
	}

	options() {
		const { lines } = this.chart;
		const range = (_, __, max) => [0, Math.max((max ?? 0) * 1.1, 1)];
		const axis = (scale, side, line) => ({
			scale,
			side,
			size: AXIS,
			gap: 4,
			font: FONT,
			space: 34,
			stroke: () => this.color(lines.length > 1 ? line.color : "--muted"),
			grid: { show: side === 3, width: 1, stroke: () => this.color("--grid") },
			ticks: { show: false },
			incrs: line.say === duration ? STEPS_S : undefined,
			values: (_, ticks) =>
				ticks.map((tick) => (line.say === duration ? seconds(tick) : short(tick))),
		});
		return {
			width: this.place.clientWidth || 300,
			height: HEIGHT,
			legend: { show: false },
			padding: [8, lines.length > 1 ? 0 : AXIS, 0, 0],
			cursor: {
				sync: { key: "time" },
				drag: { x: false, y: false },
				y: false,
				points: { size: 6 },
			},
			scales: {
				x: { time: true, range: () => this.all.range() },
				y: { range },
				...(lines.length > 1 ? { out: { range } } : {}),
			},
			tzDate: (t) => uPlot.tzDate(new Date(t * 1000), "UTC"),
			axes: [
				{
					stroke: () => this.color("--muted"),
					font: FONT,
					size: 28,
					gap: 7,
					space: 70,
					ticks: { show: false },
					grid: { show: false },
					values: (_, ticks) => ticks.map((tick) => clock(tick * 1000).slice(0, 5)),
				},
				...lines.map((line, i) => axis(line.scale, i ? 1 : 3, line)),
			],
			series: [
				{},
				...lines.map((line) => ({
					scale: line.scale,
					width: 1.5,
					stroke: () => this.color(line.color),
					spanGaps: false,
					points: { show: true, filter: alone, size: 3 },
				})),
			],
			hooks: {
				draw: [() => this.drawMarks()],
				setCursor: [(plot) => this.point(plot.cursor.idx ?? null)],
			},
		};
	}

	color(name) {
		this.colors ??= {};
		this.colors[name] ??= getComputedStyle(document.documentElement)
			.getPropertyValue(name)
			.trim();
		return this.colors[name];
	}

	paint() {
		this.colors = {};
		this.plot.redraw(false, true);
	}

	show() {
		const { columns } = this.all;
		const values = this.chart.lines.map((line) => columns[line.column]);
		this.plot.setData([columns[0], ...values], true);
		this.label();
		if (this.details.open && performance.now() - (this.tabled ?? 0) > TABLE_EVERY_MS)
			this.table();
		if (this.at === null) this.legend(columns[0].length - 1);
	}

	point(index) {
		this.at = index;
		this.legend(index ?? (this.all.columns?.[0].length ?? 0) - 1);
	}

	legend(index) {
		const { columns } = this.all;
		if (!columns) return;
		this.chart.lines.forEach((line, i) =>
			text(this.values[i], line.say(columns[line.column][index])),
		);
		const dash = this.chart.lines.find((line) => !known(columns[line.column][index]));
		const reason = dash ? why(this.all.model.doc.tiles, dash.field) : "";
		const at = `at ${clock((columns[0][index] ?? NaN) * 1000)}`;
		text(this.when, this.at === null ? reason : at);
	}

	label() {
		const { columns } = this.all;
		const last = columns[0].length - 1;
		const parts = this.chart.lines.map((line) => {
			const values = columns[line.column].filter(known);
			if (!values.length) return `${line.name}: nothing known yet`;
			const now = columns[line.column][last];
			const span =
				`between ${line.say(Math.min(...values))} and ${line.say(Math.max(...values))} ` +
				"in the last 15 minutes";
			const at = `at ${clock(columns[0][last] * 1000)}`;
			return `${line.name}: ${known(now) ? `${line.say(now)} ${at}` : "unknown now"}, ${span}`;
		});
		attribute(this.place, "aria-label", `Chart. ${parts.join("; ")}`);
	}

	table() {
		if (!this.details.open || !this.all.columns) return;
		this.tabled = performance.now();
		const { columns } = this.all;
		const rows = [];
		let before = Infinity;
		for (let i = columns[0].length - 1; i >= 0; i--) {
			const slot = Math.floor(columns[0][i] / TABLE_STEP_S);
			if (slot < before) rows.push(i);
			before = Math.min(before, slot);
		}
		const { lines } = this.chart;
		const cell = (line) => el("td", { class: line ? "number" : null });
		children(this.body, rows.length, () => el("tr", {}, ...[null, ...lines].map(cell)));
		rows.forEach((row, i) => {
			const cells = this.body.children[i].children;
			text(cells[0], clock(columns[0][row] * 1000));
			lines.forEach((line, n) => text(cells[n + 1], line.say(columns[line.column][row])));
		});
	}

	drawMarks() {
		const { plot } = this;
		const { ctx, bbox } = plot;
		const [from, to] = this.all.range();
		ctx.save();
		for (const mark of this.all.model.marks) {
			const at = mark.at / 1000;
			if (!(mark.kind in MARK_COLORS) || at < from || at > to) continue;
			const x = Math.round(plot.valToPos(at, "x", true)) + 0.5;
			ctx.strokeStyle = this.color(MARK_COLORS[mark.kind]);
			ctx.lineWidth = devicePixelRatio;
			const dash = [4 * devicePixelRatio, 3 * devicePixelRatio];
			ctx.setLineDash(mark.kind === "started" ? [] : dash);
			ctx.beginPath();
			ctx.moveTo(x, bbox.top);
			ctx.lineTo(x, bbox.top + bbox.height);
			ctx.stroke();
		}
		ctx.restore();
	}
}

/** The values without a neighbour, which are shown as points: a line would need two. */
function alone(plot, series) {
	const values = plot.data[series];
	const lone = (value, i) => known(value) && !known(values[i - 1]) && !known(values[i + 1]);
	return values.flatMap((value, i) => (lone(value, i) ? [i] : []));
}

/** A tick of an axis of seconds. */
function seconds(tick) {
	if (tick < 60) return `${short(tick)} s`;
	if (tick < 3600) return `${short(tick / 60)} min`;
	return tick < 86400 ? `${short(tick / 3600)} h` : `${short(tick / 86400)} d`;
}

/** What happened, newest first, in words. */
export function showMarks(place, marks) {
	hide(place.parentElement, marks.length === 0);
	const newest = marks.slice(-8).reverse();
	const line = () => el("li", {}, el("i", { class: "swatch" }), el("time"), el("bdi"));
	children(place, newest.length, line);
	newest.forEach((mark, i) => {
		const [swatch, time, words] = place.children[i].children;
		attribute(swatch, "data-kind", mark.kind);
		text(time, clock(mark.at));
		text(words, mark.text ?? mark.kind);
	});
}
