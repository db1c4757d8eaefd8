// The connection to the job: a snapshot at each connection, then changes. It reports messages and
// lost connections, and disconnects while the page is hidden.

const AGAIN_MS = 1000;
/** A connection that is silent for this long is given up. */
const SILENT_MS = 10_000;
/** How often to ask for the document if there is no stream (too many pages, or a proxy). */
const POLL_MS = 2000;
const POLLS = 15;

export class Stream {
	/** on: {snapshot(doc), change(change), lost()} */
	constructor(on) {
		this.on = on;
		this.source = null;
		this.timer = null;
		this.live = false;
		this.arrived = null;
		this.polls = 0;
	}

	start() {
		document.addEventListener("visibilitychange", () => this.look());
		window.addEventListener("pageshow", (event) => event.persisted && this.look());
		window.addEventListener("pagehide", () => this.close());
		this.look();
	}

	/** A hidden page disconnects; once shown again, it begins with a new snapshot. */
	look() {
		this.close();
		if (!document.hidden) this.open();
	}

	open() {
		this.close();
		this.opened = performance.now();
		const source = new EventSource("events");
		this.source = source;
		const heard = (take) => (event) => {
			if (this.source !== source) return;
			let data;
			try {
				data = JSON.parse(event.data);
			} catch {
				this.again();
				return;
			}
			this.arrive();
			this.polls = 0;
			take(data);
		};
		source.addEventListener(
			"snapshot",
			heard((doc) => {
				this.live = true;
				this.on.snapshot(doc);
			}),
		);
		source.addEventListener(
			"change",
			heard((change) => this.live && this.on.change(change)),
		);
		source.addEventListener("error", () => this.source === source && this.again());
	}

	arrive() {
		this.arrived = performance.now();
	}

	close() {
		this.source?.close();
		this.source = null;
		this.live = false;
		clearTimeout(this.timer);
		this.timer = null;
	}

	again() {
		if (this.live) this.on.lost();
		this.close();
		this.timer = setTimeout(() => this.poll(), AGAIN_MS);
	}

	/**
	 * Asks for the document until the job answers, and then for the stream at once. Where only the
	 * stream is refused, it asks for the document now and then, and more rarely for the stream.
	 */
	async poll() {
		this.timer = null;
		if (document.hidden) return;
		let wait = POLL_MS;
		try {
			const limit = AbortSignal.timeout(SILENT_MS);
			const answer = await fetch("status", { cache: "no-store", signal: limit });
			if (!answer.ok) throw new Error(`the job answered ${answer.status}`);
			const doc = await answer.json();
			if (this.busy()) return;
			this.arrive();
			this.on.snapshot(doc);
			if (this.polls++ % POLLS === 0) return this.open();
		} catch {
			if (this.busy()) return;
			this.polls = 0;
			wait = AGAIN_MS;
		}
		this.timer = setTimeout(() => this.poll(), wait);
	}

	/** Whether the page has gone on without the answer that it has been waiting for. */
	busy() {
		return this.source || this.timer || document.hidden;
	}

	/** Called every second: gives up what has been silent for too long. */
	check() {
		if (!this.source) return;
		const last = Math.max(this.arrived ?? 0, this.opened);
		if (performance.now() - last > SILENT_MS) this.again();
	}
}
