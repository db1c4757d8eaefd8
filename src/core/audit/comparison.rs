//! Compares the table with the batch answer, continuing from what was verified before.
//!
//! The order of the calls is: all new events, the rows that the table has refused, all rows of the
//! table, the older events of late keys if [`Comparison::needs_old_events`], and
//! [`Comparison::finish`].

mod finish;

use std::collections::{BTreeMap, HashMap};

use crate::audit::{Counted, Day, Difference, Findings, JobHistory, Proof, Rules, Sums};
use crate::binding::Offset;
use crate::key::{Key, Shard, stable_hash};
use crate::session::Span;
use crate::session::batch::{BatchOracle, RowVerdict};
use crate::time::EventTime;

/// A comparison in progress.
pub struct Comparison {
    rules: Rules,
    /// What was verified before. Its days hold what the table should have.
    proof: Proof,
    answer: BatchOracle,
    counted: Vec<Counted>,
    /// The sums of the rows that were not compared individually.
    table: BTreeMap<Day, Sums>,
    /// All rows of late keys.
    late: HashMap<Key, Vec<Span>>,
    /// Their older events.
    pub(super) old: BatchOracle,
    /// Rows of late keys that the table has refused.
    late_refused: Vec<(Key, Span)>,
    /// The newest day of which rows may have been removed on purpose.
    removed_to: Option<Day>,
    /// The oldest day of the rows of late keys that were verified before and are still there.
    oldest_there: Option<Day>,
    /// By shard: events of rows that the table has refused, and of rows of open sessions.
    refused: Vec<u64>,
    part_of_open: Vec<u64>,
    findings: Findings,
}

impl Comparison {
    pub fn new(rules: Rules, proof: Proof) -> Self {
        let mut answer = BatchOracle::new(rules.gap);
        proof.kept.iter().for_each(|(key, span)| answer.add_span(key.clone(), *span));
        let none = vec![0; rules.closes_before.len()];
        Comparison {
            counted: proof.shards.clone(),
            old: BatchOracle::new(rules.gap),
            table: BTreeMap::new(),
            late: HashMap::new(),
            late_refused: Vec::new(),
            removed_to: proof.removed_to,
            oldest_there: None,
            refused: none.clone(),
            part_of_open: none,
            findings: Findings::default(),
            answer,
            proof,
            rules,
        }
    }

    /// Adds an event that was not read before.
    pub fn event(&mut self, shard: Shard, key: Key, time: EventTime) {
        self.counted[shard.0 as usize].events += 1;
        if time < self.proof.sealed_before + self.rules.gap && !self.late.contains_key(&key) {
            self.late.insert(key.clone(), Vec::new());
        }
        self.answer.add(key, time);
    }

    /// Adds a record that is not an event.
    pub fn dead(&mut self, shard: Shard) {
        self.counted[shard.0 as usize].dead += 1;
    }

    /// How many sessions are known individually.
    pub fn sessions(&self) -> usize {
        self.answer.len()
    }

    /// The number of events in sessions, before this comparison and in it: all that were read, but
    /// for those of rows that the table has refused.
    pub fn events(&self) -> u64 {
        let read: u64 = self.counted.iter().map(|shard| shard.events).sum();
        read.saturating_sub(self.refused.iter().sum())
    }

    /// Adds a row that the table has refused.
    pub fn refused(&mut self, key: Key, row: Span) {
        let shard = self.shard_of(&key);
        self.refused[shard] += row.count;
        match self.late.contains_key(&key) {
            true => self.late_refused.push((key, row)),
            false => self.refuse(key, row),
        }
    }

    fn refuse(&mut self, key: Key, row: Span) {
        if !self.answer.refuse(&key, row) {
            self.findings.wrong += 1;
            if self.findings.shown.len() < self.rules.shown {
                self.findings.shown.push((Difference::Wrong, key, row));
            }
        }
    }

    /// Compares a row of the table.
    pub fn row(&mut self, key: Key, row: Span) {
        if let Some(rows) = self.late.get_mut(&key) {
            rows.push(row);
        } else if self.is_sealed(&key, &row) && self.proof.days.contains_key(&self.day(&row)) {
            *self.table.entry(self.day(&row)).or_default() += Sums::of(&key, &row);
        } else {
            self.check(key, row);
        }
    }

    /// Whether a row can only be that of a sealed session.
    fn is_sealed(&self, key: &Key, row: &Span) -> bool {
        let is_session = row.count > 0 && row.first <= row.last;
        is_session && row.last < self.proof.sealed_before && !self.answer.overlaps(key, row)
    }

    fn day(&self, row: &Span) -> Day {
        Day::of(row.last.plus(self.rules.end_after_ms))
    }

    fn shard_of(&self, key: &Key) -> usize {
        let shards = self.rules.closes_before.len() as u32;
        Shard::of(stable_hash(key.bytes()), shards).0 as usize
    }

    fn is_closed(&self, key: &Key, span: &Span) -> bool {
        self.rules.gap.end_after(span.last) < self.rules.closes_before[self.shard_of(key)]
    }

    /// Compares a row with the sessions that are known individually.
    fn check(&mut self, key: Key, row: Span) {
        let (shard, gap) = (self.shard_of(&key), self.rules.gap);
        let closes_before = self.rules.closes_before[shard];
        let may_be_older = self.rules.found_rows
            && self.rules.found_rows_to.is_none_or(|newest_end| row.first <= newest_end);
        let found = &mut self.findings;
        match self.answer.check(&key, row, |span| gap.end_after(span.last) < closes_before) {
            RowVerdict::Right => found.right += 1,
            RowVerdict::PartOfOpen => {
                found.part_of_open += 1;
                self.part_of_open[shard] += row.count;
            }
            // Rows from before the job consist of other events, at least in part.
            RowVerdict::Wrong if may_be_older && self.answer.joins(&key, row) => {
                found.joined += 1;
            }
            RowVerdict::Wrong if may_be_older => found.before += 1,
            RowVerdict::Wrong => {
                found.wrong += 1;
                if found.shown.len() < self.rules.shown {
                    found.shown.push((Difference::Wrong, key, row));
                }
            }
        }
    }

    /// Whether older events of late keys have to be reread.
    pub fn needs_old_events(&self) -> bool {
        if self.late.is_empty() {
            return false;
        }
        let mut found = self.table.clone();
        for (key, rows) in &self.late {
            for row in rows.iter().filter(|row| self.is_sealed(key, row)) {
                *found.entry(self.day(row)).or_default() += Sums::of(key, row);
            }
        }
        found != self.proof.days
    }

    /// How many keys have late events.
    pub fn late_keys(&self) -> usize {
        self.late.len()
    }

    /// Adds an event that an earlier audit has read, if its key is late.
    pub fn old_event(&mut self, key: Key, time: EventTime) {
        if self.late.contains_key(&key) {
            self.old.add(key, time);
        }
    }

    /// The proof for the next audit. It seals sessions that ended before `before` and were found.
    pub fn into_proof(
        self,
        before: EventTime,
        epochs: impl IntoIterator<Item = u64>,
        ends: BTreeMap<(String, i32), Vec<Offset>>,
        history: JobHistory,
    ) -> Proof {
        let end_after_ms = self.rules.end_after_ms;
        let removed_to = self.removed_to;
        let mut proof = self.proof;
        proof.sealed_before = proof.sealed_before.max(before);
        proof.kept = Vec::new();
        for (key, span, found) in self.answer.into_sessions() {
            let day = Day::of(span.last.plus(end_after_ms));
            if !found && removed_to.is_some_and(|removed| day <= removed) {
                continue;
            }
            if found && span.last < proof.sealed_before {
                *proof.days.entry(day).or_default() += Sums::of(&key, &span);
            } else {
                proof.kept.push((key, span));
            }
        }
        proof.kept.sort_unstable();
        let shards = self.counted.into_iter().zip(epochs);
        proof.shards = shards.map(|(counted, epoch)| Counted { epoch, ..counted }).collect();
        Proof { ends, history, ..proof }
    }
}
