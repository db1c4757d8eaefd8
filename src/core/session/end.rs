//! What the `session_end` of a row holds.

use crate::session::Span;
use crate::time::{EventTime, Gap};

/// What `session_end` holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionEnd {
    /// The last event plus the gap: the exclusive end of the window, as the Flink job wrote it.
    Window,
    /// The last event.
    LastEvent,
}

impl SessionEnd {
    /// The name in `jobs.session_end`, and the value of `--session-end`.
    pub const fn name(self) -> &'static str {
        match self {
            SessionEnd::Window => "window",
            SessionEnd::LastEvent => "last-event",
        }
    }

    /// The one with this name; what no version writes counts as the default.
    pub fn named(name: &str) -> Self {
        match name {
            name if name == SessionEnd::LastEvent.name() => SessionEnd::LastEvent,
            _ => SessionEnd::Window,
        }
    }

    /// Returns the `session_end` of a row.
    pub fn of(self, span: &Span, gap: Gap) -> EventTime {
        match self {
            SessionEnd::Window => gap.end_after(span.last),
            SessionEnd::LastEvent => span.last,
        }
    }

    /// Returns how long after its last event the `session_end` of a session is, in milliseconds.
    pub fn after_ms(self, gap: Gap) -> i64 {
        match self {
            SessionEnd::Window => gap.millis(),
            SessionEnd::LastEvent => 0,
        }
    }

    /// Returns how long after its `session_end` a session closes, in milliseconds of the watermark.
    pub fn closes_after_ms(self, gap: Gap) -> i64 {
        match self {
            SessionEnd::Window => 0,
            SessionEnd::LastEvent => gap.millis(),
        }
    }

    /// Returns the last event of a row with this `session_end`.
    pub fn last_event(self, end: EventTime, gap: Gap) -> EventTime {
        match self {
            SessionEnd::Window => end.plus(-gap.millis()),
            SessionEnd::LastEvent => end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_in_its_row_and_closes_a_gap_after_its_last_event() {
        let gap = Gap::from_millis(300_000).expect("valid");
        let last = EventTime::from_millis(1_000);
        for (end, after_ms) in [(SessionEnd::Window, 300_000), (SessionEnd::LastEvent, 0)] {
            assert_eq!(end.after_ms(gap), after_ms);
            assert_eq!(end.of(&Span::event(last), gap), last.plus(after_ms));
            assert_eq!(end.last_event(last.plus(after_ms), gap), last);
            assert_eq!(after_ms + end.closes_after_ms(gap), gap.millis());
        }
    }

    #[test]
    fn the_name_of_an_end_leads_back_to_it_and_any_other_is_that_of_the_window() {
        for end in [SessionEnd::Window, SessionEnd::LastEvent] {
            assert_eq!(SessionEnd::named(end.name()), end);
        }
        assert_eq!(SessionEnd::named("first-event"), SessionEnd::Window);
    }
}
