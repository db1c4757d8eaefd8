//! The batch answer, computed independently of the job's session logic, and its comparison with the
//! table. Pure.
//!
//! Events go into sorted spans of their key, and neighbours that touch are joined: no watermark, no
//! lateness, no shards. Memory grows with the number of sessions, not of events.

use std::collections::HashMap;

use crate::key::Key;
use crate::session::Span;
use crate::time::{EventTime, Gap};

/// The sessions of all events so far.
pub struct BatchOracle {
    gap: Gap,
    keys: HashMap<Key, Vec<Expected>>,
}

struct Expected {
    span: Span,
    /// Whether the table has a row that is exactly this session.
    found: bool,
    /// How many of its events the table has refused.
    refused: u64,
    /// How many of the other events its rows hold.
    stored: u64,
}

impl Expected {
    fn new(span: Span) -> Self {
        Expected { span, found: false, refused: 0, stored: 0 }
    }

    fn holds(&self, part: &Span) -> bool {
        let whole = &self.span;
        part.count > 0
            && whole.first <= part.first
            && part.first <= part.last
            && part.last <= whole.last
    }
}

/// How a row of the table relates to the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RowVerdict {
    /// It is a session of the answer.
    Right,
    /// It is part of a session that is open again: it is replaced when that session closes.
    PartOfOpen,
    /// It is neither.
    Wrong,
}

impl BatchOracle {
    pub fn new(gap: Gap) -> Self {
        BatchOracle { gap, keys: HashMap::new() }
    }

    /// Adds an event, in any order.
    pub fn add(&mut self, key: Key, time: EventTime) {
        self.add_span(key, Span::event(time));
    }

    /// Adds events that are known to be in one session, in any order. Call it before any row of the
    /// key is compared.
    pub fn add_span(&mut self, key: Key, mut span: Span) {
        let gap = self.gap;
        let spans = self.keys.entry(key).or_default();
        // Spans are sorted and do not touch, so the ones that touch this one are adjacent.
        let from = spans.partition_point(|old| old.span.last + gap < span.first);
        let reach = span.last + gap;
        let upto = from + spans[from..].iter().take_while(|old| old.span.first <= reach).count();
        span = spans[from..upto].iter().fold(span, |span, old| span.merge(old.span));
        spans.splice(from..upto, [Expected::new(span)]);
    }

    /// The first session of a key that ends no earlier than `slack` before a row, and begins no
    /// later than `slack` after it.
    fn near(&self, key: &Key, row: &Span, slack_ms: i64) -> Option<Span> {
        let spans = self.keys.get(key)?;
        let at = spans.partition_point(|old| old.span.last.plus(slack_ms) < row.first);
        spans.get(at).map(|old| old.span).filter(|span| span.first <= row.last.plus(slack_ms))
    }

    /// Whether a row and a session have a moment in common.
    pub fn overlaps(&self, key: &Key, row: &Span) -> bool {
        self.near(key, row, 0).is_some()
    }

    /// A session that the events of a row would belong to.
    pub fn touching(&self, key: &Key, row: &Span) -> Option<Span> {
        self.near(key, row, self.gap.millis())
    }

    /// The sessions of a key, in order.
    pub fn of_key(&self, key: &Key) -> impl Iterator<Item = Span> {
        self.keys.get(key).into_iter().flatten().map(|expected| expected.span)
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.keys.values().map(Vec::len).sum()
    }

    /// Whether there was no event.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Removes events of a session that the table has refused; `false` if they belong to no
    /// session. Call it after all events and before all rows.
    pub fn refuse(&mut self, key: &Key, part: Span) -> bool {
        let Some(spans) = self.keys.get_mut(key) else { return false };
        let at = spans.partition_point(|old| old.span.last < part.first);
        match spans.get_mut(at) {
            Some(expected)
                if expected.holds(&part)
                    && expected.refused + part.count <= expected.span.count =>
            {
                expected.refused += part.count;
                true
            }
            _ => false,
        }
    }

    /// How many sessions the table lacks, or has only in part, because it refused them.
    pub fn refused(&self) -> u64 {
        let all = self.keys.values().flatten();
        all.filter(|expected| expected.refused > 0).count() as u64
    }

    /// Compares a row with the answer; `closed` says which sessions must be closed.
    pub fn check(&mut self, key: &Key, row: Span, closed: impl Fn(&Span) -> bool) -> RowVerdict {
        let Some(spans) = self.keys.get_mut(key) else { return RowVerdict::Wrong };
        let at = spans.partition_point(|old| old.span.last < row.first);
        match spans.get_mut(at) {
            // If part of a session was refused, its rows are the other parts.
            Some(expected) if expected.refused > 0 => {
                let room = expected.span.count - expected.refused - expected.stored;
                if expected.holds(&row) && row.count <= room {
                    expected.stored += row.count;
                    return RowVerdict::Right;
                }
                RowVerdict::Wrong
            }
            // A duplicate row is right only once.
            Some(expected) if expected.span == row && !expected.found => {
                expected.found = true;
                RowVerdict::Right
            }
            Some(expected)
                if expected.holds(&row)
                    && row.count < expected.span.count
                    && !closed(&expected.span) =>
            {
                RowVerdict::PartOfOpen
            }
            _ => RowVerdict::Wrong,
        }
    }

    /// Whether a row holds whole sessions of the answer and other events besides. Such a row
    /// existed before the job, and the job has merged its sessions into it. Those sessions then
    /// count as found.
    pub fn joins(&mut self, key: &Key, row: Span) -> bool {
        let Some(spans) = self.keys.get_mut(key) else { return false };
        let from = spans.partition_point(|old| old.span.first < row.first);
        let upto = from + spans[from..].partition_point(|old| old.span.last <= row.last);
        let within = &mut spans[from..upto];
        let events: u64 = within.iter().map(|old| old.span.count).sum();
        if events == 0 || events >= row.count || within.iter().any(|old| old.found) {
            return false;
        }
        within.iter_mut().for_each(|old| old.found = true);
        true
    }

    /// Like [`Self::joins`], and counts the row as the session of all its events.
    pub fn adopt(&mut self, key: &Key, row: Span) -> bool {
        if !self.joins(key, row) {
            return false;
        }
        let spans = self.keys.get_mut(key).expect("it has a session that the row holds");
        let from = spans.partition_point(|old| old.span.first < row.first);
        let upto = from + spans[from..].partition_point(|old| old.span.last <= row.last);
        let whole = Expected { found: true, ..Expected::new(row) };
        spans.splice(from..upto, [whole]);
        true
    }

    /// All sessions, with whether the table has a row that is exactly this session.
    pub fn into_sessions(self) -> impl Iterator<Item = (Key, Span, bool)> {
        self.keys.into_iter().flat_map(|(key, spans)| {
            spans.into_iter().map(move |expected| (key.clone(), expected.span, expected.found))
        })
    }

    /// The sessions for which no row was found and that were not refused, with the number of their
    /// events that were neither refused nor found in rows.
    pub fn missing(&self) -> impl Iterator<Item = (&Key, Span, u64)> {
        let missing = |expected: &&Expected| {
            !expected.found
                && (expected.refused == 0
                    || expected.refused + expected.stored < expected.span.count)
        };
        self.keys.iter().flat_map(move |(key, spans)| {
            let left = |e: &Expected| e.span.count - e.refused - e.stored;
            spans.iter().filter(missing).map(move |e| (key, e.span, left(e)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::merge_touching;
    use crate::shared::oracle::sessions;
    use crate::shared::rng::Rng;

    const GAP: i64 = 10;

    fn gap() -> Gap {
        Gap::from_millis(GAP).expect("valid")
    }

    fn at(millis: i64) -> EventTime {
        EventTime::from_millis(millis)
    }

    fn span(first: i64, last: i64, count: u64) -> Span {
        Span { first: at(first), last: at(last), count }
    }

    fn answer(times: &[i64]) -> BatchOracle {
        let mut answer = BatchOracle::new(gap());
        times.iter().for_each(|time| answer.add(Key::new("a", "h"), at(*time)));
        answer
    }

    fn spans(answer: &BatchOracle) -> Vec<Span> {
        answer.missing().map(|(_, span, _)| span).collect()
    }

    #[test]
    fn a_row_from_before_may_hold_whole_sessions_and_events_besides() {
        let key = Key::new("a", "h");
        let times = [100, 105, 200];
        let cases = [
            (span(95, 105, 3), true, "begins earlier"),
            (span(100, 112, 3), true, "ends later"),
            (span(100, 105, 3), true, "has more events at the same times"),
            (span(90, 210, 4), true, "bridges two"),
            (span(90, 210, 3), false, "has no event besides"),
            (span(101, 112, 3), false, "holds only a part"),
            (span(95, 104, 3), false, "holds only a part at the end"),
            (span(300, 310, 3), false, "holds none"),
        ];
        for (row, joins, what) in cases {
            let mut answer = answer(&times);
            assert_eq!(answer.joins(&key, row), joins, "{what}");
            assert_eq!(answer.missing().count() < 2, joins, "{what}");
            assert!(!answer.joins(&key, row), "a row counts once: {what}");
        }
        assert!(!answer(&times).joins(&Key::new("b", "h"), span(90, 210, 9)));
    }

    #[test]
    fn what_was_refused_is_not_missing_and_the_rest_of_it_is_right() {
        let key = Key::new("a", "h");
        let whole = span(100, 110, 3);
        let open = |_: &Span| false;
        let mut refused = answer(&[100, 105, 110, 200]);
        assert!(refused.refuse(&key, whole));
        assert_eq!((spans(&refused), refused.refused()), (vec![span(200, 200, 1)], 1));
        assert_eq!(refused.check(&key, whole, open), RowVerdict::Wrong, "it was refused");
        assert!(!refused.refuse(&key, span(105, 105, 1)), "more than there is");
        assert!(!refused.refuse(&key, span(195, 200, 1)), "it begins before");
        assert!(!refused.refuse(&Key::new("b", "h"), whole));
        let mut in_part = answer(&[100, 105, 110]);
        assert!(in_part.refuse(&key, span(105, 105, 1)));
        assert_eq!(in_part.check(&key, span(100, 100, 1), open), RowVerdict::Right);
        assert_eq!(spans(&in_part), [whole], "a part of it is missing");
        let missing: Vec<u64> = in_part.missing().map(|(_, _, events)| events).collect();
        assert_eq!(missing, [1], "of three, one was refused and one is there");
        assert_eq!(in_part.check(&key, span(110, 110, 2), open), RowVerdict::Wrong);
        assert_eq!(in_part.check(&key, span(110, 110, 1), open), RowVerdict::Right);
        assert_eq!(spans(&in_part), []);
    }

    #[test]
    fn sessions_that_were_refused_are_counted_whatever_was_refused_of_them() {
        let key = Key::new("a", "h");
        let mut answer = answer(&[100, 105, 110, 200, 300]);
        assert_eq!(answer.refused(), 0);
        assert!(answer.refuse(&key, span(110, 110, 1)), "its last event");
        assert!(answer.refuse(&key, span(100, 105, 2)), "and the others");
        assert!(answer.refuse(&key, span(300, 300, 1)));
        assert_eq!((spans(&answer), answer.refused()), (vec![span(200, 200, 1)], 2));
    }

    #[test]
    fn events_join_up_to_and_with_the_gap_in_any_order() {
        for (apart, sessions) in [(GAP - 1, 1), (GAP, 1), (GAP + 1, 2)] {
            assert_eq!(answer(&[0, apart]).len(), sessions);
            assert_eq!(answer(&[apart, 0]).len(), sessions);
        }
        assert_eq!([answer(&[]).is_empty(), answer(&[0]).is_empty()], [true, false]);
        assert_eq!(spans(&answer(&[0, 20, 40, 10, 30])), [span(0, 40, 5)]);
        assert_eq!(
            spans(&answer(&[0, 30, 60, 21])),
            [span(0, 0, 1), span(21, 30, 2), span(60, 60, 1)]
        );
    }

    #[test]
    fn it_agrees_with_sorting_and_cutting() {
        let mut rng = Rng::new(7);
        for _ in 0..500 {
            let times: Vec<i64> = (0..30).map(|_| rng.below(200) as i64).collect();
            let want = sessions(times.iter().map(|time| ((), *time)), GAP);
            let want: Vec<Span> = want[&()].iter().map(|(a, b, n)| span(*a, *b, *n)).collect();
            assert_eq!(spans(&answer(&times)), want);
            let events = times.iter().map(|time| Span::event(at(*time))).collect();
            assert_eq!(merge_touching(events, gap()), want);
        }
    }

    #[test]
    fn a_row_is_right_part_of_an_open_session_or_wrong() {
        let key = Key::new("a", "h");
        let closed_before = |end: i64| move |span: &Span| span.last < at(end);
        let mut answer = answer(&[0, 5, 100, 105]);
        let check = |answer: &mut BatchOracle, row, w| answer.check(&key, row, closed_before(w));
        assert_eq!(check(&mut answer, span(0, 5, 2), 50), RowVerdict::Right);
        assert_eq!(check(&mut answer, span(0, 5, 2), 50), RowVerdict::Wrong, "it is a duplicate");
        assert_eq!(check(&mut answer, span(100, 100, 1), 50), RowVerdict::PartOfOpen);
        assert_eq!(check(&mut answer, span(100, 100, 1), 500), RowVerdict::Wrong);
        assert_eq!(check(&mut answer, span(100, 105, 3), 50), RowVerdict::Wrong);
        assert_eq!(check(&mut answer, span(90, 105, 2), 50), RowVerdict::Wrong);
        assert_eq!(check(&mut answer, span(100, 100, 0), 50), RowVerdict::Wrong, "of no event");
        assert_eq!(check(&mut answer, span(100, 104, 2), 50), RowVerdict::Wrong, "of all events");
        let stranger = Key::new("b", "h");
        assert_eq!(answer.check(&stranger, span(0, 5, 2), closed_before(0)), RowVerdict::Wrong);
        assert_eq!(spans(&answer), [span(100, 105, 2)]);
    }
}
