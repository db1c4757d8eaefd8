use super::long::MOST;
use super::*;
use crate::session::span::{Open, merge_touching};
use crate::shared::oracle::{Sessions, sessions};
use crate::shared::rng::Rng;
use std::collections::BTreeMap;

const GAP: i64 = 300_000;

fn gap() -> Gap {
    Gap::from_millis(GAP).expect("valid")
}

fn at(millis: i64) -> EventTime {
    EventTime::from_millis(millis)
}

fn table() -> SessionTable {
    SessionTable::new(gap(), EventTime::NEVER)
}

fn insert(table: &mut SessionTable, ip: &str, millis: i64) {
    let key = Key::new(ip, "h");
    table.insert(stable_hash(key.bytes()), key.bytes(), Span::event(at(millis)));
}

fn close(table: &mut SessionTable, watermark: i64) -> Vec<(i64, i64, u64, bool)> {
    let mut closed = Vec::new();
    table.close(at(watermark), &mut closed);
    closed.sort();
    closed
        .iter()
        .map(|c| (c.span.first.millis(), c.span.last.millis(), c.span.count, c.late))
        .collect()
}

#[test]
fn a_table_without_some_keys_is_that_of_the_other_events() {
    let (mut table, mut want) = (table(), table());
    for (ip, millis) in [("a", 0), ("b", 10), ("a", 10 * GAP), ("c", 11 * GAP), ("b", 12 * GAP)] {
        insert(&mut table, ip, millis);
        if ip != "a" {
            insert(&mut want, ip, millis);
        }
    }
    close(&mut table, 2 * GAP);
    close(&mut want, 2 * GAP);
    let gone = Key::new("a", "h");
    let left = table.without(|key| key == gone.bytes());
    assert_eq!((left.len(), left.open_records(), left.horizon()), (2, 2, table.horizon()));
    let sessions = |table: &SessionTable| -> Vec<_> {
        let mut open: Vec<_> =
            table.open().map(|open| (open.key.to_vec(), open.span, open.late)).collect();
        open.sort();
        open
    };
    assert_eq!(sessions(&left), sessions(&want));
}

#[test]
fn events_join_up_to_and_with_the_gap() {
    for (apart, sessions) in [(GAP - 1, 1), (GAP, 1), (GAP + 1, 2)] {
        for (first, second) in [(0, apart), (apart, 0)] {
            let mut table = table();
            insert(&mut table, "a", first);
            insert(&mut table, "a", second);
            assert_eq!(table.len(), sessions, "{first} then {second}");
            assert_eq!(table.open_records(), 2);
        }
    }
}

#[test]
fn the_memory_of_a_table_is_that_of_its_sessions_and_is_reused() {
    const SESSIONS: usize = 100_000;
    let mut table = table();
    assert!(table.allocated_bytes() < 100, "{} of an empty table", table.allocated_bytes());
    let fill = |table: &mut SessionTable, begin: i64| {
        (0..SESSIONS as i64)
            .for_each(|i| insert(table, &format!("visitor-{i:020}"), begin + i % 60));
    };
    fill(&mut table, 0);
    let full = table.allocated_bytes();
    // 48 bytes of a slot, 32 of a key, 4 and a byte of index, 6 to be filed; and room to grow.
    let each = full / SESSIONS;
    assert!((85..170).contains(&each), "{each} bytes a session");
    assert_eq!(close(&mut table, 2 * GAP).len(), SESSIONS);
    let empty = table.allocated_bytes();
    // What was filed is free now, and is noted as such: each place of a session and of a key.
    assert!(empty >= full && empty < full * 11 / 10, "{full} bytes, {empty} once all are closed");
    fill(&mut table, 10 * GAP);
    let again = table.allocated_bytes();
    assert!(again < full * 11 / 10, "{full} bytes at first, {again} the second time");
}

#[test]
fn a_session_closes_when_the_watermark_has_passed_its_end() {
    for (watermark, closes) in [(GAP - 1, false), (GAP, false), (GAP + 1, true)] {
        let mut table = table();
        insert(&mut table, "a", 0);
        assert_eq!(close(&mut table, watermark).len(), usize::from(closes), "{watermark}");
        assert_eq!(table.horizon(), if closes { at(GAP) } else { EventTime::NEVER });
    }
}

#[test]
fn an_event_between_two_open_sessions_bridges_them_and_only_those() {
    let mut table = table();
    for time in [0, 2 * GAP, 5 * GAP, GAP] {
        insert(&mut table, "a", time);
    }
    insert(&mut table, "b", GAP);
    let want = [(0, 2 * GAP, 3, false), (5 * GAP, 5 * GAP, 1, false), (GAP, GAP, 1, false)];
    assert_eq!(close(&mut table, 10 * GAP), want);
    assert!(table.is_empty());
    assert_eq!(table.open_records(), 0);
}

#[test]
fn a_session_that_grows_is_filed_again_and_closes_once() {
    let mut table = table();
    for step in 0..10 {
        insert(&mut table, "a", step * GAP / 2);
        assert_eq!(close(&mut table, step * GAP / 2 + GAP), []);
    }
    assert_eq!(close(&mut table, 9 * GAP / 2 + GAP + 1), [(0, 9 * GAP / 2, 10, false)]);
    assert_eq!(close(&mut table, 100 * GAP), []);
}

#[test]
fn only_what_may_touch_a_closed_session_is_late() {
    let mut table = table();
    insert(&mut table, "a", 0);
    assert_eq!(close(&mut table, GAP + 1), [(0, 0, 1, false)]);
    for (time, late) in [(GAP - 1, true), (GAP, true), (GAP + 1, false)] {
        insert(&mut table, "b", time);
        assert_eq!(close(&mut table, 3 * GAP), [(time, time, 1, late)]);
        table.horizon = at(GAP);
    }
}

#[test]
fn a_raised_horizon_makes_more_events_late_and_never_falls() {
    let mut table = table();
    table.raise_horizon(at(100));
    table.raise_horizon(at(50));
    assert_eq!(table.horizon(), at(100));
    insert(&mut table, "a", 100);
    insert(&mut table, "b", 101);
    assert_eq!(close(&mut table, 3 * GAP), [(100, 100, 1, true), (101, 101, 1, false)]);
}

#[cfg(debug_assertions)]
#[test]
#[should_panic(expected = "I8: the totals of the open sessions")]
fn no_snapshot_is_written_with_totals_that_are_wrong() {
    let mut table = table();
    insert(&mut table, "a", 0);
    table.open_records += 1;
    crate::session::snapshot::encode(&table);
}

#[test]
fn an_open_session_joined_by_a_late_event_is_late() {
    let mut table = SessionTable::new(gap(), at(100));
    insert(&mut table, "a", 101);
    insert(&mut table, "a", 100);
    insert(&mut table, "a", 102);
    assert_eq!(close(&mut table, 3 * GAP), [(100, 102, 3, true)]);
}

#[test]
fn keys_with_one_hash_stay_apart() {
    let mut table = table();
    let (a, b) = (Key::new("a", "h"), Key::new("b", "h"));
    // Not how it is called, but what a collision looks like: `put` trusts the hash.
    table.put(7, a.bytes(), Span::event(at(0)), false);
    table.put(7, b.bytes(), Span::event(at(0)), false);
    assert_eq!(table.len(), 2);
}

#[test]
fn places_of_keys_are_used_again_and_sessions_of_a_key_share_one() {
    let mut table = table();
    let mut most = 0;
    for round in 0..50 {
        let now = round * 10 * GAP;
        for number in 0..100 {
            let ip = format!("{number}{}", "x".repeat((number % 50) as usize));
            insert(&mut table, &ip, now);
            insert(&mut table, &ip, now + 2 * GAP);
            insert(&mut table, &ip, now + GAP * (round % 2));
        }
        assert_eq!(close(&mut table, now + 5 * GAP).len(), if round % 2 == 0 { 200 } else { 100 });
        assert!(table.is_empty());
        most = if round == 1 { table.keys.bytes.len() } else { most };
    }
    assert_eq!(table.keys.bytes.len(), most, "keys of the same lengths fill the same places");
    assert!(table.slots.len() <= 300, "{}", table.slots.len());
    assert_eq!(size_of::<Slot>(), 40);
}

/// A key may have any number of open sessions. (Scanning all of them for every event would take
/// minutes.)
#[test]
fn a_key_may_have_a_hundred_thousand_open_sessions() {
    const MANY: i64 = 100_000;
    let mut table = table();
    for turn in [0, GAP / 2] {
        for number in 0..MANY {
            // Not in order: 7,919 and the number of sessions are coprime.
            insert(&mut table, "a", number * 7_919 % MANY * 3 * GAP + turn);
        }
        assert_eq!(table.len(), MANY as usize);
    }
    let closed = close(&mut table, MANY * 3 * GAP);
    let want = (0..MANY).map(|at| (at * 3 * GAP, at * 3 * GAP + GAP / 2, 2, false));
    assert!(closed.into_iter().eq(want), "each of them is there once, with both events");
    assert!(table.is_empty() && table.sorted.is_empty());
}

#[test]
fn sessions_of_a_crowd_are_bridged_also_the_one_in_the_index() {
    let mut table = table();
    for number in 0..100 {
        insert(&mut table, "a", number * 2 * GAP);
    }
    for number in (0..99).rev() {
        insert(&mut table, "a", number * 2 * GAP + GAP);
        assert_eq!(table.len(), number as usize + 1);
        let restored = SessionTable::restore(gap(), table.horizon(), table.open());
        assert_eq!(restored.open_records(), table.open_records());
    }
    assert_eq!(close(&mut table, 1_000 * GAP), [(0, 198 * GAP, 199, false)]);
    assert!(table.is_empty() && table.sorted.is_empty());
}

/// Any order of arrival, any combining on the way, a close and a restore at any moment: the output,
/// merged as the commit does it, is the batch answer (I1).
#[test]
fn whatever_the_order_the_sessions_are_those_of_the_batch() {
    for seed in 0..2_000 {
        let mut rng = Rng::new(seed);
        let keys = rng.between(1, 4);
        let steps = [0, 1, GAP - 1, GAP, GAP + 1, 2 * GAP, 3 * GAP + 5];
        let mut now = 0;
        let mut events: Vec<(u64, i64)> = (0..rng.below(60))
            .map(|_| {
                now += steps[rng.below(7) as usize];
                (rng.below(keys), now)
            })
            .collect();
        let want = sessions(events.iter().copied(), GAP);
        for i in (1..events.len()).rev() {
            events.swap(i, rng.below(i as u64 + 1) as usize);
        }
        assert_eq!(run(&events, &mut rng, 8), want, "seed {seed}");
    }
}

/// The same for keys with many open sessions, because sessions seldom close.
#[test]
fn whatever_the_order_the_sessions_of_a_crowd_are_those_of_the_batch() {
    let mut most = 0;
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let keys = rng.between(1, 2);
        let steps = [1, GAP, GAP + 1, GAP + 1, 2 * GAP, 2 * GAP, 3 * GAP + 5];
        let mut now = 0;
        let mut events: Vec<(u64, i64)> = (0..rng.below(400))
            .map(|_| {
                now += steps[rng.below(7) as usize];
                (rng.below(keys), now)
            })
            .collect();
        let want = sessions(events.iter().copied(), GAP);
        for i in (1..events.len()).rev() {
            events.swap(i, rng.below(i as u64 + 1) as usize);
        }
        most = most.max(want.values().map(Vec::len).max().unwrap_or(0));
        assert_eq!(run(&events, &mut rng, 150), want, "seed {seed}");
    }
    assert!(most > 5 * MAX_LIST, "at most {most} sessions of a key");
}

/// That a session is long is seen when the watermark has passed the end that it had when it became
/// long, at the latest; that it is gone, or is part of another, is seen at once.
#[test]
fn long_sessions_are_known_when_the_watermark_gets_there() {
    const LONG: u64 = 2 * GAP as u64;
    let is_long = |open: &Open<'_>| open.span.duration_ms() > LONG;
    let of = |open: Open<'_>| (Key::from_encoded(open.key), open.span);
    let (mut most, mut became) = (0, 0);
    for seed in 0..500 {
        let mut rng = Rng::new(seed);
        let mut table = table();
        table.watch_long(LONG);
        let (mut now, mut watermark) = (0, 0);
        let crowd = seed % 2 == 1;
        let mut ends: BTreeMap<(Key, EventTime), EventTime> = BTreeMap::new();
        for _ in 0..if crowd { 400 } else { 80 } {
            now += [1, GAP / 8, GAP / 8, GAP / 4, GAP / 3, 2 * GAP][rng.below(6) as usize];
            let late = if rng.one_in(4) { rng.below(8 * GAP as u64) as i64 } else { 0 };
            insert(&mut table, &rng.below(3).to_string(), now - late);
            for (key, span) in table.open().filter(is_long).map(of) {
                ends.entry((key, span.first)).or_insert(gap().end_after(span.last));
            }
            if rng.one_in(if crowd { 100 } else { 6 }) {
                let sorted = |mut all: Vec<(Key, Span)>| {
                    all.sort_unstable();
                    all
                };
                watermark = watermark.max(now - rng.below(6 * GAP as u64) as i64);
                close(&mut table, watermark);
                let known = sorted(table.long().map(of).collect());
                let open = sorted(table.open().filter(is_long).map(of).collect());
                assert!(known.iter().all(|one| open.contains(one)), "seed {seed}");
                let due =
                    |(key, span): &&(Key, Span)| ends[&(key.clone(), span.first)] < at(watermark);
                let missing = open.iter().filter(due).find(|one| !known.contains(one));
                assert_eq!(missing, None, "seed {seed}");
                most = most.max(known.len());
                became += usize::from(table.take_long_changed());
                assert!(!table.take_long_changed());
                // A restored table knows all of them at once.
                let mut again = SessionTable::restore(gap(), table.horizon(), table.open());
                again.watch_long(LONG);
                assert_eq!(sorted(again.long().map(of).collect()), open);
            }
        }
    }
    assert!(most >= 2 && became > 100, "{most}, {became}");
}

#[test]
fn of_too_many_long_sessions_some_are_known_and_others_take_their_places() {
    let mut table = table();
    table.watch_long(GAP as u64);
    let names: Vec<String> = (0..MOST + 10).map(|n| n.to_string()).collect();
    let visit = |table: &mut SessionTable, names: &[String], times: &[i64]| {
        for (name, time) in names.iter().flat_map(|name| times.iter().map(move |t| (name, *t))) {
            insert(table, name, time);
        }
    };
    visit(&mut table, &names, &[0, GAP, 2 * GAP]);
    close(&mut table, 2 * GAP);
    assert_eq!(table.long().count(), MOST);
    // Half of them close. The others go on and are visited once more after that.
    let going_on = &names[MOST / 2..];
    visit(&mut table, going_on, &[3 * GAP, 4 * GAP, 5 * GAP, 6 * GAP]);
    close(&mut table, 4 * GAP);
    close(&mut table, 6 * GAP);
    assert_eq!((table.long().count(), table.open().count()), (going_on.len(), going_on.len()));
}

#[test]
fn that_a_session_has_become_long_is_a_change_once() {
    let mut table = table();
    table.watch_long(GAP as u64);
    [0, GAP, 2 * GAP].iter().for_each(|time| insert(&mut table, "a", *time));
    close(&mut table, 2 * GAP);
    assert_eq!(table.long().count(), 1);
    assert_eq!([table.take_long_changed(), table.take_long_changed()], [true, false]);
    close(&mut table, 3 * GAP);
    assert_eq!((table.long().count(), table.take_long_changed()), (1, false));
}

#[test]
fn long_sessions_of_a_crowd_are_known_as_soon_as_they_are_watched() {
    let mut table = table();
    for number in 0..2 * MAX_LIST as i64 {
        let begin = number * 5 * GAP;
        insert(&mut table, "a", begin);
        if number % 2 == 0 {
            insert(&mut table, "a", begin + GAP);
            insert(&mut table, "a", begin + 2 * GAP);
        }
    }
    table.watch_long(GAP as u64);
    assert_eq!(table.long().count(), MAX_LIST);
    assert!(table.long().all(|open| open.span.count == 3));
}

fn run(events: &[(u64, i64)], rng: &mut Rng, seldom: u64) -> Sessions<u64> {
    let mut table = table();
    let mut rows: BTreeMap<u64, Vec<Span>> = BTreeMap::new();
    let mut watermark = 0;
    let mut commit = |table: &mut SessionTable, watermark| {
        let mut closed = Vec::new();
        table.close(at(watermark), &mut closed);
        let (late, on_time): (Vec<_>, Vec<_>) = closed.into_iter().partition(|c| c.late);
        for closed in on_time.into_iter().chain(late) {
            let key = closed.key.parts().0.parse().expect("a number");
            let spans = rows.entry(key).or_default();
            let touched = spans.iter().any(|span| span.touches(&closed.span, gap()));
            assert!(closed.late || !touched, "an on-time session never touches a row");
            spans.push(closed.span);
            *spans = merge_touching(std::mem::take(spans), gap());
        }
    };
    for (key, time) in events {
        insert(&mut table, &key.to_string(), *time);
        if rng.one_in(seldom) {
            watermark = watermark.max(time - rng.below(3 * GAP as u64) as i64);
            commit(&mut table, watermark);
        }
        if rng.one_in(seldom) {
            let restored = SessionTable::restore(gap(), table.horizon(), table.open());
            assert_eq!(restored.len(), table.len());
            table = restored;
        }
    }
    commit(&mut table, EventTime::FOREVER.millis());
    assert!(table.is_empty() && table.open_records() == 0);
    rows.into_iter()
        .map(|(key, spans)| {
            let row = |s: Span| (s.first.millis(), s.last.millis(), s.count);
            (key, spans.into_iter().map(row).collect())
        })
        .collect()
}

#[test]
fn a_session_takes_about_a_hundred_bytes() {
    let mut table = table();
    assert!(table.allocated_bytes() < 10_000);
    for n in 0..50_000 {
        insert(&mut table, &format!("10.0.{}.{}", n / 256, n % 256), 0);
    }
    let each = table.allocated_bytes() / 50_000;
    assert!((60..200).contains(&each), "{each} bytes for each session");
    // What closed sessions leave is kept.
    let before = table.allocated_bytes();
    close(&mut table, 3 * GAP);
    assert_eq!(table.len(), 0);
    assert!(table.allocated_bytes() > before / 2);
}
