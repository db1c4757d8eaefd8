//! Random worlds: a job that merges late events is audited step by step, and the result compared
//! with a full audit. Rows of every age are damaged, and rows and records are removed as by
//! retention.

mod cases;
mod world;

use self::world::World;
use super::*;
use crate::key::{Shard, stable_hash};
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
