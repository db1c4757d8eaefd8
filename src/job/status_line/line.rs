//! The status line: the condition of the job and its numbers, in a given width. A pure function.
//!
//! The condition comes first; then how much is left to read, and what was done. A number that is
//! zero or unknown is left out. If the line does not fit, words are shortened first; then the least
//! important parts are dropped.

use std::time::Duration;

use crate::monitor::condition::{Condition, HeldBack, WaitStatus};
use crate::monitor::sentence::{sentence, up_to_date, whole};
use crate::ui::text::{count, plural};

/// The numbers that the line shows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Numbers {
    /// Records read in this run.
    pub records: u64,
    /// Records a second, over the last few seconds.
    pub rate: u64,
    pub rows: u64,
    pub open: u64,
    pub late: u64,
    pub dead: u64,
    /// Records still to be read, if known.
    pub to_read: Option<u64>,
}

/// The line, in at most `width` columns.
pub fn line(condition: &Condition, numbers: &Numbers, width: usize) -> String {
    match condition {
        Condition::Waiting(wait) => return waits(wait, false, width),
        Condition::Stopping { wait: Some(wait), .. } => return waits(wait, true, width),
        _ => {}
    }
    let parts = parts(condition, numbers);
    let long = |parts: &[Section]| join(parts.iter().map(|part| part.long.as_str()));
    let short = |parts: &[Section]| join(parts.iter().map(|part| part.short.as_str()));
    // The total number of records is the least important part: it is dropped before words are
    // shortened.
    let least = parts.len().saturating_sub(usize::from(parts.len() > 1 && numbers.records > 0));
    for parts in [&parts[..], &parts[..least]] {
        let line = long(parts);
        if columns(&line) <= width {
            return line;
        }
    }
    let kept = (1..=parts.len()).rev().map(|kept| short(&parts[..kept]));
    let fits = kept.into_iter().find(|line| columns(line) <= width);
    fits.unwrap_or_else(|| cut(&short(&parts[..1]), width))
}

/// A part of the line, in a long and a short form; the most important parts come first.
struct Section {
    long: String,
    short: String,
}

fn join<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

fn columns(text: &str) -> usize {
    text.chars().count()
}

/// Cuts a text that is too long.
fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    if width == 0 { String::new() } else { format!("{}…", kept.trim_end()) }
}

/// `waiting for Kafka at broker:9092: connection refused; gives up in 48 s`. If there is too little
/// room, the reason is cut.
fn waits(wait: &WaitStatus, stopping: bool, width: usize) -> String {
    let WaitStatus { what, why, lasts_ms, left_ms, .. } = wait;
    let begins = match (stopping, left_ms) {
        (true, _) => format!("stopping: waiting for {what}"),
        (false, Some(_)) => format!("waiting for {what}"),
        // A wait without a limit counts up.
        (false, None) => {
            format!("waiting for {what}, {} so far", whole(Duration::from_millis(*lasts_ms)))
        }
    };
    let left = left_ms.map(|ms| whole(Duration::from_millis(ms)));
    let ends = left.map_or(String::new(), |left| format!("; gives up in {left}"));
    let room = width.saturating_sub(columns(&begins) + columns(&ends) + 2);
    match why {
        Some(why) if room >= columns(why).min(12) => {
            format!("{begins}: {}{ends}", cut(why, room))
        }
        _ => cut(&format!("{begins}{ends}"), width),
    }
}

fn parts(condition: &Condition, numbers: &Numbers) -> Vec<Section> {
    let Numbers { records, rate, rows, open, late, dead, to_read } = *numbers;
    let mut parts = vec![head(condition)];
    if matches!(condition, Condition::Connecting | Condition::Loading { .. }) {
        return parts;
    }
    let mut add = |n: u64, long: String, short: String| {
        if n > 0 {
            parts.push(Section { long, short });
        }
    };
    if !matches!(condition, Condition::Replaying { .. } | Condition::Stopping { .. }) {
        let lag = to_read.unwrap_or(0);
        add(lag, format!("{} to read", plural(lag, "record")), format!("{} to read", count(lag)));
    }
    add(rate, format!("{} records/s", count(rate)), format!("{}/s", count(rate)));
    add(rows, plural(rows, "row"), plural(rows, "row"));
    add(open, plural(open, "open session"), format!("{} open", count(open)));
    add(dead, plural(dead, "dead letter"), format!("{} dead", count(dead)));
    add(late, plural(late, "late session"), format!("{} late", count(late)));
    add(records, format!("{} read", plural(records, "record")), format!("{} read", count(records)));
    parts
}

/// The condition of the job, in a few words.
fn head(condition: &Condition) -> Section {
    let same = |text: String| Section { long: text.clone(), short: text };
    same(match condition {
        Condition::Stopping { .. } => "stopping: committing what was read".to_owned(),
        Condition::Connecting => "starting".to_owned(),
        Condition::Replaying { percent } => format!("replaying {percent} %"),
        Condition::ReadingToEnd { percent, left, .. } => {
            let left = left.map_or(String::new(), |left| format!(", {} left", whole(left)));
            format!("{percent} %{left}")
        }
        Condition::CatchingUp { left, .. } => format!("{} left", whole(*left)),
        Condition::HeldBack(held) => held_back(held),
        Condition::Quiet { lasts, read: true } => format!("no new events for {}", whole(*lasts)),
        Condition::Quiet { lasts, read: false } => format!("no events for {}", whole(*lasts)),
        Condition::UpToDate { read: false, .. } => "no events yet".to_owned(),
        Condition::UpToDate { behind, .. } => {
            let long = up_to_date(*behind);
            let short = long.strip_prefix("up to date, ").unwrap_or(&long).to_owned();
            return Section { long, short };
        }
        // The page has the same words for these.
        Condition::Loading { .. } | Condition::Waiting(_) | Condition::Ended(_) => {
            sentence(condition).text
        }
    })
}

/// `behind 12 s: an open transaction in web-events[3]`
fn held_back(held: &HeldBack) -> String {
    let place = format!("{}[{}]", held.topic, held.number);
    let what = match held.by_transaction {
        true => format!("an open transaction in {place}"),
        false => format!("held back by {place}"),
    };
    let behind = held.watermark_age.map(|age| format!("behind {}: ", whole(age)));
    format!("{}{what}", behind.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::condition::{Situation, Stage, judge};
    use crate::ui::waiting::Awaited;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A job that keeps up, and its numbers.
    fn running() -> (Situation, Numbers) {
        let situation = Situation {
            stage: Stage::Running,
            records: 9_876_543,
            rate: 10_000.0,
            lag: Some(34),
            behind: Some(Duration::from_millis(440)),
            ..Situation::default()
        };
        let numbers = Numbers {
            records: 9_876_543,
            rate: 10_000,
            rows: 12_345_678,
            open: 123_456,
            ..Numbers::default()
        };
        (situation, numbers)
    }

    fn waiting(what: Awaited, why: &str, lasts: u64, left: Option<u64>) -> Situation {
        let why = (!why.is_empty()).then(|| why.to_owned());
        let (lasts_ms, left_ms) = (lasts * 1_000 + 900, left.map(|left| left * 1_000));
        let wait = WaitStatus { what, why, lasts_ms, left_ms, retries: true };
        Situation { wait: Some(wait), ..running().0 }
    }

    /// A situation, and its line at 60, 80 and 120 columns.
    #[expect(clippy::too_many_lines, reason = "one table, with a row for each case")]
    fn cases() -> Vec<(Situation, Numbers, [&'static str; 3])> {
        let long = "the server closed the connection unexpectedly while it was starting up";
        let (live, numbers) = running();
        let with = |situation: &Situation, lines| (situation.clone(), numbers.clone(), lines);
        let none = |situation: Situation, lines| (situation, Numbers::default(), lines);
        let backlog = Situation { lag: Some(400_000_000), ..live.clone() };
        let bounded = Situation { ahead: Some(20_000_000), lag: None, ..live.clone() };
        let idle = Situation { lag: Some(0), quiet: seconds(245), ..live.clone() };
        let resting = Numbers { rate: 0, ..numbers.clone() };
        let held = |held| Situation { held_back: Some(held), ..idle.clone() };
        let empty = Situation { stage: Stage::Running, ..Situation::default() };
        let replaying = Numbers { rows: 0, open: 0, ..numbers.clone() };
        let mixed = Numbers { dead: 1, late: 7, ..numbers.clone() };
        vec![
            none(Situation::default(), ["starting"; 3]),
            with(
                &waiting(
                    Awaited::Kafka("broker:9092".to_owned()),
                    "connection refused",
                    12,
                    Some(48),
                ),
                [
                    "waiting for Kafka at broker:9092; gives up in 48 s",
                    "waiting for Kafka at broker:9092: connection refused; gives up in 48 s",
                    "waiting for Kafka at broker:9092: connection refused; gives up in 48 s",
                ],
            ),
            with(
                &waiting(Awaited::Postgres(Some("db:5432/web".to_owned())), "", 0, Some(3)),
                ["waiting for Postgres at db:5432/web; gives up in 3 s"; 3],
            ),
            with(
                &waiting(Awaited::Postgres(None), long, 12, None),
                [
                    "waiting for Postgres, 12 s so far: the server closed the co…",
                    "waiting for Postgres, 12 s so far: the server closed the connection unexpectedl…",
                    "waiting for Postgres, 12 s so far: the server closed the connection unexpectedly \
                     while it was starting up",
                ],
            ),
            with(
                &Situation {
                    stopping: true,
                    ..waiting(Awaited::Postgres(None), "no answer", 12, None)
                },
                ["stopping: waiting for Postgres: no answer"; 3],
            ),
            with(
                &Situation { stage: Stage::Loading { loaded: 3, all: 128 }, ..live.clone() },
                ["loading open sessions, shard 3 of 128"; 3],
            ),
            (
                Situation { stage: Stage::Replaying { percent: 41 }, ..live.clone() },
                replaying,
                ["replaying 41 %, 10,000 records/s, 9,876,543 records read"; 3],
            ),
            with(
                &live,
                [
                    "0.4 s behind, 34 to read, 10,000/s, 12,345,678 rows",
                    "0.4 s behind, 34 to read, 10,000/s, 12,345,678 rows, 123,456 open",
                    "up to date, 0.4 s behind, 34 records to read, 10,000 records/s, 12,345,678 \
                     rows, 123,456 open sessions",
                ],
            ),
            with(
                &Situation { behind: None, ..live.clone() },
                [
                    "up to date, 34 to read, 10,000/s, 12,345,678 rows",
                    "up to date, 34 to read, 10,000/s, 12,345,678 rows, 123,456 open, 9,876,543 \
                     read",
                    "up to date, 34 records to read, 10,000 records/s, 12,345,678 rows, 123,456 \
                     open sessions, 9,876,543 records read",
                ],
            ),
            (
                backlog,
                mixed,
                [
                    "11 h 6 min left, 400,000,000 to read, 10,000/s",
                    "11 h 6 min left, 400,000,000 to read, 10,000/s, 12,345,678 rows, 123,456 open",
                    "11 h 6 min left, 400,000,000 to read, 10,000/s, 12,345,678 rows, 123,456 open, \
                     1 dead, 7 late, 9,876,543 read",
                ],
            ),
            with(
                &bounded,
                [
                    "49 %, 16 min 52 s left, 10,123,457 to read, 10,000/s",
                    "49 %, 16 min 52 s left, 10,123,457 to read, 10,000/s, 12,345,678 rows",
                    "49 %, 16 min 52 s left, 10,123,457 records to read, 10,000 records/s, \
                     12,345,678 rows, 123,456 open sessions",
                ],
            ),
            (
                idle.clone(),
                resting.clone(),
                [
                    "no new events for 4 min 5 s, 12,345,678 rows, 123,456 open",
                    "no new events for 4 min 5 s, 12,345,678 rows, 123,456 open sessions",
                    "no new events for 4 min 5 s, 12,345,678 rows, 123,456 open sessions, \
                     9,876,543 records read",
                ],
            ),
            (
                held(held_by_transaction()),
                resting.clone(),
                [
                    "behind 12 s: an open transaction in web-events[3]",
                    "behind 12 s: an open transaction in web-events[3], 12,345,678 rows, 123,456 open",
                    "behind 12 s: an open transaction in web-events[3], 12,345,678 rows, 123,456 open \
                     sessions, 9,876,543 records read",
                ],
            ),
            (
                held(HeldBack { by_transaction: false, ..held_by_transaction() }),
                resting,
                [
                    "behind 12 s: held back by web-events[3], 12,345,678 rows",
                    "behind 12 s: held back by web-events[3], 12,345,678 rows, 123,456 open sessions",
                    "behind 12 s: held back by web-events[3], 12,345,678 rows, 123,456 open sessions, \
                     9,876,543 records read",
                ],
            ),
            none(empty.clone(), ["no events yet"; 3]),
            none(Situation { quiet: seconds(12), ..empty }, ["no events for 12 s"; 3]),
            none(Situation { stopping: true, ..live }, ["stopping: committing what was read"; 3]),
        ]
    }

    fn held_by_transaction() -> HeldBack {
        HeldBack {
            topic: "web-events".to_owned(),
            number: 3,
            watermark_age: Some(seconds(12)),
            by_transaction: true,
            ..HeldBack::default()
        }
    }

    /// The line of a situation. How much is to be read is a part of both.
    fn line_of(situation: &Situation, numbers: &Numbers, width: usize) -> String {
        let numbers = Numbers { to_read: situation.to_read(), ..numbers.clone() };
        line(&judge(situation), &numbers, width)
    }

    #[test]
    fn what_counts_comes_first() {
        for (situation, numbers, want) in cases() {
            let lines = [60, 80, 120].map(|width| line_of(&situation, &numbers, width));
            assert_eq!(lines, want);
        }
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_none_has_zeros() {
        for (situation, numbers, _) in cases() {
            for width in 0..200 {
                let line = line_of(&situation, &numbers, width);
                assert!(columns(&line) <= width, "{line:?} is wider than {width}");
                assert!(!line.split(", ").any(|part| part.starts_with("0 ")), "{line:?}");
            }
        }
    }
}
