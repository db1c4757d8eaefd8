//! The last line of a run: how it ended, and what it did. Zeros are left out.

use std::time::Duration;

use crate::ui::text::{count, duration, plural};

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Everything that `--until-end` had to read is read.
    ReadToTheEnd,
    /// It was asked to stop.
    Stopped,
    /// It was asked to stop before the replay was complete.
    StoppedWhileReadingAgain,
}

/// What a run has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Done {
    pub records: u64,
    /// Those of late sessions included.
    pub rows: u64,
    pub late: u64,
    pub dead: u64,
    /// Offsets after the start of an open transaction, which were not read.
    pub held_offsets: u64,
    pub took: Duration,
}

/// `read to the end: 5,000 records in 1.2 s, 631 rows written, 12 of them for late sessions`
pub fn ending(how: Ending, done: Done) -> String {
    let begins = match how {
        Ending::ReadToTheEnd => "read to the end",
        Ending::Stopped => "stopped",
        Ending::StoppedWhileReadingAgain => "stopped during the replay",
    };
    let records = match done.records {
        0 => "no new records".to_owned(),
        records => plural(records, "record"),
    };
    let mut line = format!("{begins}: {records} in {}", duration(done.took));
    if done.rows > 0 {
        line.push_str(&format!(", {} written", plural(done.rows, "row")));
    }
    match done.late {
        0 => {}
        1 => line.push_str(", 1 of them for a late session"),
        late => line.push_str(&format!(", {} of them for late sessions", count(late))),
    }
    if done.dead > 0 {
        line.push_str(&format!(", {}", plural(done.dead, "dead letter")));
    }
    if done.held_offsets > 0 && how != Ending::StoppedWhileReadingAgain {
        let held_offsets = plural(done.held_offsets, "offset");
        line.push_str(&format!("; {held_offsets} held back by open transactions"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_shows_how_it_ended_and_has_no_zeros() {
        let took = Duration::from_millis(1_200);
        let all =
            Done { records: 5_000, rows: 2_000, late: 1_037, dead: 2, held_offsets: 10, took };
        let none = Done { took, ..Done::default() };
        for (how, done, want) in [
            (
                Ending::ReadToTheEnd,
                all,
                "read to the end: 5,000 records in 1.2 s, 2,000 rows written, 1,037 of \
                 them for late sessions, 2 dead letters; 10 offsets held back by open transactions",
            ),
            (Ending::ReadToTheEnd, none, "read to the end: no new records in 1.2 s"),
            (
                Ending::Stopped,
                Done { records: 1, rows: 12, ..none },
                "stopped: 1 record in 1.2 s, 12 rows written",
            ),
            (
                Ending::StoppedWhileReadingAgain,
                none,
                "stopped during the replay: no new records in 1.2 s",
            ),
        ] {
            assert_eq!(ending(how, done), want);
        }
    }
}
