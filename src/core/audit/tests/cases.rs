//! Small comparisons whose findings are worked out by hand: the limits of what is sealed, of what
//! is late, and of what counts as removed on purpose.

use super::*;

const NONE: OldEvents = OldEvents::NotNeeded;
const DAY: i64 = 24 * HOUR;

fn key(host: &str) -> Key {
    Key::new("192.0.2.1", host)
}

fn span(first: i64, last: i64, count: u64) -> Span {
    Span { first: at(first), last: at(last), count }
}

/// A comparison that continues from a proof, when sessions that ended before this are closed.
fn comparison(proof: Proof, closes_before: i64) -> Comparison {
    Comparison::new(rules(vec![at(closes_before); SHARDS as usize]), proof)
}

fn nothing() -> Proof {
    Proof::of_nothing(SHARDS as usize)
}

fn read(comparison: &mut Comparison, events: &[(&str, i64)]) {
    for (host, time) in events {
        comparison.event(shard_of(&key(host)), key(host), at(*time));
    }
}

fn compare(comparison: &mut Comparison, rows: &[(&str, Span)]) {
    rows.iter().for_each(|(host, row)| comparison.row(key(host), *row));
}

fn proof_of(comparison: Comparison, before: i64) -> Proof {
    comparison.into_proof(at(before), [1, 2, 3], BTreeMap::new(), JobHistory::default())
}

/// The proof of an audit that has found the row of each session, and has sealed those before this.
fn sealed(before: i64, events: &[(&str, i64)], rows: &[(&str, Span)]) -> Proof {
    let mut comparison = comparison(nothing(), before + DAY);
    read(&mut comparison, events);
    compare(&mut comparison, rows);
    let found = comparison.finish(NONE);
    assert_eq!((found.right, found.differences()), (rows.len() as u64, 0), "{found:?}");
    proof_of(comparison, before)
}

#[test]
fn records_end_up_closed_open_or_dead() {
    let mut comparison = comparison(nothing(), HOUR);
    let shard = shard_of(&key("open again"));
    let times = [0, 1, 2].map(|minute| ("open again", 2 * HOUR + minute * MINUTE));
    read(&mut comparison, &times);
    comparison.dead(shard);
    comparison.dead(shard);
    // It had closed after two events; a late one has opened it again.
    compare(&mut comparison, &[("open again", span(2 * HOUR, 2 * HOUR + MINUTE, 2))]);
    let found = comparison.finish(NONE);
    let ShardProgress { closed, open, dead, .. } = found.progress[shard.0 as usize];
    assert_eq!((closed, open, dead), (2, 1, 2));
    assert_eq!((found.open, found.part_of_open, found.differences()), (1, 1, 0));
}

#[test]
fn a_session_is_open_until_the_watermark_has_passed_its_end() {
    let end = 10 * MINUTE + GAP;
    for (watermark, open) in [(end - 1, true), (end, true), (end + 1, false)] {
        let mut comparison = comparison(nothing(), watermark);
        read(&mut comparison, &[("a", 0), ("a", 10 * MINUTE)]);
        compare(&mut comparison, &[("a", span(0, 0, 1))]);
        let found = comparison.finish(NONE);
        let want = if open { (1, 1, 0, 0) } else { (0, 0, 1, 1) };
        let got = (found.part_of_open, found.open, found.wrong, found.missing);
        assert_eq!(got, want, "{watermark}");
    }
}

#[test]
fn a_row_from_before_the_job_that_an_event_has_joined_is_counted_apart() {
    let rules = Rules { found_rows: true, ..rules(vec![at(10 * HOUR); SHARDS as usize]) };
    let mut comparison = Comparison::new(rules, nothing());
    read(&mut comparison, &[("joined", HOUR)]);
    compare(&mut comparison, &[("joined", span(HOUR - MINUTE, HOUR, 2))]);
    let found = comparison.finish(NONE);
    assert_eq!((found.joined, found.before, found.wrong), (1, 0, 0));
}

#[test]
fn differences_are_all_counted_and_some_of_each_kind_are_shown() {
    let mut comparison = comparison(nothing(), HOUR);
    for n in 0..8 {
        compare(&mut comparison, &[(&format!("row{n}"), span(0, 0, 1))]);
        read(&mut comparison, &[(&format!("events{n}"), 0)]);
    }
    let found = comparison.finish(NONE);
    assert_eq!((found.wrong, found.missing), (8, 8));
    let shown = |kind| found.shown.iter().filter(|(of, ..)| *of == kind).count();
    assert_eq!([shown(Difference::Wrong), shown(Difference::Missing)], [5, 5]);
}

#[test]
fn a_proof_holds_how_far_each_shard_was_verified_and_what_had_changed() {
    let mut comparison = comparison(nothing(), HOUR);
    comparison.finish(NONE);
    let history =
        JobHistory { created_at: "2026-06-01".to_owned(), losses: 1, lost: 2, replays: 3 };
    let ends = BTreeMap::from([(("topic".to_owned(), 0), [5, 3, 9].map(Offset::new).to_vec())]);
    let proof = comparison.into_proof(at(0), [10, 20, 30], ends, history.clone());
    assert_eq!(proof.history, history);
    assert_eq!(proof.shards.iter().map(|shard| shard.epoch).collect::<Vec<_>>(), [10, 20, 30]);
    // Not every shard had read as far.
    assert_eq!(proof.verified_to("topic", 0), Some(Offset::new(3)));
    assert_eq!(proof.verified_to("topic", 1), None);
}

/// An event at `HOUR + GAP` joins a session whose last event is at `HOUR`; that is not sealed.
#[test]
fn only_what_ended_before_is_sealed_and_only_keys_whose_events_may_join_that_are_late() {
    let rows = [("a", span(HOUR - 1, HOUR - 1, 1)), ("b", span(HOUR, HOUR, 1))];
    let proof = sealed(HOUR, &[("a", HOUR - 1), ("b", HOUR)], &rows);
    assert_eq!(proof.days.values().map(|sums| sums.rows).collect::<Vec<_>>(), [1]);
    assert_eq!(proof.kept, [(key("b"), span(HOUR, HOUR, 1))]);

    let mut comparison = comparison(proof, 9 * HOUR);
    assert_eq!(comparison.sessions(), 1);
    let new = [("c", 0), ("d", HOUR + GAP - 1), ("d", 0), ("e", HOUR + GAP), ("f", 8 * HOUR)];
    read(&mut comparison, &new);
    assert_eq!((comparison.late_keys(), comparison.sessions()), (2, 6));
}

#[test]
fn old_events_are_needed_only_if_the_sealed_rows_are_not_what_they_were() {
    let old = ("a", span(0, 0, 1));
    let new = ("a", span(40 * MINUTE, 40 * MINUTE, 1));
    let changed = ("a", span(0, 0, 2));
    for (rows, want) in [(vec![old, new], false), (vec![new], true), (vec![changed, new], true)] {
        let mut comparison = comparison(sealed(HOUR, &[("a", 0)], &[old]), 9 * HOUR);
        assert!(!comparison.needs_old_events(), "no key is late");
        read(&mut comparison, &[("a", 40 * MINUTE)]);
        compare(&mut comparison, &rows);
        assert_eq!(comparison.needs_old_events(), want, "{rows:?}");
    }
}

#[test]
fn a_row_that_cannot_be_that_of_a_sealed_session_is_compared_by_itself() {
    let row = ("a", span(0, 0, 1));
    for odd in [span(0, 0, 0), span(10, 5, 1), span(HOUR, HOUR, 1)] {
        let mut comparison = comparison(sealed(HOUR, &[("a", 0)], &[row]), 9 * HOUR);
        compare(&mut comparison, &[row, ("b", odd)]);
        let found = comparison.finish(NONE);
        assert_eq!((found.sealed, found.wrong, found.days.len()), (1, 1, 0), "{odd:?}");
    }
}

#[test]
fn without_old_events_a_sealed_row_is_part_of_an_open_session_that_it_touches() {
    let (old, new) = (20 * MINUTE, 45 * MINUTE);
    for (closes_before, open) in [(HOUR, true), (new + GAP, true), (new + GAP + 1, false)] {
        let row = ("a", span(old, old, 1));
        let mut comparison = comparison(sealed(HOUR, &[("a", old)], &[row]), closes_before);
        read(&mut comparison, &[("a", new)]);
        compare(&mut comparison, &[row]);
        if !open {
            // The two should be one row.
            compare(&mut comparison, &[("a", span(new, new, 1))]);
        }
        let found = comparison.finish(OldEvents::Gone);
        let want = if open { (1, 0, 0) } else { (0, 1, 1) };
        assert_eq!((found.part_of_open, found.right, found.wrong), want, "{closes_before}");
        assert_eq!((found.unverifiable, found.days.len()), (0, 0));
        let shard = shard_of(&key("a")).0 as usize;
        assert_eq!(found.progress[shard].open, u64::from(open), "the other one has its row");
    }
}

#[test]
fn without_old_events_only_rows_that_begin_in_sealed_time_are_unverifiable() {
    let row = ("a", span(0, 0, 1));
    for (first, want) in [(HOUR - 1, (1, 0)), (HOUR, (0, 1))] {
        let mut comparison = comparison(sealed(HOUR, &[("a", 0)], &[row]), 9 * HOUR);
        // One event is known, and the row has two.
        read(&mut comparison, &[("b", HOUR)]);
        compare(&mut comparison, &[row, ("b", span(first, HOUR, 2))]);
        let found = comparison.finish(OldEvents::Gone);
        assert_eq!((found.unverifiable, found.wrong), want, "{first}");
    }
}

#[test]
fn a_day_counts_as_removed_only_if_all_its_sessions_were_sealed() {
    let row = ("a", span(0, 0, 1));
    for (sealed_before, is_removed) in [(23 * HOUR, false), (24 * HOUR, true)] {
        let mut comparison = comparison(sealed(sealed_before, &[("a", 0)], &[row]), 90 * HOUR);
        let found = comparison.finish(NONE);
        assert_eq!(
            (found.removed.len(), found.days.is_empty()),
            (usize::from(is_removed), is_removed)
        );
    }
}

/// The key "late" has a sealed row that is still there, and a new one on the same day. Another key
/// has lost its row.
#[test]
fn nothing_counts_as_removed_on_purpose_while_an_older_row_or_one_of_that_day_is_there() {
    for (old, new, lost) in [(0, 2, 1), (0, 2, 24), (2, 0, 1), (2, 0, 24)] {
        let [old, new, lost] = [old, new, lost].map(|hour| hour * HOUR);
        let row = |host, time| (host, span(time, time, 1));
        let rows = [row("late", old), row("lost", lost)];
        let mut comparison =
            comparison(sealed(3 * DAY, &[("late", old), ("lost", lost)], &rows), 5 * DAY);
        read(&mut comparison, &[("late", new)]);
        compare(&mut comparison, &[row("late", old), row("late", new)]);
        assert!(comparison.needs_old_events());
        comparison.old_event(key("late"), at(old));
        comparison.old_event(key("lost"), at(lost));
        let found = comparison.finish(OldEvents::Read);
        assert_eq!((found.right, found.removed.len(), found.wrong + found.missing), (2, 0, 0));
        let days: Vec<Day> = found.days.iter().map(|difference| difference.day).collect();
        assert_eq!(days, [Day::of(at(lost))], "{old} {new} {lost}");
    }
}

/// Two days, the first of which is gone: the second may lack rows, but none of them may change.
#[test]
fn the_oldest_day_that_is_left_may_lack_rows_once_others_were_removed() {
    let (one, two) = (("one", span(DAY, DAY, 1)), ("two", span(DAY, DAY + MINUTE, 2)));
    let events = [("gone", 0), ("one", DAY), ("two", DAY), ("two", DAY + MINUTE)];
    let gone = ("gone", span(0, 0, 1));
    let with = |(host, row): (&'static str, Span), count| (host, Span { count, ..row });
    for (rows, thinned, differences) in [
        (vec![one], true, 0),
        (vec![two], true, 0),
        // As many rows or events as before, or more: that is no removal.
        (vec![with(one, 3)], false, 1),
        (vec![one, with(two, 1)], false, 1),
        (vec![with(one, 2), with(two, 2)], false, 1),
        // Nothing older is gone.
        (vec![gone, one], false, 1),
    ] {
        let mut comparison = comparison(sealed(3 * DAY, &events, &[gone, one, two]), 5 * DAY);
        compare(&mut comparison, &rows);
        let found = comparison.finish(NONE);
        assert_eq!((found.thinned.is_some(), found.days.len()), (thinned, differences), "{rows:?}");
        if thinned {
            assert_eq!((found.sealed, &found.removed[..]), (1, &[(Day::of(at(0)), 1)][..]));
            let proof = proof_of(comparison, 3 * DAY);
            let left: Vec<i64> = proof.days.values().map(|sums| sums.rows).collect();
            assert_eq!(left, [1], "it is sealed as it is now");
        }
    }
}
