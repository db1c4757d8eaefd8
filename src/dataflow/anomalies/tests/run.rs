//! A run of the detectors in memory: what happens, what the writers commit of it, and the workers
//! that are fed with that.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use differential_dataflow::input::Input as _;
use sessionizer_core::anomaly::{Anomaly, DetectorBounds, Kind, OpenReport};
use sessionizer_core::key::Key;
use sessionizer_core::session::Span;
use sessionizer_core::time::{Epoch, EventTime};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::InputHandle;
use timely::dataflow::operators::Input;
use timely::worker::Worker;

use crate::commands::produce::generate::random::Random;
use crate::dataflow::anomalies::publish::Published;
use crate::dataflow::anomalies::{AnomaliesConfig, render_anomalies};
use crate::dataflow::messages::Committed;
use crate::dataflow::statistics::operator::render_window;
use crate::dataflow::statistics::quota::{Quotas, Share};
use crate::dataflow::statistics::rows::{Before, WindowInput};
use crate::dataflow::statistics::sums::Row;
use crate::dataflow::statistics::watermarks::render_watermarks;
use crate::dataflow::statistics::window::Bounds;
use crate::shared::thresholds::sensitive;

pub(super) const GAP_MS: i64 = 300_000;
pub(super) const EPOCHS: u64 = 240;
pub(super) const EPOCH_MS: u64 = 1_000;
/// More than there are.
pub(super) const HOSTS: usize = 1_000;
/// Those that are a function of the table: all but the clocks.
pub(super) const KINDS: [Kind; 7] = [
    Kind::Burst,
    Kind::Marathon,
    Kind::Repeat,
    Kind::Network,
    Kind::Surge,
    Kind::Fall,
    Kind::Singles,
];

/// What happens: the rows of each epoch and its watermark.
pub(super) type World = Vec<(Vec<Row>, EventTime)>;

pub(super) fn world(seed: u64) -> World {
    let mut random = Random::new(seed, 1);
    let mut now_ms = 1_780_272_000_000 + random.below(86_400_000) as i64;
    let mut known: Vec<Row> = Vec::new();
    let mut busy = 1;
    let mut epoch = |_| {
        now_ms += random.below(900_000) as i64;
        now_ms += if random.below(40) == 0 { random.below(20 * 3_600_000) as i64 } else { 0 };
        busy = if random.below(8) == 0 { random.below(14) } else { busy };
        // In a backlog, by days.
        let days = if random.below(60) == 0 { 1 + random.below(4) } else { 0 };
        let ago_ms = 600_000 + days * 86_400_000;
        now_ms += (days * 86_400_000) as i64;
        let mut rows = Vec::new();
        for _ in 0..if days > 0 { 700 } else { busy } {
            let host = random.pick(&["a.example", "b.example", "c.example"]);
            let end_ms = now_ms - random.below(ago_ms) as i64;
            let few = random.below(15) > 0;
            let count = 1 + random.below(if few { 4 } else { 40 });
            let short = random.below(20) > 0;
            let span_ms = random.below(if short { 100_000 } else { 2_000_000 });
            let last = EventTime::from_millis(end_ms - GAP_MS);
            let first = last.plus(if count == 1 { 0 } else { -(span_ms as i64) });
            let key = Key::new(&format!("192.0.{}.{}", random.below(12), random.below(10)), host);
            let span = Span { first, last, count };
            rows.push(Row::new(key, span, end_ms, 1));
        }
        // Late events remove a row, and may replace it with a larger one.
        if random.below(3) == 0 && !known.is_empty() {
            let recent = known.len().min(300);
            let at = known.len() - 1 - random.below(recent as u64) as usize;
            let row = known.swap_remove(at);
            let mut larger = row.clone();
            larger.span.count += 1 + random.below(9);
            rows.push(Row { diff: -1, ..row });
            if random.below(3) > 0 {
                rows.push(larger);
            }
        }
        known.extend(rows.iter().filter(|row| row.diff > 0).cloned());
        (rows, EventTime::from_millis(now_ms + 1))
    };
    (0..EPOCHS).map(&mut epoch).collect()
}

/// What the writers commit at the end of each epoch.
pub(super) type Commits = Vec<Vec<(Committed, Vec<Row>)>>;

/// Each of the writers commits its part of the rows. A single one does so after every epoch. Several
/// join up to eight epochs in a transaction, but none across the epoch `past`.
pub(super) fn commits(world: &World, writers: u32, past: Option<u64>) -> Commits {
    let mut random = Random::new(u64::from(writers), 2);
    let mut commits: Commits = vec![Vec::new(); world.len()];
    for writer in 0..writers {
        let is_mine = |row: &&Row| {
            let address = row.key.parts().0.bytes();
            address.map(u32::from).sum::<u32>() % writers == writer
        };
        let mut joined = Vec::new();
        for (at, (rows, watermark)) in world.iter().enumerate() {
            joined.extend(rows.iter().filter(is_mine).cloned());
            let is_last = at + 1 == world.len() || past == Some(at as u64 + 1);
            if writers == 1 || is_last || random.below(8) == 0 {
                let committed = Committed { writer, watermark: *watermark };
                commits[at].push((committed, std::mem::take(&mut joined)));
            }
        }
    }
    commits
}

/// Runs the detectors on what is committed. What is committed before the epoch `past` is what the
/// table had at the start. The reports on open sessions come by epoch.
pub(super) fn run(
    commits: &Commits,
    reports: &BTreeMap<u64, OpenReport>,
    workers: usize,
    past: Option<u64>,
) -> Vec<Published> {
    run_from(commits, reports, workers, (past, None))
}

/// The same; or a first start, which knows only from the epoch `empty` on that the table was empty.
pub(super) fn run_from(
    commits: &Commits,
    reports: &BTreeMap<u64, OpenReport>,
    workers: usize,
    starts: (Option<u64>, Option<u64>),
) -> Vec<Published> {
    run_within(commits, reports, (workers, HOSTS), starts)
}

/// The same, with room for so many hosts a worker.
pub(super) fn run_within(
    commits: &Commits,
    reports: &BTreeMap<u64, OpenReport>,
    (workers, hosts): (usize, usize),
    (past, empty): (Option<u64>, Option<u64>),
) -> Vec<Published> {
    let published: Arc<Mutex<Vec<Published>>> = Arc::default();
    let run = Run {
        commits: commits.clone(),
        reports: reports.clone(),
        hosts,
        past,
        empty,
        quotas: Quotas::default(),
        published: Arc::clone(&published),
    };
    let config = timely::Config::process(workers);
    let guards = timely::execute(config, move |worker| run.work(worker));
    for result in guards.expect("workers start").join() {
        result.expect("a worker does not panic");
    }
    Arc::into_inner(published).expect("all workers have ended").into_inner().expect("no panic")
}

/// What the workers of a run share.
struct Run {
    commits: Commits,
    reports: BTreeMap<u64, OpenReport>,
    hosts: usize,
    past: Option<u64>,
    empty: Option<u64>,
    quotas: Quotas,
    published: Arc<Mutex<Vec<Published>>>,
}

/// The inputs of a worker.
struct Inputs {
    rows: InputHandle<Epoch, CapacityContainerBuilder<Vec<WindowInput>>>,
    committed: InputHandle<Epoch, CapacityContainerBuilder<Vec<Committed>>>,
}

impl Run {
    /// Runs one worker, an epoch after the other.
    fn work(&self, worker: &mut Worker) {
        let place = (worker.index(), worker.peers());
        let mut inputs = self.build(worker);
        for at in 0..self.commits.len() as u64 {
            self.send(at, place, &mut inputs);
            inputs.rows.advance_to((at + 1) * EPOCH_MS);
            inputs.committed.advance_to((at + 1) * EPOCH_MS);
            for _ in 0..40 {
                worker.step();
            }
        }
        inputs.rows.close();
        inputs.committed.close();
        while worker.has_dataflows() {
            worker.step();
        }
    }

    /// Builds the watermarks, the window with its detectors, and what publishes.
    fn build(&self, worker: &mut Worker) -> Inputs {
        let (index, peers) = (worker.index(), worker.peers());
        let seen = Arc::clone(&self.published);
        let config = AnomaliesConfig {
            thresholds: sensitive(),
            kinds: KINDS.to_vec(),
            bounds: DetectorBounds { hosts: self.hosts, visitors: 1_000_000 },
            out_of_orderness_ms: 5_000,
            idle_timeout_ms: 60_000,
            on_anomalies: Arc::new(move |now| seen.lock().expect("alone").push(now.clone())),
        };
        let before = self.before();
        let reads_past = self.past.or(self.empty).is_some();
        worker.dataflow::<Epoch, _, _>(|scope| {
            let (rows, inputs) = scope.new_input::<Vec<WindowInput>>();
            let (committed_in, committed) = scope.new_input::<Vec<Committed>>();
            let watermarks = render_watermarks(committed, before, 0);
            let of_job = (index, peers);
            let quotas = &self.quotas;
            let detectors =
                Some(config.detectors(of_job, &quotas.detectors, before.first_epoch, reads_past));
            let window = (Bounds::day(1_000, 0), Share::new(&quotas.window, 0, peers), EPOCH_MS);
            let figures = Arc::default();
            let (_, detected) =
                render_window(inputs, watermarks.clone(), window, reads_past, detectors, figures);
            let (_, no_clocks) = scope.new_collection::<Anomaly, i64>();
            let lengths = (EPOCH_MS, GAP_MS);
            render_anomalies(detected, no_clocks, watermarks, config, lengths);
            Inputs { rows, committed: committed_in }
        })
    }

    fn before(&self) -> Before {
        let commits = self.commits.iter().flatten().map(|(committed, _)| committed);
        let writers = commits.map(|committed| committed.writer + 1).max();
        // What the last replayed epoch had reached.
        let of_past = self.commits.iter().take(self.past.unwrap_or(0) as usize).flatten();
        let watermark = of_past.map(|(committed, _)| committed.watermark).max();
        Before {
            horizon: EventTime::NEVER,
            first_epoch: self.past.unwrap_or(0) * EPOCH_MS,
            watermark: watermark.unwrap_or(EventTime::NEVER),
            writers: writers.expect("something is committed"),
        }
    }

    /// Sends what a worker has of an epoch.
    fn send(&self, at: u64, (index, peers): (usize, usize), inputs: &mut Inputs) {
        let Inputs { rows: inputs, committed } = inputs;
        let of_epoch = &self.commits[at as usize];
        let rows = of_epoch.iter().flat_map(|(_, rows)| rows);
        let mine = rows.skip(index).step_by(peers).cloned().map(WindowInput::Row);
        mine.for_each(|row| inputs.send(row));
        // Once the epochs of the past have been sent, that was all that the table had.
        if self.past.or(self.empty) == Some(at) && index == 0 {
            let horizon = EventTime::from_millis(1);
            let closed = |worker| WindowInput::Horizon { worker, horizon };
            let closed = (0..peers).map(closed).filter(|_| self.past.is_some());
            closed.for_each(|closed| inputs.send(closed));
            let whole = |worker| WindowInput::Past { worker, whole: true };
            (0..peers).map(whole).for_each(|past| inputs.send(past));
        }
        // Each session is kept by one worker.
        let report = self.reports.get(&at).filter(|_| index == peers - 1);
        report.into_iter().for_each(|report| inputs.send(WindowInput::open(report.clone())));
        for (of_writer, _) in of_epoch {
            if of_writer.writer as usize % peers == index {
                committed.send(*of_writer);
            }
        }
    }
}
