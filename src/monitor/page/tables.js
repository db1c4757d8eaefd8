// Tables whose rows are kept and only written where something has changed. On a narrow screen the
// stylesheet turns each row into a card; the roles keep it a table for those who listen.

import { attribute, children, el, text } from "./dom.js";
import { UNKNOWN, known, whole } from "./format.js";
import { why } from "./model.js";

/** A figure, or "–" with its reason as what is shown on hovering. */
export const or = (block, field, say) =>
	known(block?.[field]) ? say(block[field]) : { text: UNKNOWN, title: why(block, field) };

export const ago = (now, at) => (known(at) ? `${whole((now - at) / 1000)} ago` : UNKNOWN);

/**
 * A column: {name, cell, number, foreign, head}. `cell(row)` gives a text, or
 * {text, title, kind, share}.
 * A foreign text came from an event: it is isolated from the direction of what is around it.
 */
export class Table {
	constructor(place, label, columns) {
		this.columns = columns;
		const heads = columns.map((column) =>
			el(
				"th",
				{ role: "columnheader", scope: "col", class: column.number ? "number" : null },
				column.name,
			),
		);
		this.body = el("tbody", { role: "rowgroup" });
		this.nothing = el("p", { class: "nothing" });
		this.table = el(
			"table",
			{ role: "table", "aria-label": label },
			el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...heads)),
			this.body,
		);
		place.replaceChildren(this.table, this.nothing);
	}

	/** Shows the rows; or, if there are none, says why. */
	show(rows, nothing) {
		children(this.body, rows.length, () => this.row());
		rows.forEach((row, i) => this.write(this.body.children[i], row));
		this.table.hidden = rows.length === 0;
		this.nothing.hidden = rows.length > 0;
		text(this.nothing, rows.length ? "" : nothing);
	}

	row() {
		const cells = this.columns.map((column) => {
			const value = el(column.foreign ? "bdi" : "span");
			const names = [
				column.number && "number",
				column.foreign && "foreign",
				column.head && "head",
			];
			return el(
				"td",
				{
					role: column.head ? "rowheader" : "cell",
					"data-name": column.name,
					class: names.filter(Boolean).join(" ") || null,
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
