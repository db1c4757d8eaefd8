//! Random worlds: a job that merges late events is audited step by step, and the result compared
//! with a full audit. Rows of every age are damaged, and rows and records are removed as by
//! retention.

use std::collections::BTreeMap;

use super::*;
use crate::key::{Shard, stable_hash};
use crate::session::merge_touching;
use crate::shared::rng::Rng;
use crate::time::Gap;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const GAP: i64 = 30 * MINUTE;
const KEEP: i64 = 6 * HOUR;
const SHARDS: u32 = 3;

fn gap() -> Gap {
    Gap::from_millis(GAP).expect("valid")
}

fn at(millis: i64) -> EventTime {
    EventTime::from_millis(millis)
}

fn shard_of(key: &Key) -> Shard {
    Shard::of(stable_hash(key.bytes()), SHARDS)
}

type Rows = Vec<(Key, Span)>;

/// What a job has read and written. There is one partition; an offset is an index.
struct World {
    rng: Rng,
    now: i64,
    events: Vec<(Key, i64)>,
    /// By shard: how many records it has read, and its watermark.
    read: Vec<usize>,
    watermark: Vec<EventTime>,
    open: BTreeMap<Key, Vec<Span>>,
    rows: Rows,
    /// The rows before the last step.
    before: Rows,
    /// One in this many events is late.
    late: u64,
}

impl World {
    fn new(seed: u64) -> Self {
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
    fn step(&mut self) {
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
    fn audit(
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
    fn keep(&self, comparison: Comparison) -> Proof {
        let ends = self.read.iter().map(|read| Offset::new(*read as i64)).collect();
        let ends = BTreeMap::from([(place(), ends)]);
        let proof = comparison.into_proof(self.bound(), [1, 2, 3], ends, JobHistory::default());
        let back = Proof::decode(&proof.encode()).expect("readable");
        assert_eq!(back, proof);
        back
    }

    fn progress(&self) -> Vec<ShardProgress> {
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
    fn damage(&mut self) -> Option<(Rows, &'static str)> {
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

fn rules(closes_before: Vec<EventTime>) -> Rules {
    Rules {
        gap: gap(),
        end_after_ms: GAP,
        found_rows: false,
        found_rows_to: None,
        shown: 5,
        closes_before,
    }
}

fn seeds() -> std::ops::Range<u64> {
    0..30
}

#[test]
fn events_of_a_refused_row_are_not_counted_with_those_of_sessions() {
    let rules = rules(vec![at(HOUR); SHARDS as usize]);
    let mut comparison = Comparison::new(rules, Proof::of_nothing(SHARDS as usize));
    let key = |host| Key::new("192.0.2.1", host);
    for host in ["stored", "refused"] {
        for minute in [0, 1] {
            comparison.event(shard_of(&key(host)), key(host), at(minute * MINUTE));
        }
    }
    let row = Span { first: at(0), last: at(MINUTE), count: 2 };
    comparison.refused(key("refused"), row);
    comparison.row(key("stored"), row);
    let found = comparison.finish(OldEvents::NotNeeded).clone();
    assert_eq!((found.right, found.refused, found.differences()), (1, 1, 0));
    assert_eq!(comparison.events(), 2);
}

#[test]
fn only_rows_that_begin_before_the_end_of_the_found_ones_may_be_older() {
    for (found_rows_to, want) in [
        (None, (1, 4, 0)),
        (Some(at(HOUR)), (1, 2, 2)),
        (Some(at(0) + gap()), (1, 1, 3)),
        (Some(at(0)), (1, 1, 3)),
    ] {
        let rules = Rules {
            found_rows: true,
            found_rows_to,
            ..rules(vec![at(10 * HOUR); SHARDS as usize])
        };
        let mut comparison = Comparison::new(rules, Proof::of_nothing(SHARDS as usize));
        let key = |host: &str| Key::new("192.0.2.1", host);
        comparison.event(shard_of(&key("own")), key("own"), at(2 * HOUR));
        comparison.row(key("own"), Span::event(at(2 * HOUR)));
        // No event of the topic has made these.
        comparison.row(key("found"), Span::event(at(0)));
        comparison.row(key("newest"), Span::event(at(HOUR)));
        comparison.row(key("after"), Span::event(at(HOUR + 1)));
        comparison.row(key("later"), Span::event(at(3 * HOUR)));
        let found = comparison.finish(OldEvents::NotNeeded);
        assert_eq!((found.right, found.before, found.wrong), want, "{found_rows_to:?}");
    }
}

#[test]
fn refused_rows_that_differ_are_all_counted_and_some_are_shown() {
    let rules = rules(vec![at(HOUR); SHARDS as usize]);
    let mut comparison = Comparison::new(rules, Proof::of_nothing(SHARDS as usize));
    for n in 0..8 {
        // Refused, but no event has made them.
        comparison.refused(Key::new("192.0.2.1", &format!("host-{n}")), Span::event(at(0)));
    }
    let found = comparison.finish(OldEvents::NotNeeded);
    assert_eq!((found.wrong, found.shown.len()), (8, 5));
}

#[test]
fn going_on_finds_what_a_full_audit_finds() {
    let (mut sealed, mut second, mut damaged) = (0, 0, 0);
    for seed in seeds() {
        let mut world = World::new(seed);
        let nothing = Proof::of_nothing(SHARDS as usize);
        let mut proof = nothing.clone();
        for step in 0..25 {
            world.step();
            let say = format!("seed {seed}, step {step}");
            if let Some((rows, what)) = world.damage() {
                let (_, full) = world.audit(&nothing, &rows, true);
                let (comparison, found) = world.audit(&proof, &rows, true);
                // A row of no event may look like part of an open session.
                let differs = full.differences() > 0;
                assert_eq!(found.differences() > 0, differs, "{say}: {what}: {found:?}");
                damaged += u64::from(differs);
                // Sometimes it stays damaged until the next audit.
                if differs && world.rng.one_in(4) {
                    proof = world.keep(comparison);
                    let (_, found) = world.audit(&proof, &rows, true);
                    assert!(found.differences() > 0, "{say}, again: {what}: {found:?}");
                }
            }
            let (_, full) = world.audit(&nothing, &world.rows, true);
            let (comparison, found) = world.audit(&proof, &world.rows, true);
            assert_eq!(full.differences(), 0, "{say}: {full:?}");
            assert_eq!(found.differences(), 0, "{say}: {found:?}\n{proof:?}");
            assert_eq!(found.progress, world.progress(), "{say}");
            assert_eq!(full.progress, found.progress, "{say}");
            assert_eq!(found.right + found.sealed + found.part_of_open, world.rows.len() as u64);
            assert_eq!((found.open, found.part_of_open), (full.open, full.part_of_open), "{say}");
            assert!(found.removed.is_empty() && found.unverifiable == 0, "{say}: {found:?}");

            second += usize::from(!comparison.old.is_empty());
            proof = world.keep(comparison);
            sealed += proof.days.len();
        }
    }
    assert!(sealed > 1_000 && second > 50 && damaged > 500, "{sealed}, {second}, {damaged}");
}

#[test]
fn what_kafka_no_longer_has_is_counted_and_everything_else_is_still_compared() {
    let (mut unverifiable, mut damaged) = (0, 0);
    let nothing = Proof::of_nothing(SHARDS as usize);
    for seed in seeds() {
        let mut world = World::new(seed);
        let mut proof = Proof::of_nothing(SHARDS as usize);
        for step in 0..25 {
            world.step();
            let say = format!("seed {seed}, step {step}");
            let (comparison, found) = world.audit(&proof, &world.rows, false);
            assert_eq!(found.differences(), 0, "{say}: {found:?}\n{proof:?}");
            assert_eq!(found.progress, world.progress(), "{say}");
            unverifiable += found.unverifiable;
            if let Some((rows, what)) = world.damage() {
                let (_, full) = world.audit(&nothing, &rows, false);
                let (_, found) = world.audit(&proof, &rows, false);
                // On the days of late events, the audit trusts the table.
                let silent = found.unverifiable > 0 || !found.sealed_anew.is_empty();
                let differs = full.differences() > 0;
                assert!(found.differences() > 0 || silent || !differs, "{say}: {what}: {found:?}");
                damaged += u64::from(found.differences() > 0);
            }
            proof = world.keep(comparison);
        }
    }
    assert!(unverifiable > 100 && damaged > 500, "{unverifiable}, {damaged}");
}

#[test]
fn rows_that_retention_has_removed_are_no_differences() {
    for has_topic in [true, false] {
        let (mut removed, mut thinned) = (0, 0);
        for seed in seeds() {
            let mut world = World::new(seed);
            let mut proof = Proof::of_nothing(SHARDS as usize);
            for step in 0..40 {
                world.step();
                let say = format!("seed {seed}, step {step}, topic {has_topic}");
                if world.rng.one_in(4) && proof.sealed_before > EventTime::NEVER {
                    let age = 24 * HOUR + world.rng.below(96 * HOUR as u64) as i64;
                    let before = proof.sealed_before.plus(-age);
                    // Until a whole day is gone, it looks like damage.
                    let oldest = proof.days.keys().next().copied();
                    if proof.removed_to.is_some() || oldest.is_some_and(|day| day < Day::of(before))
                    {
                        world.rows.retain(|(_, row)| row.last + gap() >= before);
                    }
                }
                let (comparison, found) = world.audit(&proof, &world.rows, has_topic);
                assert_eq!(found.differences(), 0, "{say}: {found:?}\n{proof:?}");
                removed += found.removed.len();
                thinned += usize::from(found.thinned.is_some());
                proof = world.keep(comparison);
            }
        }
        assert!(removed > 100 && thinned > 20, "{removed}, {thinned}");
    }
}
