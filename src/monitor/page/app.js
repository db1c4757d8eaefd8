// Connects the parts: messages update the model, and the model updates the page.

import * as blocks from "./blocks.js";
import * as sections from "./sections.js";
import { Charts, showMarks } from "./charts.js";
import { attribute, byId, hide } from "./dom.js";
import { Head } from "./head.js";
import { Hosts, Hours, Visitors } from "./hosts.js";
import { Model, SCHEMA } from "./model.js";
import { Stream } from "./stream.js";

/** After this long without a message the figures are stale. */
const STALE_MS = 3000;
const TICK_MS = 500;
const RELOADED = "sessionizer reloaded for schema";

const model = new Model();
const head = new Head();
const begun = performance.now();
let unreadable = false;
let returned = -Infinity;
let wasStale = false;
let ticked = begun;
let charts = null;
let parts = null;

const stream = new Stream({
	snapshot(doc) {
		if (doc.schema !== SCHEMA) return unknownSchema(doc.schema);
		if (unreadable) return;
		memory((storage) => storage.removeItem(RELOADED));
		model.snapshot(doc);
		show();
	},
	change(change) {
		if (unreadable || !model.doc) return;
		model.change(change);
		show();
	},
	lost,
});

/** A page that is older than the job is loaded again; once, for it might not help. */
function unknownSchema(schema) {
	const again = memory((storage) => {
		if (storage.getItem(RELOADED) === String(schema)) return false;
		storage.setItem(RELOADED, String(schema));
		return true;
	});
	if (again) return location.reload();
	unreadable = true;
	hide(byId("main"), true);
	show();
}

/** A browser may forbid it; then nothing is remembered. */
function memory(use) {
	try {
		return use(sessionStorage);
	} catch {
		return false;
	}
}

/** The line in the charts is where the figures end. */
function lost() {
	if (!model.doc) return;
	const { at } = model.doc;
	const last = model.marks.findLast((mark) => mark.kind === "connection_lost");
	if (last?.at !== at)
		model.mark(at, "connection_lost", "this page lost the connection to the job");
}

function contact() {
	const now = performance.now();
	const arrived = stream.arrived ?? begun;
	// A tab that is shown again has old figures for a moment.
	const again = arrived < returned && now - returned < STALE_MS;
	const stale = now - arrived >= STALE_MS && !again;
	return { stale, again, silent_s: (now - arrived) / 1000, unreadable };
}

/** Now, by the clock of the job; while it is not heard, time stands still with its figures. */
function jobNow() {
	const passed = Math.min(performance.now() - (stream.arrived ?? begun), STALE_MS);
	return model.doc.at + passed;
}

function show() {
	if (document.hidden) return;
	const state = contact();
	head.show(model.doc, state);
	attribute(document.body, "data-stale", state.stale || state.again);
	if (!model.doc || unreadable) return;
	hide(byId("main"), false);
	parts ??= make();
	const { doc } = model;
	const now = jobNow();
	blocks.showJob(doc, now);
	blocks.showTiles(doc, model);
	charts.show(doc.at);
	showMarks(byId("marks"), model.marks);
	for (const part of parts) part.show(doc, now);
	sections.showBalance(doc);
	sections.showProof(doc);
	blocks.showTimes(doc.at);
}

function make() {
	charts = new Charts(byId("charts"), model);
	return [
		new blocks.Partitions(),
		new Hosts(),
		new Hours(),
		new blocks.Latest(),
		new Visitors(),
		new sections.Anomalies(),
		new sections.DeadLetters(),
		new sections.Writers(),
	];
}

/** Between messages only what depends on time changes: the sentence, once it is stale. */
function tick() {
	const late = performance.now() - ticked > 2 * TICK_MS;
	ticked = performance.now();
	// After a sleep or a freeze of this page, what has arrived meanwhile is looked at first.
	if (document.hidden || late) return;
	stream.check();
	const state = contact();
	if (state.stale && !wasStale) {
		lost();
		show();
	} else if (state.stale || !model.doc) {
		head.show(model.doc, state);
	}
	wasStale = state.stale;
}

document.addEventListener("visibilitychange", () => {
	if (document.hidden) return head.pause(model.doc);
	returned = performance.now();
	show();
});

head.show(null, contact());
stream.start();
setInterval(tick, TICK_MS);
