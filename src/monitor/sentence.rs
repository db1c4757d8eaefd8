//! The condition of the job as one sentence: for the page and its title, `/readyz`, systemd and
//! `sessionizer status`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::monitor::condition::{Condition, Ended, WaitStatus};
use crate::ui::text::{count, duration, plural};
use crate::ui::waiting::Awaited;

/// How good or bad the condition is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tone {
    #[default]
    Good,
    /// Normal, but not up to date.
    Busy,
    Trouble,
}

/// The sentence.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Sentence {
    /// One of a fixed set; a page may rely on it.
    pub state: String,
    pub tone: Tone,
    pub text: String,
    /// The reason, in the words of a server.
    pub cause: Option<String>,
}

/// Puts the condition into a sentence.
pub fn sentence(at: &Condition) -> Sentence {
    let with_state = |state: &str, tone: Tone, text: String| Sentence {
        state: state.to_owned(),
        tone,
        text,
        cause: None,
    };
    match at {
        Condition::Ended(ended) => end(ended),
        Condition::Stopping { commits_left, wait } => {
            let left = match commits_left {
                0 => String::new(),
                left => format!(" ({} left)", plural(*left, "commit")),
            };
            let tone = if wait.is_some() { Tone::Trouble } else { Tone::Busy };
            let cause = wait.as_ref().and_then(|wait| wait.why.clone());
            Sentence { cause, ..with_state("stopping", tone, format!("stopping{left}")) }
        }
        Condition::Waiting(wait) => waiting(wait),
        Condition::Connecting => with_state("connecting", Tone::Busy, "connecting".to_owned()),
        Condition::Loading { loaded, all } => {
            let text =
                format!("loading open sessions, shard {} of {}", count(*loaded), count(*all));
            with_state("loading", Tone::Busy, text)
        }
        Condition::Replaying { percent } => {
            with_state("replaying", Tone::Busy, format!("replaying {percent} %"))
        }
        Condition::ReadingToEnd { percent, left, rate } => {
            let left = left.map_or(String::new(), |left| format!(", {}", pace(left, *rate)));
            with_state("catching_up", Tone::Busy, format!("catching up ({percent} %{left})"))
        }
        Condition::CatchingUp { left, rate } => {
            with_state("catching_up", Tone::Busy, format!("catching up ({})", pace(*left, *rate)))
        }
        Condition::HeldBack(held) => {
            let since = clock(held.since_ms);
            let text = format!("held back by {}/{} since {since}", held.topic, held.number);
            Sentence { cause: held.why.clone(), ..with_state("held_back", Tone::Trouble, text) }
        }
        Condition::Quiet { lasts, read } => {
            let what = if *read { "no new events" } else { "no events" };
            with_state("quiet", Tone::Good, format!("{what} for {}", largest(*lasts)))
        }
        Condition::UpToDate { behind, .. } => {
            with_state("up_to_date", Tone::Good, up_to_date(*behind))
        }
    }
}

fn end(ended: &Ended) -> Sentence {
    let (state, tone, text, cause) = match ended {
        Ended::Stopped => {
            ("stopped", Tone::Busy, "stopped; the next start continues from here", None)
        }
        Ended::Uncommitted(why) => {
            ("uncommitted", Tone::Trouble, "stopped without a last commit", Some(why))
        }
        Ended::Fenced => {
            ("fenced", Tone::Trouble, "fenced: another instance of the job has taken over", None)
        }
        Ended::Failed(why) => ("failed", Tone::Trouble, "failed", Some(why)),
    };
    Sentence { state: state.to_owned(), tone, text: text.to_owned(), cause: cause.cloned() }
}

fn waiting(wait: &WaitStatus) -> Sentence {
    let lasts = whole(Duration::from_millis(wait.lasts_ms));
    let why = wait.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
    let tries = match (wait.left_ms, wait.retries) {
        (Some(left), _) => format!(", gives up in {}", whole(Duration::from_millis(left))),
        (None, true) => ", retrying".to_owned(),
        (None, false) => String::new(),
    };
    let (state, tone, text) = match &wait.what {
        Awaited::Kafka(_) => {
            let text = format!("waiting for Kafka ({lasts}{tries}{why})");
            ("waiting_for_kafka", Tone::Trouble, text)
        }
        Awaited::Postgres(_) => {
            let text = format!("waiting for Postgres ({lasts}{tries}{why})");
            ("waiting_for_postgres", Tone::Trouble, text)
        }
        what => ("waiting", Tone::Busy, format!("waiting for {what} ({lasts}{why})")),
    };
    Sentence { state: state.to_owned(), tone, text, cause: wait.why.clone() }
}

/// `up to date, 0.4 s behind`; a delay that would be shown as 0 is left out.
pub fn up_to_date(behind: Option<Duration>) -> String {
    match behind.filter(|behind| behind.as_millis() >= 50) {
        Some(behind) => format!("up to date, {} behind", duration(behind)),
        None => "up to date".to_owned(),
    }
}

/// `3 min left at 1.2 M/s`
fn pace(left: Duration, rate: f64) -> String {
    format!("{} left at {}/s", whole(left), short(rate))
}

/// Whole seconds: a fraction would change too fast to be read.
pub fn whole(time: Duration) -> String {
    duration(Duration::from_secs(time.as_secs()))
}

/// In one unit, which is enough for a silence.
fn largest(time: Duration) -> String {
    let seconds = time.as_secs();
    let unit = [86_400, 3_600, 60, 1].into_iter().find(|unit| seconds >= *unit).unwrap_or(1);
    duration(Duration::from_secs(seconds - seconds % unit))
}

/// `1.2 M`, `34 k`, `560`.
fn short(rate: f64) -> String {
    match rate {
        1e6.. => format!("{:.1} M", rate / 1e6),
        1e4.. => format!("{:.0} k", rate / 1e3),
        1e3.. => format!("{:.1} k", rate / 1e3),
        1.0.. => format!("{rate:.0}"),
        _ => format!("{rate:.1}"),
    }
}

/// `12:03`, in UTC.
pub fn clock(at_ms: u64) -> String {
    let minutes = at_ms / 60_000;
    format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::condition::{HeldBack, Situation, Stage, judge};

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn live() -> Situation {
        Situation {
            stage: Stage::Running,
            records: 1_000,
            rate: 500.0,
            lag: Some(12),
            behind: Some(Duration::from_millis(440)),
            ..Situation::default()
        }
    }

    fn waits(what: Awaited, why: Option<&str>) -> Situation {
        let why = why.map(str::to_owned);
        let wait = WaitStatus { what, why, lasts_ms: 12_900, left_ms: None, retries: true };
        Situation { wait: Some(wait), ..live() }
    }

    fn waiting_with(at: &Situation, left_ms: Option<u64>, retries: bool) -> Situation {
        let wait = at.wait.clone().map(|wait| WaitStatus { left_ms, retries, ..wait });
        Situation { wait, ..at.clone() }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "one table, with a row for each case")]
    fn every_state_has_its_sentence() {
        let refused = Some("connection refused");
        let backlog = Situation { lag: Some(216_000_000), rate: 1.2e6, ..live() };
        let held = HeldBack {
            topic: "web-events".to_owned(),
            number: 3,
            since_ms: 1_790_251_385_000,
            why: Some("it has no leader".to_owned()),
            ..HeldBack::default()
        };
        let held = Situation { held_back: Some(held), ..live() };
        let idle = Situation { lag: Some(0), rate: 0.0, quiet: seconds(245), ..live() };
        let ends =
            |ended| Situation { ended: Some(ended), ..waits(Awaited::Postgres(None), refused) };
        for (at, state, tone, text) in [
            (Situation::default(), "connecting", Tone::Busy, "connecting"),
            (
                waits(Awaited::Kafka("broker:9092".to_owned()), refused),
                "waiting_for_kafka",
                Tone::Trouble,
                "waiting for Kafka (12 s, retrying: connection refused)",
            ),
            (
                waits(Awaited::Postgres(None), refused),
                "waiting_for_postgres",
                Tone::Trouble,
                "waiting for Postgres (12 s, retrying: connection refused)",
            ),
            (
                waiting_with(&waits(Awaited::Postgres(None), refused), Some(47_200), true),
                "waiting_for_postgres",
                Tone::Trouble,
                "waiting for Postgres (12 s, gives up in 47 s: connection refused)",
            ),
            (
                waiting_with(&waits(Awaited::Postgres(None), Some("a lock")), None, false),
                "waiting_for_postgres",
                Tone::Trouble,
                "waiting for Postgres (12 s: a lock)",
            ),
            (
                waits(Awaited::Postgres(Some("db:5432/web".to_owned())), None),
                "waiting_for_postgres",
                Tone::Trouble,
                "waiting for Postgres (12 s, retrying)",
            ),
            (
                waits(Awaited::Memory, Some("43 MiB of rows wait to be committed (--memory)")),
                "waiting",
                Tone::Busy,
                "waiting for memory (12 s: 43 MiB of rows wait to be committed (--memory))",
            ),
            (
                waits(Awaited::Process("process 1 (host:2102)".to_owned()), refused),
                "waiting",
                Tone::Busy,
                "waiting for process 1 (host:2102) (12 s: connection refused)",
            ),
            (
                Situation { stage: Stage::Loading { loaded: 3, all: 128 }, ..live() },
                "loading",
                Tone::Busy,
                "loading open sessions, shard 3 of 128",
            ),
            (
                Situation { stage: Stage::Replaying { percent: 41 }, ..live() },
                "replaying",
                Tone::Busy,
                "replaying 41 %",
            ),
            (backlog.clone(), "catching_up", Tone::Busy, "catching up (3 min left at 1.2 M/s)"),
            (
                Situation { ahead: Some(2_000), ..live() },
                "catching_up",
                Tone::Busy,
                "catching up (50 %, 2 s left at 500/s)",
            ),
            (
                Situation { ahead: Some(1_000), ..live() },
                "catching_up",
                Tone::Busy,
                "catching up (100 %)",
            ),
            (live(), "up_to_date", Tone::Good, "up to date, 0.4 s behind"),
            (Situation { behind: None, ..live() }, "up_to_date", Tone::Good, "up to date"),
            (
                Situation { behind: Some(Duration::from_millis(49)), ..live() },
                "up_to_date",
                Tone::Good,
                "up to date",
            ),
            (held, "held_back", Tone::Trouble, "held back by web-events/3 since 12:03"),
            (idle.clone(), "quiet", Tone::Good, "no new events for 4 min"),
            (Situation { records: 0, ..idle }, "quiet", Tone::Good, "no events for 4 min"),
            (
                Situation { stopping: true, commits_left: 2, ..live() },
                "stopping",
                Tone::Busy,
                "stopping (2 commits left)",
            ),
            (Situation { stopping: true, ..live() }, "stopping", Tone::Busy, "stopping"),
            (
                ends(Ended::Stopped),
                "stopped",
                Tone::Busy,
                "stopped; the next start continues from here",
            ),
            (
                ends(Ended::Uncommitted("why".to_owned())),
                "uncommitted",
                Tone::Trouble,
                "stopped without a last commit",
            ),
            (
                ends(Ended::Fenced),
                "fenced",
                Tone::Trouble,
                "fenced: another instance of the job has taken over",
            ),
            (ends(Ended::Failed("why".to_owned())), "failed", Tone::Trouble, "failed"),
        ] {
            let shown = sentence(&judge(&at));
            assert_eq!(
                (shown.state.as_str(), shown.tone, shown.text.as_str()),
                (state, tone, text)
            );
        }
        assert_eq!(
            sentence(&judge(&waits(Awaited::Postgres(None), refused))).cause.as_deref(),
            refused
        );
    }

    #[test]
    fn rates_and_times_are_short() {
        let rates = [0.25, 560.0, 1_234.0, 34_000.0, 1_234_567.0].map(short);
        assert_eq!(rates, ["0.2", "560", "1.2 k", "34 k", "1.2 M"]);
        assert_eq!(
            [9, 59, 61, 7_300, 90_000].map(|s| largest(seconds(s))),
            ["9 s", "59 s", "1 min", "2 h", "1 d"]
        );
    }
}
