// The sentence: what the job says it does, or that it cannot be reached.

import { attribute, byId, icon, text } from "./dom.js";
import { clock, whole } from "./format.js";

const WORDS = { good: "OK", busy: "Busy", trouble: "Trouble", lost: "No contact" };

/** What it means for whoever is on call. The sentence itself comes from the job. */
const MEANS = {
	connecting: "The job has just started. Nothing to do yet.",
	loading: "The start loads the sessions that were open. Nothing to do.",
	replaying: "The start rereads what was not committed before. Nothing to do.",
	catching_up: "Nothing to do. What is in the table is right; the rest is being read.",
	up_to_date: "Nothing to do.",
	quiet: "Nothing is left to read. If events should arrive, look at what sends them.",
	held_back: "Sessions stay open until this partition moves on: see what writes to it.",
	waiting_for_kafka:
		"Nothing is lost. Reading resumes when Kafka answers. If it does not, look at the brokers.",
	waiting_for_postgres:
		"Nothing is lost. The job resumes when Postgres answers. If it does not, look at the database.",
	waiting: "Nothing is lost. The job resumes by itself when this is over.",
	stopping: "What was read is being committed.",
	stopped: "What was read is committed. The next start continues from there.",
	uncommitted: "Nothing is lost: the next start rereads what is not committed.",
	fenced: "This instance writes nothing any more. Find out who started the other one.",
	failed: "Start it again when the cause is removed; its log says more.",
};

/** The icon of the tab: its colour, and what is drawn on it. */
const TABS = {
	good: ["#1a8f5a", "M4.5 8.2l2.4 2.4 4.6-5"],
	busy: ["#2a6fdb", "M8 4v4l3 2"],
	trouble: ["#c8281f", "M8 3.5v5.5M8 11v1.5"],
	lost: ["#75708a", "M5 5l6 6M11 5l-6 6"],
};

/**
 * What to say now. `contact` is {stale, again, silent_s, unreadable}; `doc` is the last document,
 * if there is one.
 */
export function sentence(doc, contact) {
	if (contact.unreadable) {
		return {
			tone: "lost",
			text: "this page cannot read what the job says",
			state: "unreadable",
			means: "The page and the job have different versions. Reload the page without the cache.",
		};
	}
	if (!doc) {
		if (!contact.stale)
			return { tone: "busy", text: "connecting to the job", state: "first", means: "" };
		return {
			tone: "lost",
			text: `no answer from the job for ${whole(contact.silent_s)}`,
			state: "unreached",
			means: "It may not be running, or the network is down. This page tries again every second.",
		};
	}
	if (contact.again) {
		const text = `connecting again; figures are of ${clock(doc.at)}`;
		return { tone: "busy", text, state: "again", means: "" };
	}
	const { state, tone, cause } = doc.sentence;
	if (!contact.stale)
		return {
			...doc.sentence,
			tone: tone in WORDS ? tone : "busy",
			means: MEANS[state] ?? "",
		};
	const ended = {
		stopped: "the job has stopped",
		stopping: "the job was stopping",
		uncommitted: "the job has stopped without a last commit",
		fenced: "another instance took over",
		failed: "the job has failed",
	}[state];
	return {
		tone: ["uncommitted", "fenced", "failed"].includes(state) ? "trouble" : "lost",
		state: `lost_${state}`,
		cause: ended && cause,
		text:
			`${ended ? `${ended}, last heard` : "lost the job"} ${whole(contact.silent_s)} ago; ` +
			`figures are of ${clock(doc.at)}`,
		means: ended
			? MEANS[state]
			: "It has ended, or the network is down. This page tries again every second.",
	};
}

/** A job that has stopped is not busy, and not missed. */
const word = ({ tone, state }) => (/^(lost_)?stopped$/.test(state) ? "Stopped" : WORDS[tone]);

export class Head {
	constructor() {
		this.announced = null;
	}

	show(doc, contact) {
		const now = sentence(doc, contact);
		const head = byId("head");
		attribute(head, "data-tone", now.tone);
		attribute(head, "data-state", now.state);
		icon(byId("icon"), now.tone);
		text(byId("word"), word(now));
		text(byId("text"), now.text);
		text(byId("means"), now.means);
		const cause = now.cause && !now.text.includes(now.cause) ? now.cause : "";
		text(byId("cause"), cause);
		byId("cause").hidden = !cause;
		text(byId("title"), doc ? `${now.text} · ${doc.job.name}` : `${now.text} · sessionizer`);
		favicon(now.tone);
		this.announce(now);
	}

	/** Screen readers announce a new state, not each second of it. */
	announce(now) {
		if (this.announced === now.state) return;
		this.announced = now.state;
		text(byId("announce"), `${word(now)}: ${now.text}`);
	}

	/** A hidden page gets no messages, so its title must not claim that all is well. */
	pause(doc) {
		text(byId("title"), `not watching · ${doc?.job.name ?? "sessionizer"}`);
		favicon("lost");
	}
}

let shown = null;

function favicon(tone) {
	if (shown === tone) return;
	shown = tone;
	const [color, path] = TABS[tone];
	const svg =
		'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">' +
		`<circle cx="8" cy="8" r="8" fill="${color}"/>` +
		`<path d="${path}" stroke="#fff" stroke-width="2" fill="none"/></svg>`;
	attribute(byId("favicon"), "href", `data:image/svg+xml,${encodeURIComponent(svg)}`);
}
