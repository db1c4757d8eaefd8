//! The end of a comparison: late keys, the sums of each day, and what has no row.

use std::collections::BTreeSet;

use super::Comparison;
use crate::audit::{Day, DayDifference, Difference, Findings, OldEvents, Sums};
use crate::key::{Key, Shard, stable_hash};
use crate::plan::ShardProgress;
use crate::session::Span;

impl Comparison {
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
}
