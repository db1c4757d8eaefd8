//! The status line, as a pure function of the numbers and the width.
//!
//! The most important part comes first: what the job waits for; otherwise how far a start has come;
//! otherwise how much of a backlog is left, or how far the output is behind. A number that is zero
//! or unknown is left out. If the line does not fit, words are shortened first; then the least
//! important parts are dropped.

use std::time::Duration;

use crate::ui::text::{count, duration, plural};

/// The job keeps up as long as reading the remaining records takes no longer than this.
const KEEPS_UP: Duration = Duration::from_secs(3);
/// Silence is worth mentioning after this long without a new record.
const QUIET: Duration = Duration::from_secs(10);

/// The numbers that the line shows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    pub wait: Option<Wait>,
    pub stage: Stage,
    pub stopping: bool,
    /// Records read in this run.
    pub records: u64,
    /// Records a second, over the last few seconds.
    pub rate: u64,
    pub rows: u64,
    pub open: u64,
    pub late: u64,
    pub dead: u64,
    /// Records still to be read, if known.
    pub lag: Option<u64>,
    /// In a bounded run: how many records it reads in all.
    pub ahead: Option<u64>,
    /// The age of the watermark: results are complete up to it.
    pub behind: Option<Duration>,
    /// How long ago the last record arrived.
    pub quiet: Duration,
    /// A partition whose last records an open transaction holds back.
    pub held_back: Option<String>,
}

/// What the job waits for, why, for how long so far, and for how long at most from now on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wait {
    pub what: String,
    pub why: Option<String>,
    pub lasts: Duration,
    pub left: Option<Duration>,
}

/// How far a run has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Stage {
    /// Nothing is known yet.
    #[default]
    Starting,
    /// Open sessions are being loaded, shard by shard.
    Loading {
        loaded: u64,
        all: u64,
    },
    /// Epochs that were read before but are not in a snapshot are being read again.
    Replaying {
        percent: u64,
    },
    Running,
}

/// The line, in at most `width` columns.
pub fn line(state: &State, width: usize) -> String {
    if let Some(wait) = &state.wait {
        return waits(wait, state.stopping, width);
    }
    let parts = parts(state);
    let long = |parts: &[Part]| join(parts.iter().map(|part| part.long.as_str()));
    let short = |parts: &[Part]| join(parts.iter().map(|part| part.short.as_str()));
    // The total number of records is the least important part: it is dropped before words are
    // shortened.
    let least = parts.len().saturating_sub(usize::from(parts.len() > 1 && state.records > 0));
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
struct Part {
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
fn waits(wait: &Wait, stopping: bool, width: usize) -> String {
    let Wait { what, why, lasts, left } = wait;
    let begins = match (stopping, left) {
        (true, _) => format!("stopping: waiting for {what}"),
        (false, Some(_)) => format!("waiting for {what}"),
        // A wait without a limit counts up.
        (false, None) => format!("waiting for {what}, {} so far", whole(*lasts)),
    };
    let ends = left.map_or(String::new(), |left| format!("; gives up in {}", whole(left)));
    let room = width.saturating_sub(columns(&begins) + columns(&ends) + 2);
    match why {
        Some(why) if room >= columns(why).min(12) => {
            format!("{begins}: {}{ends}", cut(why, room))
        }
        _ => cut(&format!("{begins}{ends}"), width),
    }
}

/// Without a fraction, which would change too fast to be read.
fn whole(time: Duration) -> String {
    duration(Duration::from_secs(time.as_secs()))
}

fn parts(state: &State) -> Vec<Part> {
    let State { records, rate, rows, open, late, dead, .. } = *state;
    let mut parts = Vec::new();
    let mut add = |long: String, short: String| parts.push(Part { long, short });
    let mut same = |text: String| add(text.clone(), text);
    match state.stage {
        _ if state.stopping => same("stopping: committing what was read".to_owned()),
        Stage::Starting => same("starting".to_owned()),
        Stage::Loading { loaded, all } => {
            same(format!("loading open sessions, shard {} of {}", count(loaded), count(all)));
        }
        Stage::Replaying { percent } => same(format!("reading again {percent} %")),
        Stage::Running => {
            if let Some(head) = progress(state) {
                same(head);
            }
        }
    }
    if matches!(state.stage, Stage::Starting | Stage::Loading { .. }) {
        return parts;
    }
    let mut add = |n: u64, long: String, short: String| {
        if n > 0 {
            parts.push(Part { long, short });
        }
    };
    if state.stage == Stage::Running && !state.stopping {
        let lag = to_read(state).unwrap_or(0);
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

/// How much is left to read: to the end of a bounded run, otherwise everything that Kafka has.
fn to_read(state: &State) -> Option<u64> {
    match state.ahead {
        Some(ahead) => Some(ahead.saturating_sub(state.records)),
        None => state.lag,
    }
}

/// How far the job has come, in one or two words.
fn progress(state: &State) -> Option<String> {
    let lag = to_read(state);
    let left = lag
        .filter(|_| state.rate > 0)
        .map(|lag| Duration::from_secs_f64((lag as f64 / state.rate as f64).min(1e9)));
    if let Some(ahead) = state.ahead.filter(|ahead| *ahead > 0) {
        let percent = (state.records.min(ahead) as u128 * 100 / u128::from(ahead)) as u64;
        let left = left.filter(|left| *left >= Duration::from_secs(1));
        let left = left.map_or(String::new(), |left| format!(", {} left", whole(left)));
        return Some(format!("{percent} %{left}"));
    }
    if let Some(left) = left.filter(|left| *left > KEEPS_UP) {
        return Some(format!("{} left", whole(left)));
    }
    if let Some(partition) = &state.held_back {
        let behind =
            state.behind.map_or(String::new(), |behind| format!("behind {}: ", whole(behind)));
        return Some(format!("{behind}an open transaction in {partition}"));
    }
    if lag.unwrap_or(0) == 0 && state.quiet >= QUIET {
        let nothing = if state.records == 0 { "no events" } else { "no new events" };
        return Some(format!("{nothing} for {}", whole(state.quiet)));
    }
    match state.behind {
        Some(behind) => Some(format!("behind {}", whole(behind))),
        None if state.records == 0 => Some("no events yet".to_owned()),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn running() -> State {
        State {
            stage: Stage::Running,
            records: 9_876_543,
            rate: 10_000,
            rows: 12_345_678,
            open: 123_456,
            lag: Some(34),
            behind: Some(seconds(12)),
            ..State::default()
        }
    }

    fn waiting(what: &str, why: &str, lasts: u64, left: Option<u64>) -> State {
        let why = (!why.is_empty()).then(|| why.to_owned());
        let (lasts, left) = (seconds(lasts), left.map(seconds));
        State { wait: Some(Wait { what: what.to_owned(), why, lasts, left }), ..running() }
    }

    /// A state, and its line at 60, 80 and 120 columns.
    fn cases() -> Vec<(State, [&'static str; 3])> {
        let long = "the server closed the connection unexpectedly while it was starting up";
        let backlog = State { lag: Some(400_000_000), dead: 1, late: 7, ..running() };
        let bounded = State { ahead: Some(20_000_000), lag: None, ..running() };
        let idle = State { rate: 0, lag: Some(0), quiet: seconds(245), ..running() };
        let held = State { held_back: Some("web-events[3]".to_owned()), ..idle.clone() };
        let empty = State { stage: Stage::Running, ..State::default() };
        vec![
            (State::default(), ["starting"; 3]),
            (
                waiting("Kafka at broker:9092", "connection refused", 12, Some(48)),
                [
                    "waiting for Kafka at broker:9092; gives up in 48 s",
                    "waiting for Kafka at broker:9092: connection refused; gives up in 48 s",
                    "waiting for Kafka at broker:9092: connection refused; gives up in 48 s",
                ],
            ),
            (
                waiting("Postgres at db:5432/web", "", 0, Some(3)),
                ["waiting for Postgres at db:5432/web; gives up in 3 s"; 3],
            ),
            (
                waiting("Postgres", long, 12, None),
                [
                    "waiting for Postgres, 12 s so far: the server closed the co…",
                    "waiting for Postgres, 12 s so far: the server closed the connection unexpectedl…",
                    "waiting for Postgres, 12 s so far: the server closed the connection unexpectedly \
                     while it was starting up",
                ],
            ),
            (
                State { stopping: true, ..waiting("Postgres", "no answer", 12, None) },
                ["stopping: waiting for Postgres: no answer"; 3],
            ),
            (
                State { stage: Stage::Loading { loaded: 3, all: 128 }, ..running() },
                ["loading open sessions, shard 3 of 128"; 3],
            ),
            (
                State { stage: Stage::Replaying { percent: 41 }, rows: 0, open: 0, ..running() },
                ["reading again 41 %, 10,000 records/s, 9,876,543 records read"; 3],
            ),
            (
                running(),
                [
                    "behind 12 s, 34 to read, 10,000/s, 12,345,678 rows",
                    "behind 12 s, 34 to read, 10,000/s, 12,345,678 rows, 123,456 open, 9,876,543 \
                     read",
                    "behind 12 s, 34 records to read, 10,000 records/s, 12,345,678 rows, 123,456 \
                     open sessions, 9,876,543 records read",
                ],
            ),
            (
                backlog,
                [
                    "11 h 6 min left, 400,000,000 to read, 10,000/s",
                    "11 h 6 min left, 400,000,000 to read, 10,000/s, 12,345,678 rows, 123,456 open",
                    "11 h 6 min left, 400,000,000 to read, 10,000/s, 12,345,678 rows, 123,456 open, \
                     1 dead, 7 late, 9,876,543 read",
                ],
            ),
            (
                bounded,
                [
                    "49 %, 16 min 52 s left, 10,123,457 to read, 10,000/s",
                    "49 %, 16 min 52 s left, 10,123,457 to read, 10,000/s, 12,345,678 rows",
                    "49 %, 16 min 52 s left, 10,123,457 records to read, 10,000 records/s, \
                     12,345,678 rows, 123,456 open sessions",
                ],
            ),
            (
                idle,
                [
                    "no new events for 4 min 5 s, 12,345,678 rows, 123,456 open",
                    "no new events for 4 min 5 s, 12,345,678 rows, 123,456 open sessions",
                    "no new events for 4 min 5 s, 12,345,678 rows, 123,456 open sessions, \
                     9,876,543 records read",
                ],
            ),
            (
                held,
                [
                    "behind 12 s: an open transaction in web-events[3]",
                    "behind 12 s: an open transaction in web-events[3], 12,345,678 rows, 123,456 open",
                    "behind 12 s: an open transaction in web-events[3], 12,345,678 rows, 123,456 open \
                     sessions, 9,876,543 records read",
                ],
            ),
            (empty.clone(), ["no events yet"; 3]),
            (State { quiet: seconds(12), ..empty }, ["no events for 12 s"; 3]),
        ]
    }

    #[test]
    fn what_counts_comes_first() {
        for (state, want) in cases() {
            let lines = [60, 80, 120].map(|width| line(&state, width));
            assert_eq!(lines, want);
        }
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_none_has_zeros() {
        for (state, _) in cases() {
            for width in 0..200 {
                let line = line(&state, width);
                assert!(columns(&line) <= width, "{line:?} is wider than {width}");
                assert!(!line.split(", ").any(|part| part.starts_with("0 ")), "{line:?}");
            }
        }
    }
}
