//! Postgres in memory: it changes in whole transactions only, and checks the contract at each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use sessionizer::binding::{Binding, Late, Partition, Rules, Status};
use sessionizer::control::Fault;
use sessionizer::correction::{Correction, correct};
use sessionizer::event::Reason;
use sessionizer::key::{Key, Shard};
use sessionizer::ledger::{Durable, NamedBinding, NamedEpoch};
use sessionizer::operators::{Batch, Ledger, LedgerError};
use sessionizer::plan::ShardProgress;
use sessionizer::session::{SessionTable, Span, merge_touching};
use sessionizer::snapshot;
use sessionizer::time::{Epoch, EventTime, Gap};

use crate::feed::Topic;
use crate::oracle::{self, GAP_MS};
use crate::rng::Rng;

pub fn gap() -> Gap {
    Gap::from_millis(GAP_MS).expect("valid")
}

#[derive(Clone, Debug)]
struct Books {
    watermark: EventTime,
    rules: Option<Rules>,
    shards_done: u32,
    closed: u64,
    open: u64,
    dead: u64,
}

/// Everything durable.
#[derive(Debug)]
pub struct Store {
    topic: Arc<Mutex<Topic>>,
    pub generation: i64,
    progress: Vec<ShardProgress>,
    epochs: BTreeMap<Epoch, Books>,
    bindings: BTreeMap<(Epoch, Partition), Binding>,
    /// What was ever bound, also what has been trimmed: for the checks only.
    history: BTreeMap<(Epoch, Partition), Binding>,
    /// Every epoch ever bound, for the checks only.
    bound: BTreeMap<Epoch, (EventTime, Rules)>,
    snapshots: Vec<(Epoch, Vec<u8>)>,
    table: BTreeMap<Key, Vec<Span>>,
    dead_letters: BTreeSet<(Partition, i64)>,
    /// Those of them that are events, dropped because they came too late.
    dropped: BTreeSet<(Partition, i64)>,
    rng: Rng,
    /// Whether commits may fail; not at the very end.
    pub faulty: bool,
    pub lost_replies: u64,
    pub late: u64,
    pub commits: u64,
}

impl Store {
    pub fn new(topic: Arc<Mutex<Topic>>, shards: u32, rng: Rng) -> Self {
        let empty = snapshot::encode(&SessionTable::new(gap(), EventTime::NEVER));
        let books = Books {
            watermark: EventTime::NEVER,
            rules: None,
            shards_done: shards,
            closed: 0,
            open: 0,
            dead: 0,
        };
        Store {
            topic,
            generation: 0,
            progress: vec![ShardProgress::default(); shards as usize],
            epochs: BTreeMap::from([(0, books)]),
            bindings: BTreeMap::new(),
            history: BTreeMap::new(),
            bound: BTreeMap::new(),
            snapshots: vec![(0, empty); shards as usize],
            table: BTreeMap::new(),
            dead_letters: BTreeSet::new(),
            dropped: BTreeSet::new(),
            rng,
            faulty: true,
            lost_replies: 0,
            late: 0,
            commits: 0,
        }
    }

    /// Takes the fence and reads what is durable.
    pub fn start(&mut self) -> Durable {
        self.generation += 1;
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
        };
        let mut last: BTreeMap<Partition, NamedBinding> = BTreeMap::new();
        for ((_, partition), binding) in self.bindings.range(..(base + 1, FIRST)) {
            last.insert(*partition, named(binding));
        }
        let replay = self.epochs.range(base + 1..).map(|(epoch, books)| NamedEpoch {
            epoch: *epoch,
            watermark: books.watermark,
            rules: books.rules,
            bindings: self
                .bindings
                .range((*epoch, FIRST)..(*epoch + 1, FIRST))
                .map(|(_, binding)| named(binding))
                .collect(),
        });
        Durable {
            generation: self.generation,
            progress: self.progress.clone(),
            base: NamedEpoch {
                epoch: base,
                watermark: self.epochs[&base].watermark,
                rules: None,
                bindings: last.into_values().collect(),
            },
            replay: replay.collect(),
        }
    }

    pub fn snapshot(&self, shard: Shard) -> (Epoch, SessionTable) {
        let (epoch, bytes) = &self.snapshots[shard.0 as usize];
        (*epoch, snapshot::decode(bytes, gap()).expect("as it was written"))
    }

    fn base(&self) -> Epoch {
        self.snapshots.iter().map(|(epoch, _)| *epoch).min().expect("shards")
    }

    /// The table as the oracle gives it.
    pub fn rows(&self) -> oracle::Sessions {
        let row = |span: &Span| (span.first.millis(), span.last.millis(), span.count);
        let rows = self.table.iter().filter(|(_, spans)| !spans.is_empty());
        rows.map(|(key, spans)| {
            let mut spans: Vec<_> = spans.iter().map(row).collect();
            spans.sort_unstable();
            (key.parts().0.to_owned(), spans)
        })
        .collect()
    }

    pub fn dead(&self) -> u64 {
        self.dead_letters.len() as u64
    }

    /// How often each row is there: once.
    pub fn table(&self) -> BTreeMap<(Key, Span), i64> {
        let mut table = BTreeMap::new();
        for (key, rows) in &self.table {
            rows.iter().for_each(|row| *table.entry((key.clone(), *row)).or_default() += 1);
        }
        table
    }

    /// Whether the event at an offset of a partition was dropped.
    pub fn dropped(&self, number: i32, offset: i64) -> bool {
        self.dropped.contains(&(Partition { topic: 0, number }, offset))
    }

    /// What was dropped is what had to be, by a model that knows nothing but the bindings; gives
    /// how many events that are.
    pub fn check_dropped(&self) -> u64 {
        let topic = self.topic.lock().expect("one at a time");
        let mut open: BTreeMap<&str, Vec<Span>> = BTreeMap::new();
        let mut last: BTreeMap<Partition, Binding> = BTreeMap::new();
        let (mut before, mut want) = (EventTime::NEVER, BTreeSet::new());
        for (epoch, (watermark, rules)) in &self.bound {
            let mut came: Vec<(Partition, i64, &str, EventTime)> = Vec::new();
            for ((_, at), binding) in self.history.range((*epoch, FIRST)..(*epoch + 1, FIRST)) {
                let from = last.insert(*at, *binding).map_or(binding.start, |b| b.end);
                for entry in &topic.logs[at.number as usize].entries {
                    if let Some((key, time)) = &entry.event
                        && (from..binding.end).contains(&entry.offset)
                    {
                        came.push((*at, entry.offset, key, EventTime::from_millis(*time)));
                    }
                }
            }
            for (_, _, key, time) in &came {
                open.entry(key).or_default().push(Span::event(*time));
            }
            for (key, spans) in &mut open {
                *spans = merge_touching(std::mem::take(spans), gap());
                let late = |span: &Span| gap().end_after(span.last) < before;
                if rules.late == Late::Drop {
                    for late in spans.iter().filter(|span| late(span)) {
                        let of = |at: &&(_, _, &str, _)| {
                            at.2 == *key && late.first <= at.3 && at.3 <= late.last
                        };
                        want.extend(came.iter().filter(of).map(|came| (came.0, came.1)));
                    }
                    spans.retain(|span| !late(span));
                }
                let drained = last.values().all(|binding| binding.status == Status::Ended);
                spans.retain(|span| !drained && gap().end_after(span.last) >= *watermark);
            }
            before = *watermark;
        }
        assert_eq!(self.dropped, want, "what is dropped is what came too late");
        want.len() as u64
    }

    fn commit(
        &mut self,
        batch: &Batch,
        corrections: &mut Vec<Correction>,
        generation: i64,
    ) -> Result<(), LedgerError> {
        for step in &batch.steps {
            let fits = self.progress[step.shard.0 as usize].epoch == step.from;
            if generation != self.generation || !fits {
                assert_ne!(generation, self.generation, "I5: {step:?} is not the next step");
                return Err(LedgerError::Fatal(Fault::Fenced("fenced".to_owned())));
            }
        }
        if self.faulty && self.rng.one_in(10) {
            return Err(LedgerError::Retry("it does not answer".to_owned()));
        }
        *corrections = self.apply(batch);
        self.check();
        self.commits += 1;
        if self.faulty && self.rng.one_in(10) {
            self.lost_replies += 1;
            return Err(LedgerError::Retry("the reply is lost".to_owned()));
        }
        Ok(())
    }

    fn apply(&mut self, batch: &Batch) -> Vec<Correction> {
        for step in &batch.steps {
            self.progress[step.shard.0 as usize] = step.to;
        }
        let (late, on_time): (Vec<_>, Vec<_>) = batch.closed.iter().partition(|c| c.late);
        for closed in on_time {
            self.table.entry(closed.key.clone()).or_default().push(closed.span);
        }
        self.late += late.len() as u64;
        let late: Vec<(Key, Span)> = late.iter().map(|c| (c.key.clone(), c.span)).collect();
        let mut touched = Vec::new();
        for (key, rows) in &self.table {
            let touches =
                |row: &Span| late.iter().any(|(k, span)| k == key && span.touches(row, gap()));
            touched.extend(rows.iter().filter(|row| touches(row)).map(|row| (key.clone(), *row)));
        }
        let corrections = correct(late, touched, gap());
        for correction in &corrections {
            let rows = self.table.entry(correction.key.clone()).or_default();
            rows.retain(|row| !correction.removed.contains(row));
            rows.extend(&correction.added);
        }
        for (_, letter) in &batch.dead_letters {
            let place = (letter.partition, letter.offset);
            assert!(self.dead_letters.insert(place), "I5: the dead letter {place:?} came twice");
            if letter.reason == Reason::Late {
                self.dropped.insert(place);
            }
        }
        for books in &batch.books {
            let watermark = books.summary.watermark;
            let row = self.epochs.entry(books.epoch).or_insert(Books {
                watermark,
                rules: Some(books.summary.rules),
                shards_done: 0,
                closed: 0,
                open: 0,
                dead: 0,
            });
            assert_eq!(row.watermark, watermark, "I2: lanes disagree on W({})", books.epoch);
            let rules = Some(books.summary.rules);
            assert_eq!(row.rules, rules, "I2: lanes disagree on the rules of {}", books.epoch);
            row.shards_done += books.shards;
            row.closed += books.closed;
            row.open += books.open;
            row.dead += books.dead;
            self.bound.insert(books.epoch, (watermark, books.summary.rules));
            for binding in &books.summary.bindings {
                let at = (books.epoch, binding.partition);
                let known = *self.history.entry(at).or_insert(*binding);
                assert_eq!(known, *binding, "I2: another binding of {at:?}");
                self.bindings.insert(at, *binding);
            }
        }
        for (shard, (epoch, bytes)) in &batch.snapshots {
            self.snapshots[shard.0 as usize] = (*epoch, bytes.clone());
        }
        if !batch.snapshots.is_empty() {
            self.trim();
        }
        corrections
    }

    fn trim(&mut self) {
        let base = self.base();
        self.epochs = self.epochs.split_off(&base);
        let mut kept = self.bindings.split_off(&(base + 1, FIRST));
        let mut last: BTreeMap<Partition, (Epoch, Binding)> = BTreeMap::new();
        for ((epoch, partition), binding) in &self.bindings {
            last.insert(*partition, (*epoch, *binding));
        }
        kept.extend(last.into_iter().map(|(p, (epoch, binding))| ((epoch, p), binding)));
        self.bindings = kept;
    }

    /// The contract, each key at its own shard's epoch; I6 and I8.
    fn check(&self) {
        for (key, rows) in &self.table {
            let mut rows = rows.clone();
            rows.sort_unstable();
            for pair in rows.windows(2) {
                assert!(!pair[0].touches(&pair[1], gap()), "I6: rows of {key:?} touch: {rows:?}");
            }
        }
        self.check_books();
        let topic = self.topic.lock().expect("one at a time");
        for shard in 0..self.progress.len() {
            let upto = self.progress[shard].epoch;
            let mut ends: BTreeMap<Partition, i64> = BTreeMap::new();
            for ((_, partition), binding) in self.history.range(..(upto + 1, FIRST)) {
                ends.insert(*partition, binding.end);
            }
            let bound = ends.iter().flat_map(|(partition, end)| {
                let entries = topic.logs[partition.number as usize].entries.iter();
                entries
                    .filter(move |entry| entry.offset < *end)
                    .filter(move |entry| !self.dropped.contains(&(*partition, entry.offset)))
                    .filter_map(|e| e.event.as_ref())
            });
            let shards = self.progress.len() as u32;
            let mine = |key: &str| {
                let hash = sessionizer::key::stable_hash(Key::new(key, "h").bytes());
                Shard::of(hash, shards).0 as usize == shard
            };
            let bound = bound.filter(|(key, _)| mine(key)).map(|(key, time)| (&**key, *time));
            let sessions = oracle::sessions(bound);
            let watermark =
                self.bound.get(&upto).map_or(EventTime::NEVER, |(watermark, _)| *watermark);
            self.check_shard(shard, &sessions, watermark, &mine);
        }
    }

    fn check_shard(
        &self,
        shard: usize,
        sessions: &oracle::Sessions,
        watermark: EventTime,
        mine: &dyn Fn(&str) -> bool,
    ) {
        let rows: oracle::Sessions = self.rows().into_iter().filter(|(key, _)| mine(key)).collect();
        for (key, sessions) in sessions {
            for session in sessions {
                let closed = session.1 + GAP_MS < watermark.millis();
                let there = rows.get(key).is_some_and(|rows| rows.contains(session));
                assert!(
                    !closed || there,
                    "shard {shard}: {key}'s {session:?} is missing: {rows:?}"
                );
            }
        }
        for (key, rows) in &rows {
            for row in rows {
                let part = |s: &&(i64, i64, u64)| s.0 <= row.0 && row.1 <= s.1 && row.2 <= s.2;
                let of = sessions.get(key).and_then(|sessions| sessions.iter().find(part));
                assert!(of.is_some(), "shard {shard}: {key}'s row {row:?} is of no session");
            }
        }
    }

    /// I8, as of the last epoch that all shards have passed.
    fn check_books(&self) {
        let shards = self.progress.len() as u32;
        let complete = self.epochs.iter().rev().find(|(_, books)| books.shards_done == shards);
        let (epoch, books) = complete.expect("the base is complete");
        let mut records: BTreeMap<Partition, u64> = BTreeMap::new();
        for ((_, partition), binding) in self.bindings.range(..(*epoch + 1, FIRST)) {
            records.insert(*partition, binding.records);
        }
        let records: u64 = records.values().sum();
        assert_eq!(records, books.closed + books.open + books.dead, "I8 at {epoch}: {books:?}");
    }
}

/// Before every partition.
const FIRST: Partition = Partition { topic: 0, number: i32::MIN };

/// A lane's connection.
pub struct Connection {
    pub store: Arc<Mutex<Store>>,
    pub generation: i64,
}

impl Ledger for Connection {
    fn commit(
        &mut self,
        batch: &Batch,
        corrections: &mut Vec<Correction>,
    ) -> Result<(), LedgerError> {
        self.store.lock().expect("one at a time").commit(batch, corrections, self.generation)
    }

    fn progress(&mut self, shards: &[Shard]) -> Result<Vec<Epoch>, LedgerError> {
        let store = self.store.lock().expect("one at a time");
        if store.generation != self.generation {
            return Err(LedgerError::Fatal(Fault::Fenced("fenced".to_owned())));
        }
        Ok(shards.iter().map(|shard| store.progress[shard.0 as usize].epoch).collect())
    }
}
