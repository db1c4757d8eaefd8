//! The window by itself: what enters it, what leaves it, and what is bounded.

use super::*;
use sessionizer_core::key::Key;
use sessionizer_core::session::Span;

const BOUNDS: Bounds =
    Bounds { minute_ms: 10, minutes: 2, hour_ms: 100, hours: 3, hosts: 2, visitors: 3 };

fn at(ms: i64) -> EventTime {
    EventTime::from_millis(ms)
}

/// A row of two events that ended at `end_ms`.
fn row(ip: &str, host: &str, end_ms: i64, diff: i64) -> Row {
    let span = Span { first: at(end_ms - 5), last: at(end_ms), count: 2 };
    Row::new(Key::new(ip, host), span, end_ms, diff)
}

/// Advances the window, and adds what it emits to what it emitted before.
fn advance(window: &mut Window, emitted: &mut BTreeMap<String, i64>, rows: &[Row], to: i64) {
    let changed = window.advance(rows.iter().cloned(), at(to));
    let mut add = |what: String, n: i64| {
        let sum = emitted.entry(what.clone()).or_default();
        *sum += n;
        if *sum == 0 {
            emitted.remove(&what);
        }
    };
    let name = |host: Host| match host {
        Host::ALL => "all",
        Host::OTHER => "other",
        host if host == Host::named("a") => "a",
        host if host == Host::named("b") => "b",
        _ => "c",
    };
    for (((host, hour), item), sums) in changed.hours {
        if item.bin().0 {
            add(format!("{} in hour {hour}", name(host)), sums.sessions);
        }
    }
    for ((host, minute), sums) in changed.minutes {
        add(format!("{} in minute {minute}", name(host)), sums.sessions);
    }
    for ((host, visitor), n) in changed.visits {
        let address = visitor.address().expect("it is short");
        add(format!("{address} on {}", name(host)), n);
    }
    for ((_, name), n) in changed.hosts {
        add(format!("{name} has a place"), n);
    }
    for (from, n) in changed.visitors_from {
        add(format!("visitors from {from}"), n);
    }
}

fn lines(all: &[(&str, i64)]) -> BTreeMap<String, i64> {
    all.iter().map(|(line, n)| ((*line).to_owned(), *n)).collect()
}

#[test]
fn what_has_left_the_window_is_taken_back_and_what_is_older_never_enters() {
    let (mut window, mut all) = (Window::new(BOUNDS, false), BTreeMap::new());
    let rows = [row("x", "a", 1_005, 1), row("y", "a", 1_025, 1), row("x", "a", 699, 1)];
    advance(&mut window, &mut all, &rows, 1_030);
    let hour = [("a in hour 10", 2), ("all in hour 10", 2), ("a has a place", 1)];
    let visits = [("x on a", 1), ("y on a", 1)];
    let minute = [("a in minute 102", 1), ("all in minute 102", 1)];
    assert_eq!(all, lines(&[&hour[..], &visits, &minute].concat()));
    assert_eq!(window.too_old, 1);
    // A correction after its minutes have left the window.
    advance(&mut window, &mut all, &[row("y", "a", 1_025, -1)], 1_300);
    let hour = [("a in hour 10", 1), ("all in hour 10", 1), ("a has a place", 1)];
    assert_eq!(all, lines(&[&hour[..], &[("x on a", 1)]].concat()));
    advance(&mut window, &mut all, &[row("x", "a", 1_005, -1)], 1_400);
    assert_eq!((all, window.too_old), (lines(&[]), 2));
    assert_eq!(window.sizes(), [0, 0, 0]);
}

#[test]
fn a_row_is_taken_from_where_it_was_added() {
    let (mut window, mut all) = (Window::new(BOUNDS, false), BTreeMap::new());
    let rows = [row("x", "a", 1_005, 1), row("x", "b", 1_005, 1), row("x", "c", 1_105, 1)];
    advance(&mut window, &mut all, &rows, 1_000);
    assert_eq!(all["other in hour 11"], 1);
    // There is room again, but one of its rows is among the others.
    advance(&mut window, &mut all, &[row("x", "c", 1_205, 1)], 1_400);
    assert_eq!(window.sizes()[0], 0);
    assert_eq!((all["other in hour 11"], all["other in hour 12"]), (1, 1));
    let gone = [row("x", "c", 1_105, -1), row("x", "c", 1_205, -1), row("x", "c", 1_405, 1)];
    advance(&mut window, &mut all, &gone, 1_400);
    let c = [("c in hour 14", 1), ("all in hour 14", 1), ("c has a place", 1)];
    let minute = [("c in minute 140", 1), ("all in minute 140", 1), ("x on c", 1)];
    assert_eq!(all, lines(&[&c[..], &minute].concat()));
}

#[test]
fn beyond_their_limit_visitors_count_again_from_the_next_hour_on() {
    let (mut window, mut all) = (Window::new(BOUNDS, false), BTreeMap::new());
    let visitors = ["w", "x", "y", "z"].map(|ip| row(ip, "a", 1_005, 1));
    advance(&mut window, &mut all, &visitors, 1_010);
    assert_eq!((window.sizes()[2], all["visitors from 11"]), (0, 1));
    assert!(!all.contains_key("w on a"), "{all:?}");
    let rows = [row("w", "a", 1_105, 1), row("w", "a", 1_005, -1)];
    advance(&mut window, &mut all, &rows, 1_110);
    assert_eq!((all["w on a"], all["a in hour 10"]), (1, 3));
    // The hours in which they were not counted have left the window.
    advance(&mut window, &mut all, &[], 1_400);
    assert!(!all.contains_key("visitors from 11"), "{all:?}");
}

#[test]
fn nothing_is_emitted_until_the_past_is_in_or_given_up() {
    let (mut window, mut all) = (Window::new(BOUNDS, true), BTreeMap::new());
    window.closed_before(at(1_050));
    // A correction of a row that has not been read yet.
    advance(&mut window, &mut all, &[row("x", "a", 1_005, -1)], 1_010);
    assert_eq!(all, lines(&[]));
    advance(&mut window, &mut all, &[row("x", "a", 1_005, 1), row("x", "a", 905, 1)], 1_020);
    window.complete();
    advance(&mut window, &mut all, &[], 1_020);
    assert_eq!((all["a in hour 9"], all.get("a in hour 10")), (1, None));

    let (mut window, mut all) = (Window::new(BOUNDS, true), BTreeMap::new());
    window.closed_before(at(1_050));
    advance(&mut window, &mut all, &[row("x", "a", 1_005, -1)], 1_010);
    let came = |latest| TableWatermark { complete: at(1_020), latest: at(latest) };
    assert_eq!(window.begin_empty(came(1_030)), at(1_050));
    let rows = [row("x", "a", 1_045, -1), row("x", "a", 1_055, 1)];
    advance(&mut window, &mut all, &rows, 1_060);
    assert_eq!((all["a in hour 10"], all["x on a"]), (1, 1));
}

#[test]
fn without_a_past_nothing_counts_that_the_fastest_writer_may_have_closed() {
    let mut window = Window::new(BOUNDS, true);
    window.closed_before(at(1_010));
    let came = TableWatermark { complete: at(1_020), latest: at(1_040) };
    assert_eq!(window.begin_empty(came), at(1_040));
    let changed = window.advance([row("x", "a", 1_040, 1)].into_iter(), at(1_040));
    assert_eq!(changed.visits, []);
    let changed = window.advance([row("x", "a", 1_041, 1)].into_iter(), at(1_050));
    assert_eq!(changed.visits.len(), 1);
}

/// An attack: every row has a host and an address of its own.
#[test]
fn random_hosts_and_addresses_stay_within_the_bounds() {
    let bounds = Bounds { hosts: 50, visitors: 200, ..BOUNDS };
    let mut window = Window::new(bounds, false);
    let (mut all, mut ended, mut dropped) = (BTreeMap::new(), BTreeMap::new(), 0);
    for tick in 0..300 {
        let end_ms = 1_000 + 10 * tick;
        let name = |n| format!("{tick}.{n}");
        let rows: Vec<Row> = (0..40).map(|n| row(&name(n), &name(n), end_ms + n / 4, 1)).collect();
        *ended.entry(end_ms / 100).or_insert(0) += 40;
        advance(&mut window, &mut all, &rows, end_ms);
        let [hosts, cells, visitors] = window.sizes();
        assert!(hosts <= 50 && visitors <= 200, "{hosts} hosts, {visitors} visitors");
        // Those with a place, all, and the others: in four hours, two bins each, and three minutes.
        assert!(cells <= 52 * (4 * 2 + 3), "{cells} cells");
        assert!(window.slots.len() <= 4 && window.slots.values().all(|of| of.len() <= 4_096));
        dropped += usize::from(window.visitors_from_emitted.is_some());
    }
    // What has no room is counted all the same.
    for hour in 37..40 {
        assert_eq!(all[&format!("all in hour {hour}")], ended[&hour]);
        assert!(all[&format!("other in hour {hour}")] > 300);
    }
    assert!(dropped > 200, "visitors were not counted {dropped} times");
}
