//! The commit operator: gathers what the frontier has passed and has it written, lane by lane.
//!
//! A *lane* is one connection to the ledger and the thread that owns it; a shard belongs to lane
//! `shard mod lanes`, a lane lives on worker `lane mod workers`. The operator hands complete
//! epochs to the thread and keeps its capability until they are durable, so a probe behind it is
//! the durable frontier (I7). The thread joins the epochs that wait for it into one transaction:
//! the slower the ledger, the larger the transactions and the fewer.
//!
//! What was committed before a restart comes again in a replay; each shard's output passes only
//! if its epoch lies behind the shard's progress (I5).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::SyncActivator;

use super::{
    Batch, DeadLetter, EpochBooks, LaneEpoch, Ledger, LedgerError, ShardOutput, ShardStep, Summary,
    Written,
};
use crate::control::{Control, Fault};
use crate::key::Shard;
use crate::plan::{Plan, ShardProgress};
use crate::time::Epoch;

/// No transaction takes further epochs once it has this many rows and dead letters.
const ROWS_PER_BATCH: usize = 500_000;
/// How long a lane waits between tries, at most.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// How a lane gets its ledger, on the lane's own thread; told the lane's number.
pub type OpenLedger = Arc<dyn Fn(u32) -> Result<Box<dyn Ledger>, LedgerError> + Send + Sync>;

/// Told when a lane has committed up to and with an epoch.
#[derive(Clone, Debug)]
pub struct Committed {
    pub lane: u32,
}

/// Builds the commit operator of this worker, with the lanes that live here.
pub fn render_commit<'scope>(
    outputs: StreamVec<'scope, Epoch, ShardOutput>,
    summaries: StreamVec<'scope, Epoch, Summary>,
    dead_letters: StreamVec<'scope, Epoch, DeadLetter>,
    plan: &Arc<Plan>,
    lanes: u32,
    open: OpenLedger,
    control: Arc<Control>,
) -> StreamVec<'scope, Epoch, Committed> {
    let scope = outputs.scope();
    let mut builder = OperatorBuilder::new("Commit".to_owned(), scope);
    let by_lane = move |shard: Shard| u64::from(shard.lane(lanes));
    let route = move |output: &ShardOutput| by_lane(output.shard);
    let mut outputs = builder.new_input(outputs, Exchange::new(route));
    let mut summaries = builder.new_input(summaries, Pipeline);
    let route = move |letter: &DeadLetter| by_lane(letter.shard);
    let mut dead_letters = builder.new_input(dead_letters, Exchange::new(route));
    let (committed_out, committed) = builder.new_output();
    let mut committed_out = OutputBuilder::from(committed_out);

    let info = builder.operator_info();
    let mut hosted: Vec<HostedLane> = (0..lanes)
        .filter(|lane| *lane as usize % scope.peers() == scope.index())
        .map(|lane| {
            let waker = scope.worker().sync_activator_for(info.address.to_vec());
            HostedLane::start(lane, lanes, plan, Arc::clone(&open), waker, Arc::clone(&control))
        })
        .collect();

    builder.build(move |_capabilities| {
        let mut stash: BTreeMap<Epoch, Stash> = BTreeMap::new();
        move |frontiers| {
            outputs.for_each_stamp(|cap, batches| {
                let epoch = *cap.least().expect("outputs travel under an epoch");
                let stash = stash.entry(epoch).or_default();
                stash.keep(|| cap.retain_least(0));
                stash.outputs.extend(batches.flat_map(std::mem::take));
            });
            summaries.for_each_stamp(|cap, batches| {
                let epoch = *cap.least().expect("summaries travel under an epoch");
                let stash = stash.entry(epoch).or_default();
                stash.keep(|| cap.retain_least(0));
                stash.summary = batches.flat_map(std::mem::take).next().or(stash.summary.take());
            });
            dead_letters.for_each_stamp(|cap, batches| {
                let epoch = *cap.least().expect("dead letters travel under an epoch");
                let stash = stash.entry(epoch).or_default();
                stash.keep(|| cap.retain_least(0));
                stash.dead_letters.extend(batches.flat_map(std::mem::take));
            });
            while let Some(entry) = stash.first_entry() {
                let epoch = *entry.key();
                if frontiers.iter().any(|frontier| frontier.less_equal(&epoch)) {
                    break;
                }
                let complete = entry.remove();
                for (lane, capability, part) in complete.split(epoch, lanes, &hosted) {
                    hosted[lane].submit(capability, part);
                }
            }
            let mut committed_out = committed_out.activate();
            for lane in &mut hosted {
                for capability in lane.acknowledged() {
                    committed_out.session(&capability).give(Committed { lane: lane.lane });
                }
            }
        }
    });
    committed
}

/// What has come of an epoch that is not complete.
#[derive(Default)]
struct Stash {
    capability: Option<Capability<Epoch>>,
    outputs: Vec<ShardOutput>,
    summary: Option<Summary>,
    dead_letters: Vec<DeadLetter>,
}

impl Stash {
    fn keep(&mut self, retain: impl FnOnce() -> Option<Capability<Epoch>>) {
        self.capability.get_or_insert_with(|| retain().expect("a message's stamp holds its epoch"));
    }

    /// The part of each hosted lane, by its place among them.
    fn split(
        self,
        epoch: Epoch,
        lanes: u32,
        hosted: &[HostedLane],
    ) -> Vec<(usize, Capability<Epoch>, LaneEpoch)> {
        let summary = self.summary.expect("every epoch has a summary on every worker");
        let capability = self.capability.expect("a stash begins with a message");
        let mut parts: BTreeMap<u32, LaneEpoch> =
            hosted.iter().map(|lane| (lane.lane, LaneEpoch::new(epoch, summary.clone()))).collect();
        for output in self.outputs {
            let part = parts.get_mut(&output.shard.lane(lanes)).expect("routed to its lane");
            part.outputs.push(output);
        }
        for letter in self.dead_letters {
            let part = parts.get_mut(&letter.shard.lane(lanes)).expect("routed to its lane");
            part.dead_letters.push(letter);
        }
        let parts = parts.into_values().enumerate();
        parts.map(|(at, part)| (at, capability.clone(), part)).collect()
    }
}

impl LaneEpoch {
    fn new(epoch: Epoch, summary: Summary) -> Self {
        LaneEpoch { epoch, summary, outputs: Vec::new(), dead_letters: Vec::new() }
    }

    fn rows(&self) -> usize {
        self.outputs.iter().map(|output| output.closed.len()).sum::<usize>()
            + self.dead_letters.len()
    }
}

/// The operator's end of a lane.
struct HostedLane {
    lane: u32,
    work: Sender<LaneEpoch>,
    done: Receiver<Epoch>,
    /// Epochs handed to the thread; their capabilities hold the durable frontier back (I7).
    pending: BTreeMap<Epoch, Capability<Epoch>>,
}

impl HostedLane {
    fn start(
        lane: u32,
        lanes: u32,
        plan: &Arc<Plan>,
        open: OpenLedger,
        waker: SyncActivator,
        control: Arc<Control>,
    ) -> Self {
        let (work, inbox) = channel();
        let (acknowledge, done) = channel();
        let books = LaneBooks::new(lane, lanes, plan);
        thread::Builder::new()
            .name(format!("lane-{lane}"))
            .spawn(move || {
                if let Err(fault) =
                    run_lane(lane, books, &open, inbox, acknowledge, waker, &control)
                {
                    control.fail(fault);
                }
            })
            .expect("a thread can be started");
        HostedLane { lane, work, done, pending: BTreeMap::new() }
    }

    fn submit(&mut self, capability: Capability<Epoch>, part: LaneEpoch) {
        self.pending.insert(part.epoch, capability);
        // A lane that is gone has failed: the run ends, and the capability stays until it does.
        let _ = self.work.send(part);
    }

    /// Capabilities of the epochs that have become durable.
    fn acknowledged(&mut self) -> Vec<Capability<Epoch>> {
        let mut capabilities = Vec::new();
        while let Ok(upto) = self.done.try_recv() {
            let later = self.pending.split_off(&(upto + 1));
            capabilities.extend(std::mem::replace(&mut self.pending, later).into_values());
        }
        capabilities
    }
}

/// The thread of a lane: takes what waits, commits it, says so; until the operator is gone.
fn run_lane(
    lane: u32,
    mut books: LaneBooks,
    open: &OpenLedger,
    inbox: Receiver<LaneEpoch>,
    acknowledge: Sender<Epoch>,
    waker: SyncActivator,
    control: &Control,
) -> Result<(), Fault> {
    let mut link = Link { lane, open, ledger: None, control, failing_since: None };
    while let Ok(first) = inbox.recv() {
        let mut run = vec![first];
        while run.iter().map(LaneEpoch::rows).sum::<usize>() < ROWS_PER_BATCH {
            match inbox.try_recv() {
                Ok(next) => run.push(next),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        let upto = run.last().expect("a run is not empty").epoch;
        if let Some(batch) = books.enter(run) {
            match link.commit(&batch)? {
                Some(written) => {
                    control.gauges.rows.fetch_add(written.rows, Relaxed);
                    control.gauges.late.fetch_add(written.late, Relaxed);
                    control.gauges.commits.fetch_add(1, Relaxed);
                }
                None => return Ok(()), // The run ends; what is not committed is read again.
            }
        }
        if acknowledge.send(upto).is_err() {
            return Ok(());
        }
        let _ = waker.activate(); // Fails only when the worker is gone.
    }
    Ok(())
}

/// A lane's way to its ledger: retries what can heal, and finds out what a lost reply meant.
struct Link<'a> {
    lane: u32,
    open: &'a OpenLedger,
    ledger: Option<Box<dyn Ledger>>,
    control: &'a Control,
    failing_since: Option<std::time::Instant>,
}

impl Link<'_> {
    /// Commits a batch, however long it takes; `None` if the run ends first.
    fn commit(&mut self, batch: &Batch) -> Result<Option<Written>, Fault> {
        let mut backoff = Duration::from_millis(50);
        let mut unsure = false;
        loop {
            match self.attempt(batch, unsure) {
                Ok(written) => {
                    self.healed();
                    return Ok(Some(written));
                }
                Err(LedgerError::Fatal(fault)) => return Err(fault),
                Err(LedgerError::Retry(why)) => {
                    unsure = true;
                    self.ledger = None;
                    self.ails(&why);
                }
            }
            let until = std::time::Instant::now() + backoff;
            while std::time::Instant::now() < until {
                if self.control.failed() || self.control.abandoned() {
                    return Ok(None);
                }
                thread::sleep(Duration::from_millis(10));
            }
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// One try. After a failure it is not known whether the last one went in: its reply may have
    /// been lost. The shards' progress tells: one transaction moves all of them, or none.
    fn attempt(&mut self, batch: &Batch, unsure: bool) -> Result<Written, LedgerError> {
        if self.ledger.is_none() {
            self.ledger = Some((self.open)(self.lane)?);
        }
        let ledger = self.ledger.as_mut().expect("just opened");
        if unsure {
            let shards: Vec<Shard> = batch.steps.iter().map(|step| step.shard).collect();
            let progress = ledger.progress(&shards)?;
            if batch.steps.iter().zip(&progress).all(|(step, epoch)| step.to.epoch == *epoch) {
                log::info!("lane {}: the commit whose reply was lost had gone in", self.lane);
                return Ok(batch.written());
            }
        }
        ledger.commit(batch)
    }

    fn ails(&mut self, why: &str) {
        let since = *self.failing_since.get_or_insert_with(|| {
            log::warn!("lane {}: cannot commit, will keep trying: {why}", self.lane);
            std::time::Instant::now()
        });
        log::debug!("lane {}: failing for {:?}: {why}", self.lane, since.elapsed());
    }

    fn healed(&mut self) {
        if let Some(since) = self.failing_since.take() {
            log::info!("lane {}: commits again, after {:.1?}", self.lane, since.elapsed());
        }
    }
}

impl Batch {
    /// What a commit of it writes.
    pub fn written(&self) -> Written {
        let late = self.closed.iter().filter(|closed| closed.late).count() as u64;
        Written { rows: self.closed.len() as u64 - late, late }
    }
}

/// The books of a lane's shards: what has passed, and the sums that go with it.
struct LaneBooks {
    shards: BTreeMap<Shard, ShardProgress>,
}

impl LaneBooks {
    fn new(lane: u32, lanes: u32, plan: &Plan) -> Self {
        let shards = (0..plan.shards()).map(Shard).filter(|shard| shard.lane(lanes) == lane);
        let shards = shards.map(|shard| (shard, plan.progress[shard.0 as usize])).collect();
        LaneBooks { shards }
    }

    /// Enters a run of epochs and gives what of it has to be written; `None` if all of it passed
    /// before a restart, or no shard belongs to this lane.
    fn enter(&mut self, run: Vec<LaneEpoch>) -> Option<Batch> {
        let before = self.shards.clone();
        let mut batch = Batch::default();
        for part in run {
            self.enter_epoch(part, &mut batch);
        }
        for (shard, to) in &self.shards {
            let from = before[shard].epoch;
            if to.epoch > from {
                batch.steps.push(ShardStep { shard: *shard, from, to: *to });
            }
        }
        (!batch.steps.is_empty()).then_some(batch)
    }

    fn enter_epoch(&mut self, part: LaneEpoch, batch: &mut Batch) {
        let epoch = part.epoch;
        for output in part.outputs {
            let books = self.shards.get_mut(&output.shard).expect("a shard of this lane");
            if epoch <= books.epoch {
                continue; // I5: it passed before the restart.
            }
            let closed: u64 = output.closed.iter().map(|closed| closed.span.count).sum();
            books.closed += closed;
            books.open = output.open_records;
            batch.closed.extend(output.closed);
            if let Some(bytes) = output.snapshot {
                batch.snapshots.insert(output.shard, (epoch, bytes));
            }
        }
        for letter in part.dead_letters {
            let books = self.shards.get_mut(&letter.shard).expect("a shard of this lane");
            if epoch > books.epoch {
                books.dead += 1;
                batch.dead_letters.push((epoch, letter));
            }
        }
        let mut books =
            EpochBooks { epoch, summary: part.summary, shards: 0, closed: 0, open: 0, dead: 0 };
        for progress in self.shards.values_mut().filter(|progress| epoch > progress.epoch) {
            progress.epoch = epoch;
            books.shards += 1;
            books.closed += progress.closed;
            books.open += progress.open;
            books.dead += progress.dead;
        }
        if books.shards > 0 {
            batch.books.push(books);
        }
    }
}
