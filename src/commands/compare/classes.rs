//! Why two tables of the same events differ, one visitor at a time. Pure.
//!
//! Rows of both tables that overlap or touch belong to one *stretch* of a visitor's time. Every
//! stretch has one class, which follows from its rows and from how many of its events may have been
//! late for the other program.

use sessionizer_core::time::EventTime;

/// A row of either table, with the end of its window: its last event plus the gap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct WindowRow {
    pub start: EventTime,
    pub end: EventTime,
    pub events: u64,
}

/// The rows of a visitor that overlap or touch, each list in order of time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stretch {
    pub ours: Vec<WindowRow>,
    pub theirs: Vec<WindowRow>,
}

/// Why the rows of a stretch differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// They do not.
    Same,
    /// Both have the same events. Theirs are several rows that touch: exactly a gap lies between
    /// the last event of one and the first event of the next.
    ExactGap,
    /// Both have the same events. Theirs are several rows that overlap: one had already been
    /// written when the event that joins them came.
    Overlapping,
    /// They lack events, as many as came late or fewer.
    Late,
    /// They have more rows than we do, and count more events: some were counted again after a
    /// restart.
    CountedAgain,
    /// They still have events of a visitor that the job has forgotten.
    Forgotten,
    /// They count more events, as many as the job has put into dead letters or fewer.
    DeadLetters,
    /// It begins before one of the tables does.
    BeforeBeginning,
    /// One of the tables may not have closed it yet.
    NotClosed,
    /// None of these.
    Unexplained,
}

impl Class {
    /// All classes, in the order in which they are shown.
    pub const ALL: [Class; 10] = [
        Class::Same,
        Class::Late,
        Class::ExactGap,
        Class::Overlapping,
        Class::CountedAgain,
        Class::Forgotten,
        Class::DeadLetters,
        Class::BeforeBeginning,
        Class::NotClosed,
        Class::Unexplained,
    ];

    /// The name in tables and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Same => "same",
            Class::Late => "late",
            Class::ExactGap => "exact gap",
            Class::Overlapping => "overlapping",
            Class::CountedAgain => "counted again",
            Class::Forgotten => "forgotten",
            Class::DeadLetters => "dead letters",
            Class::BeforeBeginning => "before the beginning",
            Class::NotClosed => "not closed yet",
            Class::Unexplained => "unexplained",
        }
    }

    /// What it means, for people.
    pub const fn meaning(self) -> &'static str {
        match self {
            Class::Same => "the rows are equal",
            Class::Late => "the other table lacks events that came late",
            Class::ExactGap => "the other table splits where exactly a gap lies between two events",
            Class::Overlapping => "the other table still has the parts that a late event joined",
            Class::CountedAgain => "the other table counts events again, as after a restart",
            Class::Forgotten => "the other table still has a visitor that the job has forgotten",
            Class::DeadLetters => "the other table counts events that are dead letters of the job",
            Class::BeforeBeginning => "it begins before one of the tables does",
            Class::NotClosed => "one of the tables may not have closed it yet",
            Class::Unexplained => "none of these explains it",
        }
    }
}

/// What is known about a stretch besides its rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// How many of its events may have been late for the other program.
    pub late: u64,
    /// How many of its events the job has put into dead letters.
    pub dead: u64,
    /// Whether the job has forgotten the visitor.
    pub is_forgotten: bool,
}

/// The period in which both tables are complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Common {
    /// A row of one table that begins earlier than this need not be in the other.
    pub from: EventTime,
    /// Both have closed every session that ends at this time or earlier.
    pub to: EventTime,
}

impl Stretch {
    /// Adds a row if it overlaps or touches, or if this is empty. Rows come in order of their
    /// start.
    pub fn add(&mut self, is_ours: bool, row: WindowRow) -> bool {
        if self.end().is_some_and(|end| row.start > end) {
            return false;
        }
        if is_ours { &mut self.ours } else { &mut self.theirs }.push(row);
        true
    }

    fn all(&self) -> impl Iterator<Item = &WindowRow> {
        self.ours.iter().chain(&self.theirs)
    }

    pub fn start(&self) -> Option<EventTime> {
        self.all().map(|row| row.start).min()
    }

    pub fn end(&self) -> Option<EventTime> {
        self.all().map(|row| row.end).max()
    }

    /// The number of events in our rows and in theirs.
    pub fn events(&self) -> [u64; 2] {
        [&self.ours, &self.theirs].map(|rows| rows.iter().map(|row| row.events).sum())
    }

    /// The class, given what else is known.
    pub fn class(&self, common: Common, known: Known) -> Class {
        if self.ours == self.theirs {
            return Class::Same;
        }
        if self.end().is_some_and(|end| end > common.to) {
            return Class::NotClosed;
        }
        if self.start().is_some_and(|start| start < common.from) {
            return Class::BeforeBeginning;
        }
        let [ours, theirs] = self.events();
        let several = !self.ours.is_empty() && self.theirs.len() > self.ours.len();
        if ours > theirs {
            return if ours - theirs <= known.late { Class::Late } else { Class::Unexplained };
        }
        if known.is_forgotten && theirs > ours {
            return Class::Forgotten;
        }
        if theirs > ours && theirs - ours <= known.dead {
            return Class::DeadLetters;
        }
        match several {
            true if theirs > ours => Class::CountedAgain,
            true if self.theirs.windows(2).all(|pair| pair[0].end == pair[1].start) => {
                Class::ExactGap
            }
            true if self.theirs.windows(2).any(|pair| pair[0].end > pair[1].start) => {
                Class::Overlapping
            }
            _ => Class::Unexplained,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: i64 = 300;

    fn at(seconds: i64) -> EventTime {
        EventTime::from_millis(1_000 * seconds)
    }

    fn rows(of: &[(i64, i64, u64)]) -> Vec<WindowRow> {
        let row =
            |&(first, last, events)| WindowRow { start: at(first), end: at(last + GAP), events };
        of.iter().map(row).collect()
    }

    fn class_of(ours: &[(i64, i64, u64)], theirs: &[(i64, i64, u64)], late: u64) -> Class {
        let common = Common { from: at(0), to: at(100_000) };
        Stretch { ours: rows(ours), theirs: rows(theirs) }
            .class(common, Known { late, ..Known::default() })
    }

    #[test]
    fn what_is_equal_is_the_same_wherever_it_is() {
        assert_eq!(class_of(&[(10, 20, 2)], &[(10, 20, 2)], 0), Class::Same);
        assert_eq!(class_of(&[(-10, 20, 2)], &[(-10, 20, 2)], 0), Class::Same);
        assert_eq!(class_of(&[(10, 200_000, 2)], &[(10, 200_000, 2)], 0), Class::Same);
    }

    #[test]
    fn fewer_events_are_late_only_as_far_as_events_were() {
        assert_eq!(class_of(&[(10, 400, 5)], &[(10, 310, 3)], 2), Class::Late);
        assert_eq!(class_of(&[(10, 400, 5)], &[(10, 310, 3)], 1), Class::Unexplained);
        assert_eq!(class_of(&[(10, 10, 1)], &[], 1), Class::Late);
        assert_eq!(class_of(&[(10, 10, 1)], &[], 0), Class::Unexplained);
    }

    #[test]
    fn rows_that_touch_are_an_exact_gap_and_rows_that_overlap_are_parts() {
        for (second, class) in
            [(GAP - 1, Class::Overlapping), (GAP, Class::ExactGap), (GAP + 1, Class::Unexplained)]
        {
            let parts = [(0, 0, 1), (second, second, 1)];
            assert_eq!(class_of(&[(0, second, 2)], &parts, 0), class, "{second}");
        }
    }

    #[test]
    fn more_events_are_counted_again_only_in_several_rows() {
        let again = [(0, 60, 3), (30, 60, 2)];
        assert_eq!(class_of(&[(0, 60, 3)], &again, 0), Class::CountedAgain);
        assert_eq!(class_of(&[(0, 60, 3)], &[(0, 60, 4)], 0), Class::Unexplained);
        assert_eq!(class_of(&[], &[(0, 60, 4)], 0), Class::Unexplained);
        // Other bounds with as many events.
        assert_eq!(class_of(&[(0, 60, 3)], &[(0, 59, 3)], 9), Class::Unexplained);
    }

    #[test]
    fn only_what_they_have_more_of_was_forgotten() {
        let common = Common { from: at(0), to: at(100_000) };
        let known = Known { is_forgotten: true, ..Known::default() };
        let class = |ours: &[(i64, i64, u64)], theirs: &[(i64, i64, u64)]| {
            Stretch { ours: rows(ours), theirs: rows(theirs) }.class(common, known)
        };
        assert_eq!(class(&[], &[(0, 60, 4)]), Class::Forgotten);
        assert_eq!(class(&[(50, 60, 1)], &[(0, 60, 4)]), Class::Forgotten, "it came again");
        assert_eq!(class(&[(0, 60, 4)], &[]), Class::Unexplained);
        assert_eq!(class(&[(0, 60, 4)], &[(0, 59, 4)]), Class::Unexplained);
        assert_eq!(class(&[(0, 60, 4)], &[(0, 60, 4)]), Class::Same);
    }

    #[test]
    fn more_events_are_dead_letters_only_as_far_as_there_are_some() {
        let common = Common { from: at(0), to: at(100_000) };
        let class = |ours: &[(i64, i64, u64)], theirs: &[(i64, i64, u64)]| {
            let known = Known { dead: 2, ..Known::default() };
            Stretch { ours: rows(ours), theirs: rows(theirs) }.class(common, known)
        };
        assert_eq!(class(&[(0, 60, 3)], &[(0, 90, 4)]), Class::DeadLetters);
        assert_eq!(class(&[], &[(0, 60, 2)]), Class::DeadLetters);
        assert_eq!(class(&[], &[(0, 60, 3)]), Class::Unexplained);
        assert_eq!(class(&[(0, 60, 3)], &[]), Class::Unexplained, "they lack events");
        assert_eq!(class(&[(0, 60, 3)], &[(0, 90, 3)]), Class::Unexplained, "as many events");
    }

    #[test]
    fn at_the_edges_it_cannot_be_known() {
        let not_closed = [(99_700, 99_701, 2)];
        assert_eq!(class_of(&not_closed, &[], 0), Class::NotClosed);
        assert_eq!(class_of(&[(99_700, 99_700, 2)], &[], 0), Class::Unexplained);
        assert_eq!(class_of(&[(-1, 20, 2)], &[], 0), Class::BeforeBeginning);
        assert_eq!(class_of(&[], &[(-1, 20, 2)], 0), Class::BeforeBeginning);
    }

    #[test]
    fn rows_join_a_stretch_up_to_exactly_its_end() {
        let [first, touches, apart] = [(0, 0, 1), (GAP, GAP, 1), (2 * GAP + 1, 2 * GAP + 1, 1)];
        let mut stretch = Stretch::default();
        for (row, ours, joins) in
            [(first, true, true), (touches, false, true), (apart, true, false)]
        {
            assert_eq!(stretch.add(ours, rows(&[row])[0]), joins);
        }
        assert_eq!((stretch.start(), stretch.end()), (Some(at(0)), Some(at(2 * GAP))));
    }
}
