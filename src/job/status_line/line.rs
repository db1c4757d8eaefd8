//! The line that says how it goes, as a pure function of the numbers and the width.
//!
//! What counts comes first: what the job waits for; else how far a start is; else how much of a
//! backlog is left, or how far the output is behind now. A number that is zero or not known is left
//! out. Where the line does not fit, words are shortened first, and then the least important parts
//! go.

use std::time::Duration;

use crate::ui::text::{count, duration, plural};

/// While the records to be read take no longer than this, the job keeps up.
const KEEPS_UP: Duration = Duration::from_secs(3);
/// No new record for so long is worth saying.
const QUIET: Duration = Duration::from_secs(10);

/// What the line is made of.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    pub wait: Option<Wait>,
    pub stage: Stage,
    pub stopping: bool,
    /// Records read in this run.
    pub records: u64,
    /// Records a second, over the last seconds.
    pub rate: u64,
    pub rows: u64,
    pub open: u64,
    pub late: u64,
    pub dead: u64,
    /// Records that are there to be read, if that is known.
    pub lag: Option<u64>,
    /// Of a run with an end: how many records it reads in all.
    pub ahead: Option<u64>,
    /// How old the watermark is: results are complete up to then.
    pub behind: Option<Duration>,
    /// How long no record has come.
    pub quiet: Duration,
}

/// What is waited for, for how long, why, and how long still.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wait {
    pub what: String,
    pub why: Option<String>,
    pub lasts: Duration,
    pub left: Option<Duration>,
}

/// How far a run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Stage {
    /// Nothing is known yet.
    #[default]
    Starting,
    /// The open sessions are loaded, shard by shard.
    Loading {
        loaded: u64,
        all: u64,
    },
    /// What was read before, and is not in a snapshot, is read again.
    Replaying {
        percent: u64,
    },
    Running,
}

/// The line, in no more than `width` columns.
pub fn line(state: &State, width: usize) -> String {
    if let Some(wait) = &state.wait {
        return waits(wait, state.stopping, width);
    }
    let parts = parts(state);
    let long = |parts: &[Part]| join(parts.iter().map(|part| part.long.as_str()));
    let short = |parts: &[Part]| join(parts.iter().map(|part| part.short.as_str()));
    // All that was read says least of all: it goes before words become short.
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

/// A part of the line, in two lengths; the most important ones come first.
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

/// The beginning of a text that is too long.
fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    if width == 0 { String::new() } else { format!("{}…", kept.trim_end()) }
}

/// `waiting for Kafka at broker:9092: connection refused; gives up in 48 s`. The reason is what
/// gives way.
fn waits(wait: &Wait, stopping: bool, width: usize) -> String {
    let Wait { what, why, lasts, left } = wait;
    let begins = match (stopping, left) {
        (true, _) => format!("stopping: waiting for {what}"),
        (false, Some(_)) => format!("waiting for {what}"),
        // The units of a wait without an end count up.
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

/// Without a fraction: it changes too fast to be read.
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

/// What there is to be read: to the end of a bounded run, else all that Kafka has.
fn to_read(state: &State) -> Option<u64> {
    match state.ahead {
        Some(ahead) => Some(ahead.saturating_sub(state.records)),
        None => state.lag,
    }
}

/// How far the job is, in one or two words.
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

    /// A state and its line at 60, 80 and 120 columns.
    fn cases() -> Vec<(State, [&'static str; 3])> {
        let long = "the server closed the connection unexpectedly while it was starting up";
        let backlog = State { lag: Some(400_000_000), dead: 1, late: 7, ..running() };
        let bounded = State { ahead: Some(20_000_000), lag: None, ..running() };
        let idle = State { rate: 0, lag: Some(0), quiet: seconds(245), ..running() };
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
