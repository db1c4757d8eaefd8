// How numbers, durations and times are written. The words are those of the status line
// (src/ui/text.rs). Whatever is not a finite number is "–", never NaN, undefined or 0.

export const UNKNOWN = "–";

export const known = (n) => typeof n === "number" && Number.isFinite(n);

/** 1,234,567 */
export function count(n) {
	if (!known(n)) return UNKNOWN;
	const whole = String(Math.abs(Math.round(n)));
	const sign = Math.round(n) < 0 ? "−" : "";
	return sign + whole.replace(/\B(?=(\d{3})+$)/g, ",");
}

/** 1 row, 1,234 rows */
export const plural = (n, what) => `${count(n)} ${what}${Math.round(n) === 1 ? "" : "s"}`;

/** In few characters: 0.4, 12, 9,876, 123 k, 1.2 M */
export function short(n) {
	if (!known(n)) return UNKNOWN;
	const size = Math.abs(n);
	const units = { G: [1e9, 1e9], M: [1e6, 1e6], k: [1e5, 1e3] };
	for (const [unit, [from, by]] of Object.entries(units))
		if (size >= from) return `${tenths(n / by)} ${unit}`;
	if (size > 0 && size < 0.05) return "< 0.1";
	return size < 10 ? String(Math.round(n * 10) / 10) : count(n);
}

/** One place after the point, where that says something. */
const tenths = (n) => (Math.abs(n) < 10 ? n.toFixed(1).replace(/\.0$/, "") : n.toFixed(0));

/** A measured time in its two largest units: < 0.1 s, 0.4 s, 12 s, 3 min 20 s, 2 h 5 min, 3 d 4 h */
export function duration(seconds) {
	if (!known(seconds)) return UNKNOWN;
	const s = Math.max(0, seconds);
	if (s < 10) return `${short(s)} s`;
	const whole = Math.floor(s);
	const two = (size, unit, part, smaller) => {
		const small = Math.floor((whole % size) / part);
		return `${count(Math.floor(whole / size))} ${unit}${small ? ` ${small} ${smaller}` : ""}`;
	};
	if (whole < 60) return `${whole} s`;
	if (whole < 3600) return two(60, "min", 1, "s");
	return whole < 86400 ? two(3600, "h", 60, "min") : two(86400, "d", 3600, "h");
}

/** The same without fractions, which change too fast to be read. */
export const whole = (seconds) => (known(seconds) ? duration(Math.floor(seconds)) : UNKNOWN);

/** 900 B, 12 KiB, 1.5 GiB */
export function bytes(n) {
	if (!known(n)) return UNKNOWN;
	for (const [unit, size] of Object.entries({ GiB: 2 ** 30, MiB: 2 ** 20, KiB: 2 ** 10 }))
		if (n >= size) return `${tenths(n / size)} ${unit}`;
	return `${Math.round(n)} B`;
}

/** 12 %, 0.3 %, < 0.1 % */
export function percent(part, all) {
	if (!known(part) || !known(all) || all <= 0) return UNKNOWN;
	const share = (part / all) * 100;
	if (share > 0 && share < 0.1) return "< 0.1 %";
	return `${share < 10 ? Math.round(share * 10) / 10 : Math.round(share)} %`;
}

const valid = (ms) => known(ms) && Math.abs(ms) <= 8.64e15;

/** 12:04:11, in UTC */
export const clock = (ms) => (valid(ms) ? new Date(ms).toISOString().slice(-13, -5) : UNKNOWN);

/** 12:04:11 if that is within half a day of now, otherwise 2026-11-25 12:04:11; in UTC */
export function moment(ms, now) {
	if (!valid(ms)) return UNKNOWN;
	const iso = new Date(ms).toISOString();
	const day = iso.slice(0, iso.indexOf("T"));
	const today = valid(now) && Math.abs(now - ms) < 86_400_000 / 2;
	return today ? clock(ms) : `${day.replace(/^\+0*/, "")} ${clock(ms)}`;
}

/** 12:00 if that is of the same day as now, otherwise 11-25 12:00; in UTC */
export function hour(ms, now) {
	if (!valid(ms) || !valid(now)) return UNKNOWN;
	const [iso, today] = [ms, now].map((at) => new Date(at).toISOString());
	const from = iso.slice(0, -14) === today.slice(0, -14) ? -13 : -19;
	return iso.slice(from, -8).replace("T", " ");
}

/** A time of the reader's own place, for a tooltip. */
export const local = (ms) => (valid(ms) ? `${new Date(ms).toLocaleString()} local time` : "");

/** At most this many characters; what is cut ends in an ellipsis. Never splits a character. */
export function cut(text, length) {
	const letters = Array.from(String(text));
	return letters.length <= length
		? letters.join("")
		: `${letters.slice(0, length - 1).join("")}…`;
}
