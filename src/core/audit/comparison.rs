//! Compares the table with the batch answer, continuing from what was verified before.
//!
//! The order of the calls is: all new events, the rows that the table has refused, all rows of the
//! table, the older events of late keys if [`Comparison::needs_old_events`], and
//! [`Comparison::finish`].

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::audit::{
    Counted, Day, DayDifference, Difference, Findings, JobHistory, OldEvents, Proof, Rules, Sums,
};
use crate::binding::Offset;
use crate::key::{Key, Shard, stable_hash};
use crate::plan::ShardProgress;
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

    /// Ends the comparison.
    pub fn finish(&mut self, old: OldEvents) -> &Findings {
        self.removed_to = self.removed_to();
        let mut rows = Vec::new();
        for (key, of_key) in std::mem::take(&mut self.late) {
            let of_key = match old {
                OldEvents::NotNeeded => self.unseal_rows(&key, of_key),
                OldEvents::Read => self.unseal_events(&key, of_key),
                OldEvents::Gone => self.leave_sealed(&key, of_key),
            };
            rows.extend(of_key.into_iter().map(|row| (key.clone(), row)));
        }
        for (key, row) in std::mem::take(&mut self.late_refused) {
            self.refuse(key, row);
        }
        let mut unknown = BTreeSet::new();
        for (key, row) in rows {
            let may_hold_sealed = match old {
                OldEvents::NotNeeded => false,
                OldEvents::Read => self.removed_to.is_some_and(|to| Day::of(row.first) <= to),
                OldEvents::Gone => row.first < self.proof.sealed_before,
            };
            if may_hold_sealed && self.answer.adopt(&key, row) {
                self.findings.unverifiable += 1;
                unknown.extend((Day::of(row.first).0..=self.day(&row).0).map(Day));
                self.note_there(self.day(&row));
            } else {
                self.check(key, row);
            }
        }
        self.compare_days(&unknown);
        self.find_missing();
        &self.findings
    }

    /// The newest day of which rows may have been removed on purpose, now or before: those of which
    /// all rows are gone, and the oldest one that is left.
    fn removed_to(&self) -> Option<Day> {
        let of_late = || self.late.values().flatten().map(|row| self.day(row));
        let oldest = self.table.keys().copied().chain(of_late()).min();
        let is_gone = |day: &&Day| oldest.is_none_or(|oldest| **day < oldest);
        let gone = self.proof.days.keys().take_while(is_gone).last().copied();
        if self.proof.removed_to.is_none() && gone.is_none() {
            return None;
        }
        let left = self.table.keys().next().copied();
        let edge = left.or(oldest).or(gone).map(|day| day.min(Day(self.complete().0 - 1)));
        self.proof.removed_to.max(edge)
    }

    /// The oldest day that may have sessions that are not sealed.
    fn complete(&self) -> Day {
        Day::of(self.proof.sealed_before.plus(self.rules.end_after_ms))
    }

    /// Notes that a row that was verified before is still there.
    fn note_there(&mut self, day: Day) {
        self.oldest_there = Some(self.oldest_there.map_or(day, |there| there.min(day)));
    }

    /// Uses the rows that a late key has in sealed time as its sealed sessions: the sums agree.
    fn unseal_rows(&mut self, key: &Key, rows: Vec<Span>) -> Vec<Span> {
        let sealed: Vec<Span> =
            rows.iter().filter(|row| self.is_sealed(key, row)).copied().collect();
        for row in sealed {
            self.note_there(self.day(&row));
            self.unseal(key, row);
        }
        rows
    }

    /// Computes the sealed sessions of a late key from its older events.
    fn unseal_events(&mut self, key: &Key, rows: Vec<Span>) -> Vec<Span> {
        let kept: Vec<Span> = self.proof.kept_of(key).collect();
        let old: Vec<Span> = self.old.of_key(key).filter(|span| !kept.contains(span)).collect();
        // What may have been removed before a late event arrived is unknown.
        let is_known = |day: Day| self.removed_to.is_none_or(|removed| day > removed);
        let (known, unknown): (Vec<Span>, _) =
            rows.into_iter().partition(|row| is_known(self.day(row)));
        for session in old {
            let day = self.day(&session);
            if self.removed_to.is_none_or(|removed| day > removed) {
                let holds = |row: &Span| row.first <= session.first && session.last <= row.last;
                if known.iter().any(holds) {
                    self.note_there(day);
                }
                self.unseal(key, session);
            }
        }
        let mut compared = self.leave_sealed(key, unknown);
        compared.extend(known);
        compared
    }

    /// Leaves the sealed sessions of a late key sealed, because nothing is known of them. Returns
    /// the rows to be compared.
    fn leave_sealed(&mut self, key: &Key, rows: Vec<Span>) -> Vec<Span> {
        let mut compared = Vec::new();
        for row in rows {
            let day = self.day(&row);
            if !self.is_sealed(key, &row) || !self.proof.days.contains_key(&day) {
                compared.push(row);
                continue;
            }
            match self.answer.touching(key, &row) {
                // It will be merged once that session closes.
                Some(session) if !self.is_closed(key, &session) => {
                    self.unseal(key, row);
                    compared.push(row);
                }
                touching => {
                    *self.table.entry(day).or_default() += Sums::of(key, &row);
                    // The two should be one row.
                    compared.extend(touching.map(|_| row));
                }
            }
        }
        compared
    }

    fn unseal(&mut self, key: &Key, session: Span) {
        let day = self.day(&session);
        let sums = self.proof.days.entry(day).or_default();
        *sums -= Sums::of(key, &session);
        if *sums == Sums::default() {
            self.proof.days.remove(&day);
        }
        self.answer.add_span(key.clone(), session);
    }

    /// Compares the sums of each day. Days in `unknown` that differ are sealed anew.
    fn compare_days(&mut self, unknown: &BTreeSet<Day>) {
        let complete = self.complete();
        let mut older_are_gone = true;
        let all: BTreeSet<Day> = self.proof.days.keys().chain(self.table.keys()).copied().collect();
        for day in all {
            let verified = self.proof.days.get(&day).copied().unwrap_or_default();
            let found = self.table.get(&day).copied().unwrap_or_default();
            let difference = DayDifference { day, verified, found };
            let is_oldest = self.oldest_there.is_none_or(|there| day <= there);
            let edge = older_are_gone && is_oldest && day < complete;
            let gone = found.rows == 0 && self.oldest_there.is_none_or(|there| day < there);
            let fewer = found.rows < verified.rows && found.events < verified.events;
            older_are_gone &= found.rows == 0;
            if found == verified {
                self.findings.sealed += found.rows as u64;
            } else if unknown.contains(&day) {
                self.findings.sealed_anew.push((day, found.rows));
                self.reseal(day, found);
            } else if edge && gone && verified.rows > 0 {
                self.findings.removed.push((day, verified.rows));
                self.proof.days.remove(&day);
                self.proof.removed_to = self.proof.removed_to.max(Some(day));
            } else if edge && fewer && self.proof.removed_to.is_some() {
                self.findings.thinned = Some(difference);
                self.findings.sealed += found.rows as u64;
                self.reseal(day, found);
            } else {
                self.findings.days.push(difference);
            }
        }
        if self.proof.removed_to.is_some() {
            self.proof.removed_to = self.proof.removed_to.max(self.removed_to);
        }
    }

    fn reseal(&mut self, day: Day, found: Sums) {
        match found == Sums::default() {
            true => self.proof.days.remove(&day),
            false => self.proof.days.insert(day, found),
        };
    }

    /// Looks for sessions without a row, and derives the progress of each shard.
    fn find_missing(&mut self) {
        let mut open = vec![0; self.counted.len()];
        let found = &mut self.findings;
        let shown = found.shown.len() + self.rules.shown;
        found.refused = self.answer.refused();
        let shards = self.rules.closes_before.len() as u32;
        for (key, span, events) in self.answer.missing() {
            let shard = Shard::of(stable_hash(key.bytes()), shards).0 as usize;
            if self.rules.gap.end_after(span.last) >= self.rules.closes_before[shard] {
                found.open += 1;
                open[shard] += events;
                continue;
            }
            let day = Day::of(span.last.plus(self.rules.end_after_ms));
            if self.removed_to.is_some_and(|removed| day <= removed) {
                // Late events of a day that was removed on purpose: their row is gone as well.
                found.removed.push((day, 1));
                continue;
            }
            found.missing += 1;
            if found.shown.len() < shown {
                found.shown.push((Difference::Missing, key.clone(), span));
            }
        }
        let progress = self.counted.iter().enumerate().map(|(at, counted)| {
            let open = open[at] - self.part_of_open[at].min(open[at]);
            let not_closed = open + self.refused[at];
            ShardProgress {
                closed: counted.events.saturating_sub(not_closed),
                open,
                dead: counted.dead + self.refused[at],
                ..ShardProgress::default()
            }
        });
        found.progress = progress.collect();
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
