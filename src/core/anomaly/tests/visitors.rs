//! Visitors and networks that come back, by the day.

use super::*;

/// `visitors` with one session each, and `n` sessions of one on the next day.
fn returning(visitors: i64, n: i64) -> Vec<Row> {
    let mut rows = quiet(visitors, -24, 0);
    rows.extend((0..n).map(|i| session("a", DAY + (i + 1) * 20 * MINUTE, 0, 1)));
    rows
}

#[test]
fn a_visitor_comes_back_more_often_than_the_floor_allows() {
    let at = DAY + 23 * 60 * MINUTE;
    for (sessions, want) in [(7, 0), (8, 0), (9, 1)] {
        let found = found(&returning(300, sessions), at);
        assert_eq!(of(Kind::Repeat, &found).len(), want, "{sessions}");
    }
    let found = found(&returning(300, 12), at);
    let repeat = of(Kind::Repeat, &found)[0];
    assert_eq!((repeat.at.millis(), repeat.observed, repeat.threshold), (DAY, 12, 8));
    let want = "12 sessions in a day, 0 the day before; 95 % of the 300 visitors of that day had at \
                most 1";
    assert_eq!(repeat.reason(), want);
}

#[test]
fn a_visitor_comes_back_more_often_than_the_busy_ones_of_the_day_before() {
    let at = DAY + 23 * 60 * MINUTE;
    for (sessions, want) in [(15, 0), (16, 1)] {
        let mut rows = returning(600, sessions);
        for visitor in 0..25 {
            let end = |i: i64| DAY - 24 * 60 * MINUTE + (i + 1) * 20 * MINUTE;
            rows.extend((0..10).map(|i| session(&format!("busy{visitor}"), end(i), 0, 1)));
        }
        let found = found(&rows, at);
        assert_eq!(of(Kind::Repeat, &found).len(), want, "{sessions}");
    }
}

#[test]
fn who_came_as_often_on_the_day_before_is_no_news() {
    let at = DAY + 23 * 60 * MINUTE;
    for (before, want) in [(9, 0), (8, 0), (7, 1)] {
        let yesterday = |i: i64| DAY - 24 * 60 * MINUTE + (i + 1) * 20 * MINUTE;
        let mut rows = returning(600, 16);
        rows.extend((0..before).map(|i| session("a", yesterday(i), 0, 1)));
        let found = found(&rows, at);
        assert_eq!(of(Kind::Repeat, &found).len(), want, "{before}");
    }
    for (before, want) in [(10, 0), (9, 1)] {
        let mut rows = quiet(600, -24, 0);
        let ip = |i: i64| format!("192.0.2.{}", i % 5);
        rows.extend((0..before).map(|i| session(&ip(i), DAY - (i + 1) * 20 * MINUTE, 0, 1)));
        rows.extend((0..20).map(|i| session(&ip(i), DAY + (i + 1) * 20 * MINUTE, 0, 1)));
        let found = found(&rows, at);
        assert_eq!(of(Kind::Network, &found).len(), want, "{before}");
    }
}

#[test]
fn who_comes_every_day_is_told_once() {
    let thresholds = Thresholds { repeat_growth: 0.0, repeat_z: 4.0, ..thresholds() };
    let day_ms = 24 * 60 * MINUTE;
    // What is found today if a visitor had so many sessions two days ago, yesterday and today.
    let days = |sessions: [i64; 3], first: i64| {
        let mut rows = quiet(300, first, -24);
        rows.extend(quiet(300, -24, 0));
        for (day, n) in (-2..=0).zip(sessions) {
            let end = |i: i64| DAY + day * day_ms + (i + 1) * 20 * MINUTE;
            rows.extend((0..n).map(|i| session("a", end(i), 0, 1)));
        }
        let sessions =
            rows.iter().map(|(ip, span, end)| Session { ip, host: HOST, span: *span, end: *end });
        let found = batch(sessions, EventTime::from_millis(DAY + day_ms), &thresholds);
        let day = |a: &&Anomaly| a.at.millis().div_euclid(day_ms) - DAY / day_ms;
        of(Kind::Repeat, &found).iter().map(day).collect::<Vec<i64>>()
    };
    // Yesterday was the first day that could be judged.
    assert_eq!(days([16, 16, 16], -48), [-1]);
    // Two days ago, only the afternoon is known: today is the first day that can be judged.
    assert_eq!(days([0, 16, 16], -36), [0]);
    // Four deviations more than yesterday's nine, which were too many then.
    assert_eq!([days([0, 9, 25], -48), days([0, 9, 26], -48)], [vec![-1], vec![-1, 0]]);
    assert_eq!([days([0, 8, 22], -48), days([0, 8, 24], -48)], [vec![], vec![0]]);
}

#[test]
fn a_network_needs_more_than_chance_can_explain() {
    let thresholds = Thresholds { network_z: 4.0, ..thresholds() };
    assert!(!Thresholds::is_more(25, 9, 4.0) && Thresholds::is_more(26, 9, 4.0));
    // Twice the difference of the roots: 2 · (10.0187 − 9.0208) is a little less than two.
    assert!(!Thresholds::is_more(100, 81, 2.0) && Thresholds::is_more(101, 81, 2.0));
    assert!(Thresholds::is_more(1, 9, 0.0));
    for (sessions, want) in [(24, 0), (25, 0), (26, 1)] {
        let mut rows = quiet(600, -24, 0);
        let ip = |i: i64| format!("192.0.2.{}", i % 5);
        rows.extend((0..9).map(|i| session(&ip(i), DAY - (i + 1) * 20 * MINUTE, 0, 1)));
        rows.extend((0..sessions).map(|i| session(&ip(i), DAY + (i + 1) * 20 * MINUTE, 0, 1)));
        let sessions_of =
            rows.iter().map(|(ip, span, end)| Session { ip, host: HOST, span: *span, end: *end });
        let end = EventTime::from_millis(DAY + 23 * 60 * MINUTE);
        let found = batch(sessions_of, end, &thresholds);
        assert_eq!(of(Kind::Network, &found).len(), want, "{sessions}");
    }
}

#[test]
fn a_day_needs_a_whole_day_before_it() {
    let at = DAY + 23 * 60 * MINUTE;
    let with = |mut rows: Vec<Row>| {
        rows.extend((0..20).map(|i| session("a", DAY + (i + 1) * 20 * MINUTE, 0, 1)));
        of(Kind::Repeat, &found(&rows, at)).len()
    };
    assert_eq!([with(quiet(300, -18, 0)), with(quiet(300, -19, 0))], [0, 1]);
    assert_eq!([with(quiet(199, -24, 0)), with(quiet(200, -24, 0))], [0, 1]);
}

#[test]
fn a_network_needs_five_addresses() {
    let at = DAY + 23 * 60 * MINUTE;
    let with = |addresses: i64, each: i64| {
        let mut rows = quiet(300, -24, 0);
        for i in 0..addresses * each {
            let ip = format!("192.0.2.{}", i % addresses);
            rows.push(session(&ip, DAY + (i + 1) * 15 * MINUTE, 0, 1));
        }
        found(&rows, at)
    };
    assert!(of(Kind::Network, &with(4, 8)).is_empty());
    assert!(of(Kind::Network, &with(8, 1)).is_empty());
    assert_eq!(of(Kind::Network, &with(9, 1)).len(), 1);
    let found = with(5, 3);
    let network = of(Kind::Network, &found)[0];
    assert_eq!((network.subject.as_str(), network.observed), ("192.0.2.0/24", 15));
    let want = "5 addresses of one network, none with more than 3 sessions: 15 together in a day, \
                0 the day before; 95 % of the 300 networks of that day had at most 1";
    assert_eq!(network.reason(), want);
    assert!(of(Kind::Repeat, &found).is_empty());
}
