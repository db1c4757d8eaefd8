//! A job that merges late events, step by step, and the audits of its table.

use std::collections::BTreeMap;

use super::{HOUR, KEEP, MINUTE, SHARDS, at, gap, rules, shard_of};
use crate::audit::{Comparison, Day, Findings, JobHistory, OldEvents, Proof};
use crate::binding::Offset;
use crate::key::{Key, Shard};
use crate::plan::ShardProgress;
use crate::session::{Span, merge_touching};
use crate::shared::rng::Rng;
use crate::time::EventTime;

pub type Rows = Vec<(Key, Span)>;

/// What a job has read and written. There is one partition; an offset is an index.
pub struct World {
    pub rng: Rng,
    now: i64,
    events: Vec<(Key, i64)>,
    /// By shard: how many records it has read, and its watermark.
    read: Vec<usize>,
    watermark: Vec<EventTime>,
    open: BTreeMap<Key, Vec<Span>>,
    pub rows: Rows,
    /// The rows before the last step.
    before: Rows,
    /// One in this many events is late.
    late: u64,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        World {
            now: 20_000 * 24 * HOUR + rng.below(24 * HOUR as u64) as i64,
            late: [4, 30, 1_000_000][rng.below(3) as usize],
            rng,
            events: Vec::new(),
            read: vec![0; SHARDS as usize],
            watermark: vec![EventTime::NEVER; SHARDS as usize],
            open: BTreeMap::new(),
            rows: Vec::new(),
            before: Vec::new(),
        }
    }

    fn key(&mut self) -> Key {
        Key::new(&format!("10.0.0.{}", self.rng.below(6)), "h")
    }

    /// Some hours pass, and each shard commits what it has read, most of the time all of it.
    pub fn step(&mut self) {
        self.before.clone_from(&self.rows);
        for _ in 0..self.rng.between(0, 40) {
            self.now += self.rng.below(20 * MINUTE as u64) as i64;
            let age = if self.rng.one_in(self.late) { 200 * HOUR } else { HOUR };
            let time = self.now - self.rng.below(age as u64) as i64;
            let key = self.key();
            self.events.push((key, time));
        }
        for shard in 0..SHARDS {
            let lags = self.rng.one_in(5);
            let upto = self.events.len().saturating_sub(if lags {
                self.rng.below(20) as usize
            } else {
                0
            });
            if upto > self.read[shard as usize] {
                self.commit(Shard(shard), upto);
            }
        }
    }

    fn commit(&mut self, shard: Shard, upto: usize) {
        let at_shard = shard.0 as usize;
        let new = &self.events[self.read[at_shard]..upto];
        for (key, time) in new.iter().filter(|(key, _)| shard_of(key) == shard) {
            self.open.entry(key.clone()).or_default().push(Span::event(at(*time)));
        }
        self.read[at_shard] = upto;
        let newest = self.events[..upto].iter().map(|(_, time)| *time).max();
        let watermark = at(newest.expect("it has read some") - 2 * HOUR);
        self.watermark[at_shard] = watermark;
        for (key, open) in self.open.iter_mut().filter(|(key, _)| shard_of(key) == shard) {
            let all = merge_touching(std::mem::take(open), gap());
            for session in all {
                if gap().end_after(session.last) >= watermark {
                    open.push(session);
                    continue;
                }
                let touched = |row: &(Key, Span)| row.0 == *key && row.1.touches(&session, gap());
                let (merged, others) =
                    std::mem::take(&mut self.rows).into_iter().partition(touched);
                self.rows = others;
                let merged: Rows = merged;
                let row = merged.iter().fold(session, |all, (_, row)| all.merge(*row));
                self.rows.push((key.clone(), row));
            }
        }
    }

    fn bound(&self) -> EventTime {
        self.watermark.iter().min().expect("shards").plus(-KEEP)
    }

    /// Audits some rows, continuing from a proof.
    pub fn audit(
        &self,
        proof: &Proof,
        rows: &[(Key, Span)],
        has_topic: bool,
    ) -> (Comparison, Findings) {
        let mut comparison = Comparison::new(rules(self.watermark.clone()), proof.clone());
        let ends = proof.ends.get(&place());
        let from = |shard: Shard| ends.map_or(0, |ends| ends[shard.0 as usize].get() as usize);
        for (offset, (key, time)) in self.events.iter().enumerate() {
            let shard = shard_of(key);
            if (from(shard)..self.read[shard.0 as usize]).contains(&offset) {
                comparison.event(shard, key.clone(), at(*time));
            }
        }
        rows.iter().for_each(|(key, row)| comparison.row(key.clone(), *row));
        let old = match comparison.needs_old_events() {
            false => OldEvents::NotNeeded,
            true if !has_topic => OldEvents::Gone,
            true => OldEvents::Read,
        };
        if old == OldEvents::Read {
            for (offset, (key, time)) in self.events.iter().enumerate() {
                if offset < from(shard_of(key)) {
                    comparison.old_event(key.clone(), at(*time));
                }
            }
        }
        let findings = comparison.finish(old).clone();
        (comparison, findings)
    }

    /// Ends an audit; the proof goes to disk and back.
    pub fn keep(&self, comparison: Comparison) -> Proof {
        let ends = self.read.iter().map(|read| Offset::new(*read as i64)).collect();
        let ends = BTreeMap::from([(place(), ends)]);
        let proof = comparison.into_proof(self.bound(), [1, 2, 3], ends, JobHistory::default());
        let back = Proof::decode(&proof.encode()).expect("readable");
        assert_eq!(back, proof);
        back
    }

    pub fn progress(&self) -> Vec<ShardProgress> {
        let of = |shard: u32, spans: &mut dyn Iterator<Item = (&Key, &Span)>| -> u64 {
            spans.filter(|(key, _)| shard_of(key).0 == shard).map(|(_, span)| span.count).sum()
        };
        let open: Vec<(&Key, &Span)> = self
            .open
            .iter()
            .flat_map(|(key, spans)| spans.iter().map(move |span| (key, span)))
            .collect();
        let progress = |shard| ShardProgress {
            closed: of(shard, &mut self.rows.iter().map(|(key, row)| (key, row))),
            open: of(shard, &mut open.iter().copied()),
            ..ShardProgress::default()
        };
        (0..SHARDS).map(progress).collect()
    }

    /// Damages a row, or adds one. Returns what was done.
    pub fn damage(&mut self) -> Option<(Rows, &'static str)> {
        let mut rows = self.rows.clone();
        let place = self.rng.below(rows.len() as u64) as usize;
        let row = &mut rows.get_mut(place)?.1;
        let what = match self.rng.below(7) {
            0 => {
                row.count += 1;
                "a count"
            }
            1 => {
                row.first = row.first.plus(-1);
                "a start"
            }
            2 => {
                row.last = row.last.plus(1);
                "an end"
            }
            3 => {
                // If no older row is left, it may have been removed on purpose.
                let day = |row: &Span| Day::of(row.last + gap());
                let gone = rows.swap_remove(place).1;
                let mut older = rows.iter().filter(|(_, row)| day(row) < day(&gone));
                if !older.any(|row| self.before.contains(row)) {
                    return None;
                }
                "a row is gone"
            }
            4 => {
                rows.push(rows[place].clone());
                "a row twice"
            }
            5 => {
                let age = self.rng.below(300 * HOUR as u64) as i64;
                rows.push((self.key(), Span::event(at(self.now - age))));
                "a row of no event"
            }
            _ => {
                rows[place].0 = Key::new("192.0.2.1", "other");
                "another key"
            }
        };
        Some((rows, what))
    }
}

fn place() -> (String, i32) {
    ("topic".to_owned(), 0)
}
