//! Events of dead letters that are processed again (`sessionizer redrive`): one more epoch of a
//! shard, with the watermark of the last.

use std::collections::HashMap;

use crate::binding::Late;
use crate::key::{Key, stable_hash};
use crate::session::{Closed, SessionTable, Span};
use crate::time::EventTime;

/// Where a job has stopped, and what it does with events that are too late.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastEpoch {
    pub watermark: EventTime,
    /// The time before which a session must have ended to have closed: the watermark, unless the
    /// epoch was drained.
    pub close_before: EventTime,
    pub late: Late,
}

/// What became of the events.
#[derive(Debug)]
pub struct Again {
    /// Sessions that would have closed already, if such events are dropped.
    pub dropped: Vec<Closed>,
    /// Sessions that close at once.
    pub closed: Vec<Closed>,
    /// How many of the records are in open sessions now.
    pub open: u64,
}

/// Adds `events` to the open sessions of their shard, and closes what is due. Sessions that the
/// table of Postgres had `refused` were not too late when they closed, so they are never dropped.
pub fn again<'a>(
    table: &mut SessionTable,
    last: LastEpoch,
    events: impl IntoIterator<Item = (&'a Key, Span)>,
    refused: impl IntoIterator<Item = (&'a Key, Span)>,
) -> Again {
    let before = table.open_records();
    let (mut dropped, mut closed) = (Vec::new(), Vec::new());
    insert(table, events);
    if last.late == Late::Drop {
        table.take_due(last.watermark, &mut dropped);
    }
    insert(table, refused);
    table.close(last.close_before, &mut closed);
    let open = table.open_records();
    assert!(open >= before, "I8: no session that was open closes at the same watermark");
    Again { dropped, closed, open: open - before }
}

fn insert<'a>(table: &mut SessionTable, events: impl IntoIterator<Item = (&'a Key, Span)>) {
    for (key, span) in events {
        table.insert(stable_hash(key.bytes()), key.bytes(), span);
    }
}

/// Returns a function that says whether an event is part of one of these sessions.
pub fn part_of(sessions: &[Closed]) -> impl Fn(&Key, Span) -> bool {
    let mut spans: HashMap<&Key, Vec<Span>> = HashMap::new();
    for session in sessions {
        spans.entry(&session.key).or_default().push(session.span);
    }
    move |key, event| {
        let part = |span: &Span| span.first <= event.first && event.last <= span.last;
        spans.get(key).is_some_and(|spans| spans.iter().any(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Gap;

    const AT: fn(i64) -> EventTime = EventTime::from_millis;

    /// What became of events at these times, with an open session at 100 and the watermark at 105.
    fn merged(late: Late, drained: bool, events: &[i64]) -> (Again, usize) {
        let key = Key::new("192.0.2.1", "a");
        let mut table = SessionTable::new(Gap::from_millis(10).expect("valid"), EventTime::NEVER);
        if !drained {
            insert(&mut table, [(&key, Span::event(AT(100)))]);
        }
        let close_before = if drained { EventTime::FOREVER } else { AT(105) };
        let last = LastEpoch { watermark: AT(105), close_before, late };
        let events = events.iter().map(|ms| (&key, Span::event(AT(*ms))));
        let again = again(&mut table, last, events, []);
        (again, table.len())
    }

    fn times(sessions: &[Closed]) -> Vec<(i64, i64, u64)> {
        let mut times: Vec<_> = sessions
            .iter()
            .map(|closed| {
                (closed.span.first.millis(), closed.span.last.millis(), closed.span.count)
            })
            .collect();
        times.sort_unstable();
        times
    }

    #[test]
    fn events_join_open_sessions_or_close_at_once() {
        // 94 ends at 104, before the watermark, but it touches the session that is open.
        let (again, open) = merged(Late::Merge, false, &[94, 40, 50, 61]);
        assert_eq!((again.open, open), (1, 1));
        assert_eq!(times(&again.closed), [(40, 50, 2), (61, 61, 1)]);
        assert!(again.dropped.is_empty());
        let part = part_of(&again.closed);
        let of = |ip, ms| part(&Key::new(ip, "a"), Span::event(AT(ms)));
        assert!(of("192.0.2.1", 50) && !of("192.0.2.1", 51) && !of("192.0.2.2", 50));
    }

    #[test]
    fn what_is_too_late_is_dropped_if_the_job_drops_it() {
        let (again, open) = merged(Late::Drop, false, &[94, 40, 95, 200]);
        assert_eq!((again.open, open), (3, 2));
        assert_eq!(times(&again.dropped), [(40, 40, 1)]);
        assert!(again.closed.is_empty());
    }

    #[test]
    fn after_a_drain_everything_closes_and_only_the_late_is_dropped() {
        let (again, open) = merged(Late::Drop, true, &[40, 95, 200]);
        assert_eq!((again.open, open), (0, 0));
        assert_eq!(times(&again.dropped), [(40, 40, 1)]);
        assert_eq!(times(&again.closed), [(95, 95, 1), (200, 200, 1)]);
    }
}
