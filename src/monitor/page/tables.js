// Tables whose rows are kept and only written where something has changed. On a narrow screen the
// stylesheet turns each row into a card; the roles keep it a table for those who listen.

import { attribute, children, el, hide, text } from "./dom.js";
import { UNKNOWN, known, whole } from "./format.js";
import { why } from "./model.js";

/** A figure, or "–" with its reason as what is shown on hovering. */
const or = (block, field, say) =>
	known(block?.[field]) ? say(block[field]) : { text: UNKNOWN, title: why(block, field) };

/** A column of numbers; and of those that are a field of the row. */
export const numbers = (name, cell) => ({ name, number: true, cell });
export const figures = (name, field, say) => numbers(name, (row) => or(row, field, say));

/** A column of names, which may be unknown. */
export const named = (name, field) => ({
	name,
	foreign: true,
	cell: (row) =>
		row[field] === null
			? { text: UNKNOWN, title: why(row, field) }
			: { text: row[field], title: row[field] },
});

export const ago = (now, at) => (known(at) ? `${whole((now - at) / 1000)} ago` : UNKNOWN);

/**
 * A column: {name, cell, number, foreign, head}. `cell(row)` gives a text, or
 * {text, title, kind, share, opens}.
 * A foreign text came from an event: it is isolated from the direction of what is around it.
 */
export class Table {
	constructor(place, label, columns) {
		this.columns = columns;
		const heads = columns.map(({ name, number }) =>
			el("th", { role: "columnheader", scope: "col", class: number && "number" }, name),
		);
		this.body = el("tbody", { role: "rowgroup" });
		this.nothing = el("p", { class: "nothing" });
		this.dashes = el("p", { class: "note" });
		const head = el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...heads));
		this.table = el("table", { role: "table", "aria-label": label }, head, this.body);
		place.replaceChildren(this.table, this.nothing, this.dashes);
	}

	/** Shows the rows; or, if there are none, says why. */
	show(rows, nothing) {
		this.reasons = new Set();
		children(this.body, rows.length, () => this.row());
		rows.forEach((row, i) => this.write(this.body.children[i], row));
		this.table.hidden = rows.length === 0;
		this.nothing.hidden = rows.length > 0;
		text(this.nothing, rows.length ? "" : nothing);
		// Not everybody can hover.
		text(this.dashes, `${UNKNOWN} ${[...this.reasons].join("; ")}`);
		hide(this.dashes, !this.reasons.size);
	}

	row() {
		const cells = this.columns.map((column) => {
			const value = el(column.foreign ? "bdi" : "span");
			const names = ["number", "foreign", "head"].filter((name) => column[name]);
			return el(
				"td",
				{
					role: column.head ? "rowheader" : "cell",
					"data-name": column.name,
					class: names.join(" ") || null,
				},
				value,
			);
		});
		return el("tr", { role: "row" }, ...cells);
	}

	write(line, row) {
		attribute(line, "data-kind", row.kind ?? null);
		this.columns.forEach((column, i) => {
			const given = column.cell(row);
			const value = typeof given === "object" && given !== null ? given : { text: given };
			const node = line.children[i].firstElementChild;
			text(node, String(value.text ?? ""));
			attribute(node, "title", value.title ?? null);
			attribute(node, "tabindex", value.opens ? "0" : null);
			if (value.text === UNKNOWN && (value.title ?? UNKNOWN) !== UNKNOWN)
				this.reasons.add(`${column.name}: ${value.title}`);
			attribute(line.children[i], "data-kind", value.kind ?? null);
			if (value.share !== undefined) {
				const share = `${Math.round(value.share * 1000) / 10}%`;
				if (node.style.getPropertyValue("--share") !== share)
					node.style.setProperty("--share", share);
				node.classList.add("share");
			}
		});
	}
}
