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
	const units = [
		[1e9, "G"],
		[1e6, "M"],
		[1e5, "k"],
	];
	for (const [limit, unit] of units) {
		if (size >= limit) {
			const scaled = n / (unit === "k" ? 1e3 : limit);
			return `${tenths(scaled)} ${unit}`;
		}
	}
	if (size > 0 && size < 0.05) return "< 0.1";
	return size < 10 ? String(Math.round(n * 10) / 10) : count(n);
}

/** One place after the point, where that says something. */
const tenths = (n) => (Math.abs(n) < 10 ? n.toFixed(1).replace(/\.0$/, "") : n.toFixed(0));

/** A measured time in its two largest units: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min, 3 d 4 h */
export function duration(seconds) {
	if (!known(seconds)) return UNKNOWN;
	const s = Math.max(0, seconds);
	if (s < 10) return `${Math.round(s * 10) / 10} s`;
	const whole = Math.floor(s);
	const two = (large, unit, small, smaller) =>
		small ? `${count(large)} ${unit} ${small} ${smaller}` : `${count(large)} ${unit}`;
	if (whole < 60) return `${whole} s`;
	if (whole < 3600) return two(Math.floor(whole / 60), "min", whole % 60, "s");
	if (whole < 86400)
		return two(Math.floor(whole / 3600), "h", Math.floor((whole % 3600) / 60), "min");
	return two(Math.floor(whole / 86400), "d", Math.floor((whole % 86400) / 3600), "h");
}

/** The same without fractions, which change too fast to be read. */
export const whole = (seconds) => (known(seconds) ? duration(Math.floor(seconds)) : UNKNOWN);

/** 900 B, 12 KiB, 1.5 GiB */
export function bytes(n) {
	if (!known(n)) return UNKNOWN;
	for (const [size, unit] of [
		[2 ** 30, "GiB"],
		[2 ** 20, "MiB"],
		[2 ** 10, "KiB"],
	]) {
		if (n >= size) {
			return `${tenths(n / size)} ${unit}`;
		}
	}
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

/** 12:04:11 if that is within a day of now, otherwise 2026-11-25 12:04:11; in UTC */
export function moment(ms, now) {
	if (!valid(ms)) return UNKNOWN;
	const iso = new Date(ms).toISOString();
	const day = iso.slice(0, iso.indexOf("T"));
	const today = valid(now) && Math.abs(now - ms) < 86_400_000 / 2;
	return today ? clock(ms) : `${day.replace(/^\+0*/, "")} ${clock(ms)}`;
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
