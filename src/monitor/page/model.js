// What the page knows of the job: the last document, brought up to date by changes, and a memory of
// its own for the charts, which outlives a restart of the job. No DOM in here.

export const SCHEMA = 1;

/** Two points further apart than this have a gap between them. */
const GAP_MS = 3000;
const COLUMNS = 6;
const MARKS_MAX = 100;

export class Model {
	constructor() {
		this.doc = null;
		/** Rows of [at, in, out, lag_s, watermark_s, durable_s], oldest first. */
		this.points = [];
		/** What happened: {at, kind, text}, oldest first. */
		this.marks = [];
	}

	/** A whole document. */
	snapshot(doc) {
		const before = this.doc;
		this.doc = doc;
		this.keepPoints(doc.history?.points ?? []);
		this.keepMarks(doc.marks?.rows ?? []);
		if (before && before.run !== doc.run && !this.hasStart(doc)) {
			this.mark(doc.job?.started_at ?? doc.at, "started", "the job was restarted");
		}
	}

	/** Only what has changed. */
	change(change) {
		for (const key of Object.keys(change)) this.replace(key, change[key]);
	}

	replace(key, value) {
		const { doc } = this;
		if (key === "history") {
			for (const point of value.points ?? []) this.addPoint(point);
		} else if (key === "partitions") {
			doc.partitions = changedPartitions(doc.partitions, value);
		} else if (key === "latest") {
			const keep = doc.latest?.keep ?? 50;
			const rows = [...(value.add ?? []), ...(doc.latest?.rows ?? [])].slice(0, keep);
			doc.latest = { ...doc.latest, keep, rows };
		} else if (key === "marks") {
			for (const mark of value.add ?? []) this.mark(mark.at, mark.kind, mark.text);
		} else if (key in doc) {
			doc[key] = value;
		}
	}

	/** The job's memory replaces the page's, as far back as it goes. */
	keepPoints(points) {
		if (points.length) this.points = this.points.filter((point) => point[0] < points[0][0]);
		for (const point of points) this.addPoint(point);
		this.forget();
	}

	addPoint(point) {
		// A clock that was set back: what is later than the newest point was of another time.
		while (this.points.length && this.points.at(-1)[0] >= point[0]) this.points.pop();
		this.points.push(point.slice(0, COLUMNS));
		this.forget();
	}

	keepMarks(rows) {
		const same = (a, b) => a.at === b.at && a.kind === b.kind;
		const own = this.marks.filter((mark) => !rows.some((row) => same(mark, row)));
		this.marks = [...own, ...rows].sort((a, b) => a.at - b.at);
		this.forget();
	}

	mark(at, kind, text) {
		this.keepMarks([{ at, kind, text }]);
	}

	hasStart(doc) {
		const start = doc.job?.started_at ?? doc.at;
		return this.marks.some(
			(mark) => mark.kind === "started" && Math.abs(mark.at - start) < 60_000,
		);
	}

	keepMs() {
		return this.doc?.history?.keep_ms ?? 900_000;
	}

	forget() {
		const begin = (this.points.at(-1)?.[0] ?? this.doc?.at ?? 0) - this.keepMs();
		const first = this.points.findIndex((point) => point[0] >= begin);
		if (first > 0) this.points.splice(0, first);
		this.marks = this.marks.filter((mark) => mark.at >= begin).slice(-MARKS_MAX);
	}

	/** The points by column, with a row of nulls in each gap, for the charts: seconds since 1970. */
	columns() {
		const columns = Array.from({ length: COLUMNS }, () => []);
		let last = null;
		for (const point of this.points) {
			if (last !== null && point[0] - last > GAP_MS) {
				columns.forEach((column, i) => column.push(i ? null : (last + 1000) / 1000));
			}
			columns.forEach((column, i) => column.push(i ? (point[i] ?? null) : point[0] / 1000));
			last = point[0];
		}
		return columns;
	}

	/** Whether a column has grown, fallen or stayed over the last minute; null if unknown. */
	trend(column) {
		const newest = this.points.at(-1)?.[0];
		const recent = this.points.filter(
			(point) => point[0] > newest - 60_000 && point[column] !== null,
		);
		if (recent.length < 10) return null;
		const mean = (points) =>
			points.reduce((sum, point) => sum + point[column], 0) / points.length;
		const half = Math.floor(recent.length / 2);
		const [then, now] = [mean(recent.slice(0, half)), mean(recent.slice(half))];
		if (Math.abs(now - then) < Math.max(1, then * 0.1)) return "steady";
		return now > then ? "growing" : "falling";
	}
}

function changedPartitions(before, change) {
	const rows = new Map((before?.rows ?? []).map((row) => [row.id, row]));
	for (const row of change.rows ?? []) rows.set(row.id, row);
	const order = change.order ?? [...new Set([...(before?.order ?? []), ...rows.keys()])];
	const { rows: _rows, order: _order, ...rest } = change;
	return {
		...before,
		...rest,
		order,
		rows: order.filter((id) => rows.has(id)).map((id) => rows.get(id)),
	};
}

/** Why a field of a block is unknown. */
export const why = (block, field) => block?.why?.[field] ?? "not known yet";
