//! Surges, falls and single events: what stands out at a whole host.

use super::*;

/// `counts[i]` sessions end in the `i`th five minutes of the day.
fn buckets(counts: &[i64]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (at, n) in counts.iter().enumerate() {
        let start = DAY + at as i64 * BUCKET_MS;
        rows.extend((0..*n).map(|i| session(&format!("{at}-{i}"), start + i * 1_000, 0, 2)));
    }
    rows
}

#[test]
fn a_surge_is_beyond_the_median_of_the_hour_before_and_counts_once() {
    let thresholds = Thresholds::default();
    assert_eq!([0, 2, 60, 200, 2_000].map(|m| thresholds.surge_from(m)), [30, 30, 73, 200, 2_000]);
    // Six deviations above 31: 31 + 6 · 5.6013 + 9 = 73.6.
    assert_eq!(thresholds.surge_from(62), 74);
    let surges = |last: &[i64], watermark: i64| {
        let counts = [&[100; 12][..], last].concat();
        let found = found(&buckets(&counts), DAY + watermark * BUCKET_MS);
        of(Kind::Surge, &found).into_iter().cloned().collect::<Vec<Anomaly>>()
    };
    assert!(surges(&[199], 13).is_empty());
    let [surge] = &surges(&[200], 13)[..] else { panic!("one surge") };
    assert_eq!((surge.at.millis(), surge.observed, surge.expected), (DAY + 3_600_000, 200, 100));
    assert_eq!(surge.reason(), "200 sessions in 5 min; the hour before had 100 at the median");
    // Not before the bucket is final, and once for the buckets of one surge.
    assert!(surges(&[200], 12).is_empty());
    assert_eq!(surges(&[200, 300, 250], 15).len(), 1);
    assert_eq!(surges(&[200, 100, 250], 15).len(), 2);
    // The median lies between the two in the middle: 75.
    let counts = [&[75; 12][..], &[50; 6], &[100; 6], &[200]].concat();
    let found = found(&buckets(&counts), DAY + 25 * BUCKET_MS);
    let last = DAY + 24 * BUCKET_MS;
    let surge = found.iter().find(|anomaly| anomaly.at.millis() == last).expect("the last");
    assert_eq!(surge.kind, Kind::Surge);
    assert_eq!((surge.observed, surge.expected, surge.threshold), (200, 75, 150));
}

#[test]
fn a_fall_needs_something_to_fall_from() {
    let thresholds = Thresholds::default();
    let falls: Vec<Option<u64>> = [59, 60, 200, 2_000].map(|m| thresholds.fall_to(m, 30)).to_vec();
    assert_eq!(falls, [None, Some(5), Some(48), Some(500)]);
    // Six deviations below 33: 33 − 6 · 5.7771 + 9 = 7.34.
    assert_eq!(thresholds.fall_to(66, 30), Some(7));
    for (counts, last, want) in [([100; 12], 49, 0), ([100; 12], 48, 1), ([29; 12], 0, 0)] {
        let rows = buckets(&[&counts[..], &[last]].concat());
        let found = found(&rows, DAY + 13 * BUCKET_MS);
        assert_eq!(of(Kind::Fall, &found).len(), want, "{last}");
    }
    // Six of the twelve buckets have sessions: the host has only just appeared.
    let mut counts = [0; 13];
    counts[6..12].fill(100);
    assert!(of(Kind::Fall, &found(&buckets(&counts), DAY + 13 * BUCKET_MS)).is_empty());
    counts[5] = 100;
    assert!(of(Kind::Surge, &found(&buckets(&counts), DAY + 13 * BUCKET_MS)).is_empty());
    let [fall] = &found(&buckets(&counts), DAY + 13 * BUCKET_MS)[..] else { panic!("one fall") };
    assert_eq!((fall.kind, fall.observed, fall.expected), (Kind::Fall, 0, 100));
}

/// The median of an hour of which half is empty is half of the usual rate.
#[test]
fn a_host_that_comes_back_at_its_usual_rate_is_no_surge() {
    for away in 1..=14 {
        let counts = [&[150; 14][..], &vec![0; away], &[150; 14]].concat();
        let end = DAY + counts.len() as i64 * BUCKET_MS;
        let found = found(&buckets(&counts), end);
        assert!(of(Kind::Surge, &found).is_empty(), "away for {away} buckets: {found:?}");
    }
}

#[test]
fn a_small_host_is_judged_by_a_quarter_of_an_hour() {
    let thresholds = Thresholds::default();
    assert_eq!([39, 40, 60].map(|m| thresholds.fall_to(m, 20)), [None, Some(1), Some(5)]);
    // Ten in five minutes, at the median of the hour before the quarter.
    for (last, want) in [([2, 2, 3], 0), ([2, 2, 2], 0), ([2, 2, 1], 1), ([0, 0, 5], 1)] {
        let rows = buckets(&[&[10; 12][..], &last].concat());
        let found = found(&rows, DAY + 15 * BUCKET_MS);
        assert_eq!(of(Kind::Fall, &found).len(), want, "{last:?}");
    }
    let mut rows = buckets(&[&[10; 12][..], &[2, 2, 1, 0, 0, 10, 10]].concat());
    let found_all = |rows: &[Row]| found(rows, DAY + 19 * BUCKET_MS);
    let found = found_all(&rows);
    // Once for all quarters that overlap.
    let [fall] = &of(Kind::Fall, &found)[..] else { panic!("one fall: {found:?}") };
    assert_eq!((fall.at.millis(), fall.observed, fall.threshold), (DAY + 14 * BUCKET_MS, 5, 5));
    assert_eq!(fall.reason(), "5 sessions in 15 min; the hour before had 30 at the median");
    // Late events fill the gap.
    rows.extend((12..17).flat_map(|at| {
        (0..8).map(move |i| session(&format!("late{at}-{i}"), DAY + at * BUCKET_MS + i, 0, 2))
    }));
    assert!(of(Kind::Fall, &found_all(&rows)).is_empty());
    // Six in five minutes are eighteen in a quarter: too few to judge.
    for (usual, want) in [(6, 0), (7, 1), (20, 1)] {
        let rows = buckets(&[&[usual; 12][..], &[0; 3]].concat());
        let found = self::found(&rows, DAY + 15 * BUCKET_MS);
        assert_eq!(of(Kind::Fall, &found).len(), want, "{usual}");
    }
}

#[test]
fn nothing_at_all_is_a_fall_too_as_soon_as_the_watermark_says_so() {
    let rows = buckets(&[100; 12]);
    let falls = |watermark| of(Kind::Fall, &found(&rows, DAY + watermark * BUCKET_MS)).len();
    assert_eq!([falls(12), falls(13), falls(20)], [0, 1, 1]);
}

#[test]
fn singles_need_the_points_the_deviations_and_the_number() {
    let thresholds = Thresholds::default();
    // Half of all: 20 points more are 70 of 100, five deviations are 75.1.
    assert_eq!(thresholds.singles_from(99, 1_000, 2_000), None);
    assert_eq!(thresholds.singles_from(100, 1_000, 2_000), Some(76));
    assert_eq!(thresholds.singles_from(10_000, 1_000, 2_000), Some(7_000));
    // The usual share is nine in ten: 20 points more are impossible.
    assert_eq!(thresholds.singles_from(10_000, 900, 1_000), None);
    let at = DAY + 10 * 60 * MINUTE;
    for (singles, want) in [(20, 0), (21, 1)] {
        let mut rows = quiet(300, 0, 10);
        rows.extend((0..100).map(|i| {
            session(&format!("q{i}"), at + i * 1_000, 0, if i < singles { 1 } else { 2 })
        }));
        let found = found(&rows, at + SINGLES_MS);
        let singles: Vec<&Anomaly> = of(Kind::Singles, &found);
        assert_eq!(singles.len(), want);
        if want == 1 {
            assert_eq!(singles[0].reason(), "21 % of 100 sessions had one event; usually 0 %");
        }
        assert!(of(Kind::Singles, &self::found(&rows, at + SINGLES_MS - 1)).is_empty());
    }
}

#[test]
fn two_quarters_of_single_events_in_a_row_stand_out_once() {
    let at = DAY + 10 * 60 * MINUTE;
    let mut rows = quiet(300, 0, 10);
    for quarter in [0, 1, 3] {
        let end = |i: i64| at + quarter * SINGLES_MS + i * 1_000;
        rows.extend((0..100).map(|i| session(&format!("q{quarter}-{i}"), end(i), 0, 1)));
    }
    let found = found(&rows, at + 4 * SINGLES_MS);
    let quarters = of(Kind::Singles, &found);
    let quarters: Vec<i64> = quarters.iter().map(|a| (a.at.millis() - at) / SINGLES_MS).collect();
    assert_eq!(quarters, [0, 3]);
}

#[test]
fn shares_of_single_events_are_rounded_to_the_percent() {
    let limits = Limits {
        burst: Limit::default(),
        pace: Limit::default(),
        marathon: Limit::default(),
        sessions: 600,
        singles: 400,
        slowest: 0,
    };
    let judge = |singles| limits.judge_singles(HOST, 7, 300, singles, &Thresholds::default());
    // Two thirds are 200 of 300, and twenty points are 60 more.
    assert_eq!([judge(259).is_some(), judge(260).is_some()], [false, true]);
    let found = judge(299).expect("nearly all");
    assert_eq!((found.observed, found.expected), (100, 67));
    assert_eq!(found.at, EventTime::from_millis(7 * 15 * MINUTE));
}
