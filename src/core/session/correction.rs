//! What late sessions do to rows that are already in the table, and why no two rows of a key ever
//! touch (I6).
//!
//! Two spans *touch* if at most `gap` lies between them. `end(s)` is the last event of `s` plus the
//! gap. The horizon of a shard is the largest end of any session it has closed, or of any row that
//! existed before the job; it never falls. An open session is *late* if any event that it absorbed
//! was not later than the horizon at that moment.
//!
//! # A session that is not late touches no row
//!
//! Let `s` close without being late, and let `r` be a row of its key.
//!
//! 1. While both were open they did not touch, because the open sessions of a key never do: a
//!    session that is touched is merged. If both close together, nothing else is left to show.
//! 2. Otherwise `r` closed first, or existed before the job, and `s` stayed open. The events that
//!    `s` had by then were not before `r`: otherwise the end of `s` would have been less than
//!    `end(r)`, which the watermark had passed, and `s` would have closed as well. So all of them
//!    are later than `end(r)`.
//! 3. The events that `s` absorbed later were later than the horizon, which is at least `end(r)`.
//! 4. So every event of `s` is later than `end(r) = r.last + gap`: they do not touch.
//!
//! # Late sessions: one look at the table finds all that they touch
//!
//! A correction merges all late sessions of a key in a commit with all rows that any of them
//! touches. Let `m` be one of the results, and `r` a row that was not fetched.
//!
//! 1. `m` is the hull of spans of which each touches another: the holes between them are at most a
//!    gap long. If `r` touches `m`, it touches one of these spans: from outside, the first or the
//!    last; inside a hole, the spans on both sides.
//! 2. That span is either a row, which `r` does not touch by I6, or a late session, in which case
//!    `r` would have been fetched.
//! 3. So `r` does not touch `m`. The results do not touch each other either, because touching spans
//!    are merged.
//!
//! Both proofs require that the rows of this commit that are not late are in the table before the
//! late sessions look up theirs: the order of `ledger/commit`. And `end(m)` is no larger than the
//! ends of its parts, so the horizon covers it.

use std::collections::BTreeMap;

use crate::key::Key;
use crate::session::{Span, merge_touching};
use crate::time::Gap;

/// How the rows of one key change: each removed row is emitted as `-1`, each added row as `+1`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Correction {
    pub key: Key,
    /// Rows to delete.
    pub removed: Vec<Span>,
    /// Rows to insert.
    pub added: Vec<Span>,
}

/// Merges late sessions with the rows they touch. `rows` must hold exactly those rows.
///
/// ```
/// use sessionizer_core::key::Key;
/// use sessionizer_core::session::Span;
/// use sessionizer_core::session::correction::correct;
/// use sessionizer_core::time::{EventTime, Gap};
///
/// let gap = Gap::from_millis(10).expect("valid");
/// let key = Key::new("192.0.2.7", "a.example");
/// let event = |ms| Span::event(EventTime::from_millis(ms));
///
/// // A late event at 10 bridges the rows at 0 and 20.
/// let rows = [(key.clone(), event(0)), (key.clone(), event(20))];
/// let corrections = correct([(key, event(10))], rows, gap);
/// assert_eq!(corrections[0].removed, [event(0), event(20)]);
/// assert_eq!(corrections[0].added, [event(0).merge(event(10)).merge(event(20))]);
/// ```
pub fn correct(
    late: impl IntoIterator<Item = (Key, Span)>,
    rows: impl IntoIterator<Item = (Key, Span)>,
    gap: Gap,
) -> Vec<Correction> {
    let mut keys: BTreeMap<Key, (Vec<Span>, Vec<Span>)> = BTreeMap::new();
    for (key, span) in late {
        keys.entry(key).or_default().0.push(span);
    }
    for (key, span) in rows {
        let entry = keys.get_mut(&key).expect("rows are fetched for late sessions only");
        entry.1.push(span);
    }
    keys.into_iter()
        .map(|(key, (late, removed))| {
            let spans: Vec<Span> = late.into_iter().chain(removed.iter().copied()).collect();
            let events = count(&spans);
            let added = merge_touching(spans, gap);
            debug_assert_eq!(count(&added), events, "I8: a correction keeps every event");
            let mut pairs = added.windows(2);
            debug_assert!(pairs.all(|pair| !pair[0].touches(&pair[1], gap)), "I6: {added:?}");
            Correction { key, removed, added }
        })
        .collect()
}

/// How many events the spans have.
fn count(spans: &[Span]) -> u64 {
    spans.iter().map(|span| span.count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::EventTime;

    const GAP: i64 = 10;

    fn span(first: i64, last: i64, count: u64) -> Span {
        let at = EventTime::from_millis;
        Span { first: at(first), last: at(last), count }
    }

    fn added(late: &[Span], rows: &[Span]) -> Vec<Span> {
        let key = || Key::new("ip", "host");
        let gap = Gap::from_millis(GAP).expect("valid");
        let with_key = |spans: &[Span]| spans.iter().map(|s| (key(), *s)).collect::<Vec<_>>();
        let corrections = correct(with_key(late), with_key(rows), gap);
        assert_eq!(corrections.len(), 1);
        assert_eq!(corrections[0].removed, rows);
        corrections[0].added.clone()
    }

    #[test]
    fn a_late_session_that_touches_nothing_is_a_row_of_its_own() {
        assert_eq!(added(&[span(0, 0, 1)], &[]), [span(0, 0, 1)]);
    }

    #[test]
    fn it_joins_a_row_up_to_and_with_the_gap() {
        for (late, rows) in [(90, 1), (111, 1)] {
            let joined = added(&[span(late, late, 1)], &[span(100, 101, 2)]);
            assert_eq!(joined.len(), rows, "{late}");
            assert_eq!(joined[0].count, 3);
        }
        assert_eq!(added(&[span(89, 89, 1)], &[span(100, 101, 2)]).len(), 2);
        assert_eq!(added(&[span(112, 112, 1)], &[span(100, 101, 2)]).len(), 2);
    }

    #[test]
    fn it_bridges_several_rows() {
        let rows = [span(0, 5, 2), span(25, 30, 2)];
        assert_eq!(added(&[span(15, 15, 1)], &rows), [span(0, 30, 5)]);
    }

    #[test]
    fn two_that_do_not_touch_meet_in_one_row() {
        let late = [span(0, 0, 1), span(30, 30, 1)];
        assert_eq!(added(&late, &[span(10, 20, 2)]), [span(0, 30, 4)]);
    }
}
