//! Postgres in memory: it changes only in whole transactions, and checks the contract after each
//! (`contract`). `apply` is what a commit changes, and `stopped` what commands change in between.

mod apply;
mod contract;
mod stopped;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use sessionizer::dataflow::messages::DeadLetter;
use sessionizer::dataflow::ports::{Batch, Ledger, LedgerError, Outcome};
use sessionizer::ledger::{NamedBinding, NamedEpoch, RecoveredState};
use sessionizer_core::binding::{Binding, Late, Offset, Partition, RecordRules, Status};
use sessionizer_core::event::Reason;
use sessionizer_core::fault::Fault;
use sessionizer_core::key::{Key, Shard, stable_hash};
use sessionizer_core::plan::{Fence, ShardProgress};
use sessionizer_core::session::correction::{Correction, correct};
use sessionizer_core::session::snapshot;
use sessionizer_core::session::{SessionTable, Span, merge_touching};
use sessionizer_core::time::{Epoch, EventTime, Gap};

use crate::clocks::SimClocks;
use crate::rng::Rng;
use crate::sabotage::{self, Sabotage};
use crate::topic::Topic;
use contract::Sessions;
use stopped::{Forgotten, Request};

/// The session gap of all schedules.
pub const GAP_MS: i64 = 100;

pub fn gap() -> Gap {
    Gap::from_millis(GAP_MS).expect("valid")
}

#[derive(Clone, Debug)]
struct Totals {
    watermark: EventTime,
    rules: Option<RecordRules>,
    shards_done: u32,
    closed: u64,
    open: u64,
    dead: u64,
}

/// Everything durable.
#[derive(Clone, Debug)]
pub struct Store {
    topic: Arc<Mutex<Topic>>,
    clocks: Arc<SimClocks>,
    /// What the last start has written: its generation, and a number that no other start has.
    fence: Fence,
    /// How many starts there were. Going back does not change it.
    starts: i64,
    /// Whether the database has gone back to an earlier state since the last start.
    gone_back: bool,
    progress: Vec<ShardProgress>,
    epochs: BTreeMap<Epoch, Totals>,
    bindings: BTreeMap<(Epoch, Partition), Binding>,
    /// Everything that was ever bound, even if it has been trimmed. For the checks only.
    history: BTreeMap<(Epoch, Partition), Binding>,
    /// The rules with which every epoch was ever bound. For the checks only.
    rules: BTreeMap<Epoch, RecordRules>,
    watermarks: BTreeMap<Epoch, EventTime>,
    snapshots: Vec<(Epoch, Vec<u8>)>,
    table: BTreeMap<Key, Vec<Span>>,
    dead_letters: BTreeMap<(Partition, Offset), DeadLetter>,
    /// The dead letters that are events, dropped because they came too late.
    dropped: BTreeSet<(Partition, Offset)>,
    /// Who was forgotten, for an audit, and by shard how many records that were.
    noted: Vec<Forgotten>,
    forgotten_records: Vec<u64>,
    /// Everybody who was ever forgotten, the dead letters that are in sessions now, with the epoch
    /// in which they came in, and what was asked for after which epoch. For the checks only.
    forgotten: Vec<Forgotten>,
    redriven: BTreeMap<(Partition, Offset), Epoch>,
    requests: Vec<(Epoch, Request)>,
    /// Whether the payloads of dead letters are cut, how many of those were merged again, and how
    /// many payloads were removed.
    pub cuts: bool,
    pub read_again: u64,
    pub blanked: u64,
    rng: Rng,
    /// Whether commits may fail. False at the very end.
    pub faulty: bool,
    /// Nobody gets an answer.
    pub away: bool,
    /// This process of the job gets no answer.
    pub cut_off: Option<usize>,
    pub lost_replies: u64,
    pub late: u64,
    pub commits: u64,
    sabotage: Option<Sabotage>,
    /// The traces of a broken rule: a commit in flight, ends that were only tried.
    under_way: Option<Batch>,
    tried: BTreeMap<Shard, Epoch>,
    grace: bool,
}

impl Store {
    pub fn new(topic: Arc<Mutex<Topic>>, clocks: Arc<SimClocks>, shards: u32, rng: Rng) -> Self {
        let sabotage = topic.lock().expect("one at a time").sabotage;
        let empty = snapshot::encode(&SessionTable::new(gap(), EventTime::NEVER));
        let totals = Totals {
            watermark: EventTime::NEVER,
            rules: None,
            shards_done: shards,
            closed: 0,
            open: 0,
            dead: 0,
        };
        Store {
            topic,
            clocks,
            fence: Fence::default(),
            starts: 0,
            gone_back: false,
            progress: vec![ShardProgress::default(); shards as usize],
            epochs: BTreeMap::from([(0, totals)]),
            bindings: BTreeMap::new(),
            history: BTreeMap::new(),
            rules: BTreeMap::new(),
            watermarks: BTreeMap::new(),
            snapshots: vec![(0, empty); shards as usize],
            table: BTreeMap::new(),
            dead_letters: BTreeMap::new(),
            dropped: BTreeSet::new(),
            noted: Vec::new(),
            forgotten_records: vec![0; shards as usize],
            forgotten: Vec::new(),
            redriven: BTreeMap::new(),
            requests: Vec::new(),
            cuts: false,
            read_again: 0,
            blanked: 0,
            rng,
            faulty: true,
            away: false,
            cut_off: None,
            lost_replies: 0,
            late: 0,
            commits: 0,
            sabotage,
            under_way: None,
            tried: BTreeMap::new(),
            grace: false,
        }
    }

    fn breaks(&self, rule: Sabotage) -> bool {
        self.sabotage == Some(rule)
    }

    /// Takes the fence and reads what is durable.
    pub fn start(&mut self) -> RecoveredState {
        self.take_fence();
        let base = self.base();
        let named = |binding: &Binding| NamedBinding {
            topic: "t".to_owned(),
            partition: binding.partition.number,
            topic_id: None,
            start: binding.start,
            end: binding.end,
            promise: binding.promise,
            status: binding.status,
            quiet_since: binding.quiet_since,
            records: binding.records,
            dead: binding.dead,
            clock_ms: binding.clock_ms,
        };
        let mut last: BTreeMap<Partition, NamedBinding> = BTreeMap::new();
        for ((_, partition), binding) in self.bindings.range(..(base + 1, FIRST)) {
            last.insert(*partition, named(binding));
        }
        let replay = self.epochs.range(base + 1..).map(|(epoch, totals)| NamedEpoch {
            epoch: *epoch,
            watermark: totals.watermark,
            rules: totals.rules.filter(|_| self.sabotage != Some(Sabotage::RulesForgotten)),
            bindings: self
                .bindings
                .range((*epoch, FIRST)..(*epoch + 1, FIRST))
                .map(|(_, binding)| named(binding))
                .collect(),
        });
        RecoveredState {
            fence: self.fence,
            progress: self.progress.clone(),
            base: NamedEpoch {
                epoch: base,
                watermark: self.base_watermark(base),
                rules: None,
                bindings: last.into_values().collect(),
            },
            replay: replay.collect(),
        }
    }

    fn take_fence(&mut self) {
        self.starts += 1;
        self.fence = Fence { generation: self.fence.generation + 1, run: self.starts };
        self.gone_back = false;
        self.grace = true;
    }

    pub fn snapshot(&self, shard: Shard) -> (Epoch, SessionTable) {
        let (epoch, bytes) = &self.snapshots[shard.0 as usize];
        let table = snapshot::decode(bytes, gap()).expect("as it was written");
        (*epoch, sabotage::table(self.sabotage, table))
    }

    fn base_watermark(&self, base: Epoch) -> EventTime {
        match self.epochs.get(&base) {
            Some(totals) => totals.watermark,
            None => {
                assert!(self.sabotage.is_some(), "the epoch of the oldest snapshot is kept");
                EventTime::NEVER
            }
        }
    }

    /// The epoch up to which every shard is durable.
    pub fn durable_epoch(&self) -> Epoch {
        self.progress.iter().map(|shard| shard.epoch).min().expect("shards")
    }

    fn base(&self) -> Epoch {
        self.snapshots.iter().map(|(epoch, _)| *epoch).min().expect("shards")
    }

    /// The table in the oracle's format.
    pub fn rows(&self) -> Sessions {
        sessions_of(&self.table)
    }

    pub fn dead(&self) -> u64 {
        self.dead_letters.len() as u64
    }

    /// How often each row is in the table: once.
    pub fn table(&self) -> BTreeMap<(Key, Span), i64> {
        let mut table = BTreeMap::new();
        for (key, rows) in &self.table {
            rows.iter().for_each(|row| *table.entry((key.clone(), *row)).or_default() += 1);
        }
        table
    }

    fn commit(
        &mut self,
        batch: &Batch,
        outcome: &mut Outcome,
        fence: Fence,
    ) -> Result<(), LedgerError> {
        for step in &batch.steps {
            self.tried.insert(step.shard, step.to.epoch);
            let fits = self.progress[step.shard.0 as usize].epoch == step.from
                || self.breaks(Sabotage::NoIdempotence)
                || self.breaks(Sabotage::ProgressForgotten);
            if !self.is_mine(fence) && !self.spares(fence) || !fits {
                let known = !self.is_mine(fence) || self.gone_back;
                assert!(known, "I5: {step:?} is not the next step");
                return Err(self.refused(fence));
            }
        }
        if self.away || self.faulty && self.rng.one_in(10) {
            self.half_done(batch);
            return Err(LedgerError::retry("it does not answer"));
        }
        if self.breaks(Sabotage::SaidAndNotDone) && self.rng.one_in(10) {
            return Ok(());
        }
        self.grace = false;
        outcome.corrections = self.apply(batch);
        self.check();
        self.commits += 1;
        if self.faulty && self.rng.one_in(10) {
            self.lost_replies += 1;
            return Err(LedgerError::retry("the reply is lost"));
        }
        Ok(())
    }

    /// Whether the last start wrote this fence.
    fn is_mine(&self, fence: Fence) -> bool {
        let by_generation = self.breaks(Sabotage::RunsNotTold);
        fence == self.fence || by_generation && fence.generation == self.fence.generation
    }

    /// Why a connection with this fence may not commit.
    fn refused(&self, fence: Fence) -> LedgerError {
        let gone_back = self.is_mine(fence) || fence.generation > self.fence.generation;
        let why = "not as this instance left it".to_owned();
        LedgerError::Fatal(if gone_back { Fault::gone_back(why) } else { Fault::fenced(why) })
    }

    /// Whether a broken fence lets an older instance through.
    fn spares(&self, fence: Fence) -> bool {
        self.breaks(Sabotage::NoFence)
            || self.breaks(Sabotage::FenceDoesNotWait)
                && self.grace
                && fence.generation + 1 == self.fence.generation
    }

    /// Returns to an earlier state: a standby was promoted that lacked the last commits, or a
    /// backup was restored. Nothing outside the database changes.
    pub fn go_back(&mut self, earlier: &Store) {
        let present = self.clone();
        *self = Store {
            starts: present.starts,
            gone_back: true,
            rng: present.rng,
            faulty: present.faulty,
            away: present.away,
            cut_off: present.cut_off,
            lost_replies: present.lost_replies,
            late: present.late,
            commits: present.commits + 1,
            tried: present.tried,
            ..earlier.clone()
        };
    }
}

/// The sessions of each key in the oracle's format.
fn sessions_of(spans: &BTreeMap<Key, Vec<Span>>) -> Sessions {
    let row = |span: &Span| (span.first.millis(), span.last.millis(), span.count);
    let keys = spans.iter().filter(|(_, spans)| !spans.is_empty());
    keys.map(|(key, spans)| {
        let mut spans: Vec<_> = spans.iter().map(row).collect();
        spans.sort_unstable();
        (crate::topic::name(key).to_owned(), spans)
    })
    .collect()
}

/// Sorts before every partition.
const FIRST: Partition = Partition { topic: 0, number: i32::MIN };

/// A writer's connection.
pub struct Connection {
    pub store: Arc<Mutex<Store>>,
    pub fence: Fence,
    /// The process to which it belongs.
    pub process: usize,
}

impl Ledger for Connection {
    fn commit(&mut self, batch: &Batch, outcome: &mut Outcome) -> Result<(), LedgerError> {
        let mut store = self.store.lock().expect("one at a time");
        if store.cut_off == Some(self.process) {
            return Err(LedgerError::retry("the network is down"));
        }
        store.commit(batch, outcome, self.fence)
    }

    fn progress(&mut self, shards: &[Shard]) -> Result<Vec<Epoch>, LedgerError> {
        let mut store = self.store.lock().expect("one at a time");
        if store.away || store.cut_off == Some(self.process) {
            return Err(LedgerError::retry("it does not answer"));
        }
        if !store.is_mine(self.fence) && !store.spares(self.fence) {
            return Err(store.refused(self.fence));
        }
        let progress = shards.iter().map(|shard| match store.sabotage {
            Some(Sabotage::LostReplyIsFailure | Sabotage::NoIdempotence) => 0,
            Some(Sabotage::LostReplyIsSuccess) => store.tried[shard],
            _ => store.progress[shard.0 as usize].epoch,
        });
        let progress = progress.collect();
        if let Some(batch) = store.under_way.take() {
            store.apply(&batch);
        }
        Ok(progress)
    }
}
