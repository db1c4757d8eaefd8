//! Reports the open sessions that last long to the detectors of anomalies: when one becomes long,
//! now and then while it grows, and when it is part of another or has closed.

use std::collections::BTreeMap;

use sessionizer_core::anomaly::{OpenNow, OpenReport};
use sessionizer_core::key::Key;
use sessionizer_core::session::{Open, SessionTable, Span};
use sessionizer_core::time::EventTime;

/// Growth is looked for once per minute of watermark time, and reported if it is this long.
const LOOK_EVERY_MS: i64 = 60_000;
const GROWN_MS: u64 = 600_000;

/// What has been reported of the sessions of a worker.
#[derive(Debug, Default)]
pub(super) struct LongSessions {
    reported: BTreeMap<(Key, EventTime), Span>,
    /// The minute of the watermark in which growth was last looked for.
    minute: Option<i64>,
}

impl LongSessions {
    /// Compares what has been reported with what is open now.
    pub(super) fn report<'a>(
        &mut self,
        tables: impl Iterator<Item = &'a mut SessionTable>,
        watermark: EventTime,
    ) -> Vec<OpenReport> {
        let minute = watermark.millis().div_euclid(LOOK_EVERY_MS);
        let mut looks = self.minute.replace(minute) != Some(minute);
        let tables: Vec<&SessionTable> = tables
            .map(|table| {
                looks |= table.take_long_changed();
                &*table
            })
            .collect();
        if !looks {
            return Vec::new();
        }
        let open = tables.iter().flat_map(|table| table.long());
        self.compare(open.map(|Open { key, span, .. }| {
            let key = Key::from_encoded(key);
            ((key, span.first), span)
        }))
    }

    fn compare(&mut self, open: impl Iterator<Item = ((Key, EventTime), Span)>) -> Vec<OpenReport> {
        let open: BTreeMap<(Key, EventTime), Span> = open.collect();
        let mut reports = Vec::new();
        self.reported.retain(|session, _| {
            if open.contains_key(session) {
                return true;
            }
            let (key, at) = session;
            let earlier = open.range(..session).next_back();
            let joined = earlier.is_some_and(|((of, _), span)| of == key && span.last >= *at);
            let now = if joined { OpenNow::Joined } else { OpenNow::Closed };
            reports.push(OpenReport { key: key.clone(), at: *at, now });
            false
        });
        for (session, span) in open {
            let known = self.reported.get(&session);
            if known.is_none_or(|known| span.duration_ms() >= known.duration_ms() + GROWN_MS) {
                let (key, at) = session.clone();
                reports.push(OpenReport { key, at, now: OpenNow::Open(span) });
                self.reported.insert(session, span);
            }
        }
        reports
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sessionizer_core::key::stable_hash;
    use sessionizer_core::time::Gap;

    const MINUTE: i64 = 60_000;
    const HOUR: i64 = 60 * MINUTE;
    const GAP: i64 = 5 * MINUTE;
    const LONG: i64 = 10 * HOUR;

    fn at(ms: i64) -> EventTime {
        EventTime::from_millis(ms)
    }

    struct World {
        table: SessionTable,
        long: LongSessions,
    }

    impl World {
        fn new() -> Self {
            let gap = Gap::from_millis(GAP).expect("valid");
            let mut table = SessionTable::new(gap, EventTime::NEVER);
            table.watch_long(LONG as u64);
            World { table, long: LongSessions::default() }
        }

        /// One event every four minutes.
        fn visits(&mut self, from: i64, to: i64) {
            for ms in (from..=to).step_by(4 * MINUTE as usize) {
                self.event(ms);
            }
        }

        fn event(&mut self, ms: i64) {
            let key = Key::new("a", "h");
            self.table.insert(stable_hash(key.bytes()), key.bytes(), Span::event(at(ms)));
        }

        /// What is reported at this watermark: the beginning and what has become of it.
        fn reports(&mut self, watermark: i64) -> Vec<(i64, OpenNow)> {
            self.table.close(at(watermark), &mut Vec::new());
            let reports = self.long.report(std::iter::once(&mut self.table), at(watermark));
            reports.into_iter().map(|report| (report.at.millis(), report.now)).collect()
        }
    }

    fn open(first: i64, last: i64, count: u64) -> OpenNow {
        OpenNow::Open(Span { first: at(first), last: at(last), count })
    }

    #[test]
    fn a_long_session_is_reported_as_it_grows_and_when_it_closes() {
        let mut world = World::new();
        let mut seen = Vec::new();
        // The watermark is a gap behind, and has to pass the end of what has become long.
        for last in (0..=12 * HOUR).step_by(4 * MINUTE as usize) {
            world.event(last);
            seen.extend(world.reports(last - GAP).into_iter().map(|report| (last, report)));
        }
        let (first_seen, first) = seen[0];
        assert_eq!(first, (0, open(0, first_seen, first_seen as u64 / (4 * MINUTE) as u64 + 1)));
        assert!(first_seen > LONG && first_seen <= LONG + 2 * GAP + 4 * MINUTE, "{first_seen}");
        // Every 12 minutes: the first multiple of four that is at least ten.
        let grown: Vec<i64> = seen.windows(2).map(|two| two[1].0 - two[0].0).collect();
        assert!(grown.len() >= 8 && grown.iter().all(|ms| *ms == 12 * MINUTE), "{grown:?}");
        assert_eq!(world.reports(12 * HOUR + GAP), [], "its end is not before the watermark");
        assert_eq!(world.reports(12 * HOUR + GAP + 1), [(0, OpenNow::Closed)]);
        assert_eq!(world.reports(20 * HOUR), []);
    }

    #[test]
    fn exactly_the_limit_is_not_long() {
        for (last, want) in [(LONG - 1, 0), (LONG, 0), (LONG + 1, 1)] {
            let mut world = World::new();
            world.visits(0, LONG - 4 * MINUTE);
            world.event(last);
            assert_eq!(world.reports(LONG).len(), want, "{last}");
        }
    }

    #[test]
    fn a_session_that_joins_an_earlier_one_is_reported_anew() {
        let mut world = World::new();
        world.visits(HOUR, HOUR + LONG + 20 * MINUTE);
        assert_eq!(world.reports(HOUR + LONG + 16 * MINUTE).len(), 1);
        // An event before it moves its beginning; that is seen when the minute has passed.
        world.event(HOUR - GAP);
        let moved = open(HOUR - GAP, HOUR + LONG + 20 * MINUTE, 157);
        assert_eq!(
            world.reports(HOUR + LONG + 17 * MINUTE),
            [(HOUR, OpenNow::Joined), (HOUR - GAP, moved)]
        );
        // Another open session is bridged to it.
        world.visits(3 * MINUTE, 51 * MINUTE);
        let reports = world.reports(HOUR + LONG + 18 * MINUTE);
        assert_eq!(reports.len(), 2, "{reports:?}");
        assert_eq!(reports[0], (HOUR - GAP, OpenNow::Joined));
        assert!(matches!(reports[1], (at, OpenNow::Open(_)) if at == 3 * MINUTE));
    }

    #[test]
    fn a_start_finds_what_is_long_in_the_snapshot() {
        let mut world = World::new();
        world.visits(0, 11 * HOUR);
        let gap = world.table.gap();
        let open: Vec<Open<'_>> = world.table.open().collect();
        let mut table = SessionTable::restore(gap, EventTime::NEVER, open);
        table.watch_long(LONG as u64);
        let mut started = World { table, long: LongSessions::default() };
        assert_eq!(started.reports(10 * HOUR).len(), 1);
    }
}
