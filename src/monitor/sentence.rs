//! The one sentence that says how the job is: for the page and its title, `/readyz` and
//! `sessionizer status`. A pure function of the situation.
//!
//! The most important thing comes first: how the run ends; what it waits for; how far a start has
//! come; how much of a backlog is left; who holds the output back; and otherwise how far it is
//! behind.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ui::text::{count, duration, plural};

/// The job keeps up as long as reading the remaining records takes no longer than this.
const KEEPS_UP: Duration = Duration::from_secs(3);
/// Silence is worth mentioning after this long without a new record.
const QUIET: Duration = Duration::from_secs(10);

/// What the sentence is made of.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Situation {
    /// How the run has ended, if it has.
    pub ended: Option<Ended>,
    pub stopping: bool,
    /// Epochs that still have to be committed.
    pub commits_left: u64,
    pub wait: Option<Wait>,
    pub stage: Stage,
    /// Records that are available and not yet read, if known.
    pub lag: Option<u64>,
    /// Records a second.
    pub rate: f64,
    /// Records read in this run.
    pub records: u64,
    /// How long ago the last record was read.
    pub quiet: Duration,
    /// The partition that holds the output back.
    pub held_back: Option<HeldBack>,
    /// How long it takes from an event until it is durable.
    pub behind: Option<Duration>,
}

/// How a run has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    Stopped,
    Fenced,
    Failed(String),
}

/// Something outside that does not answer.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Wait {
    /// `Kafka at broker:9092`, `Postgres`, `memory`.
    pub what: String,
    pub why: Option<String>,
    pub lasts_ms: u64,
}

/// How far a run has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Stage {
    #[default]
    Connecting,
    Loading {
        loaded: u64,
        all: u64,
    },
    Replaying {
        percent: u64,
    },
    Running,
}

/// A partition that holds the output back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeldBack {
    pub partition: String,
    pub since_ms: u64,
    pub why: Option<String>,
}

/// How things are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tone {
    #[default]
    Good,
    /// As it should be, but not there yet.
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
    /// What a server has said about it.
    pub cause: Option<String>,
}

/// Says how the job is.
pub fn sentence(at: &Situation) -> Sentence {
    let say = |state: &str, tone: Tone, text: String, cause: Option<String>| Sentence {
        state: state.to_owned(),
        tone,
        text,
        cause,
    };
    match &at.ended {
        Some(Ended::Stopped) => {
            return say("stopped", Tone::Busy, "stopped; the next start goes on".to_owned(), None);
        }
        Some(Ended::Fenced) => {
            let text = "fenced: another instance of the job has taken over".to_owned();
            return say("fenced", Tone::Trouble, text, None);
        }
        Some(Ended::Failed(why)) => {
            return say("failed", Tone::Trouble, "failed".to_owned(), Some(why.clone()));
        }
        None => {}
    }
    if at.stopping {
        let left = match at.commits_left {
            0 => String::new(),
            left => format!(" ({} left)", plural(left, "commit")),
        };
        let cause = at.wait.as_ref().and_then(|wait| wait.why.clone());
        let tone = if at.wait.is_some() { Tone::Trouble } else { Tone::Busy };
        return say("stopping", tone, format!("stopping{left}"), cause);
    }
    if let Some(wait) = &at.wait {
        return waiting(wait);
    }
    match at.stage {
        Stage::Connecting => say("connecting", Tone::Busy, "connecting".to_owned(), None),
        Stage::Loading { loaded, all } => {
            let text = format!("loading open sessions, shard {} of {}", count(loaded), count(all));
            say("loading", Tone::Busy, text, None)
        }
        Stage::Replaying { percent } => {
            say("replaying", Tone::Busy, format!("replaying {percent} %"), None)
        }
        Stage::Running => running(at),
    }
}

fn waiting(wait: &Wait) -> Sentence {
    let lasts = whole(Duration::from_millis(wait.lasts_ms));
    let why = wait.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
    let (state, tone, text) = match wait.what.as_str() {
        what if what.starts_with("Kafka") => (
            "waiting_for_kafka",
            Tone::Trouble,
            format!("waiting for Kafka ({lasts}, retrying{why})"),
        ),
        what if what.starts_with("Postgres") => {
            let text = format!("waiting for Postgres ({lasts}, retrying{why})");
            ("waiting_for_postgres", Tone::Trouble, text)
        }
        what if what.starts_with("memory") => {
            ("waiting", Tone::Busy, format!("waiting for memory ({lasts}{why})"))
        }
        what => ("waiting", Tone::Busy, format!("waiting for {what} ({lasts}{why})")),
    };
    Sentence { state: state.to_owned(), tone, text, cause: wait.why.clone() }
}

fn running(at: &Situation) -> Sentence {
    let say = |state: &str, tone: Tone, text: String, cause: Option<String>| Sentence {
        state: state.to_owned(),
        tone,
        text,
        cause,
    };
    let left = left(at.lag, at.rate);
    if let Some(left) = left.filter(|left| *left > KEEPS_UP) {
        let text = format!("catching up ({} left at {}/s)", whole(left), short(at.rate));
        return say("catching_up", Tone::Busy, text, None);
    }
    if let Some(held) = &at.held_back {
        let text = format!("held back by {} since {}", held.partition, clock(held.since_ms));
        return say("held_back", Tone::Trouble, text, held.why.clone());
    }
    if at.lag.unwrap_or(0) == 0 && at.quiet >= QUIET {
        let what = if at.records == 0 { "no events" } else { "no new events" };
        let text = format!("{what} for {}", largest(at.quiet));
        return say("quiet", Tone::Good, text, None);
    }
    let text = match at.behind {
        Some(behind) => format!("up to date, {} behind", duration(behind)),
        None => "up to date".to_owned(),
    };
    say("up_to_date", Tone::Good, text, None)
}

/// How long it takes to read what is left; `None` if nothing is, or if that is not known.
pub fn left(lag: Option<u64>, rate: f64) -> Option<Duration> {
    let lag = lag.filter(|lag| *lag > 0 && rate > 0.0)?;
    Some(Duration::from_secs_f64((lag as f64 / rate).min(1e9)))
}

/// Without a fraction, which would change too fast to be read.
fn whole(time: Duration) -> String {
    duration(Duration::from_secs(time.as_secs()))
}

/// In one unit: silence changes slowly.
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

    fn waits(what: &str, why: Option<&str>) -> Situation {
        let why = why.map(str::to_owned);
        let wait = Wait { what: what.to_owned(), why, lasts_ms: 12_900 };
        Situation { wait: Some(wait), ..live() }
    }

    #[test]
    fn every_state_has_its_sentence() {
        let refused = Some("connection refused");
        let backlog = Situation { lag: Some(216_000_000), rate: 1.2e6, ..live() };
        let held = HeldBack {
            partition: "web-events/3".to_owned(),
            since_ms: 1_790_251_385_000,
            why: Some("it has no leader".to_owned()),
        };
        let held = Situation { held_back: Some(held), ..live() };
        let idle = Situation { lag: Some(0), rate: 0.0, quiet: seconds(245), ..live() };
        let ends = |ended| Situation { ended: Some(ended), ..waits("Postgres", refused) };
        for (at, state, tone, text) in [
            (Situation::default(), "connecting", Tone::Busy, "connecting"),
            (
                waits("Kafka at broker:9092", refused),
                "waiting_for_kafka",
                Tone::Trouble,
                "waiting for Kafka (12 s, retrying: connection refused)",
            ),
            (
                waits("Postgres", refused),
                "waiting_for_postgres",
                Tone::Trouble,
                "waiting for Postgres (12 s, retrying: connection refused)",
            ),
            (
                waits("Postgres at db:5432/web", None),
                "waiting_for_postgres",
                Tone::Trouble,
                "waiting for Postgres (12 s, retrying)",
            ),
            (
                waits("memory", Some("43 MiB of rows wait to be committed (--memory)")),
                "waiting",
                Tone::Busy,
                "waiting for memory (12 s: 43 MiB of rows wait to be committed (--memory))",
            ),
            (
                waits("process 1 (host:2102)", refused),
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
            (live(), "up_to_date", Tone::Good, "up to date, 0.4 s behind"),
            (Situation { behind: None, ..live() }, "up_to_date", Tone::Good, "up to date"),
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
            (ends(Ended::Stopped), "stopped", Tone::Busy, "stopped; the next start goes on"),
            (
                ends(Ended::Fenced),
                "fenced",
                Tone::Trouble,
                "fenced: another instance of the job has taken over",
            ),
            (ends(Ended::Failed("why".to_owned())), "failed", Tone::Trouble, "failed"),
        ] {
            let said = sentence(&at);
            assert_eq!((said.state.as_str(), said.tone, said.text.as_str()), (state, tone, text));
        }
        assert_eq!(sentence(&waits("Postgres", refused)).cause.as_deref(), refused);
    }

    #[test]
    fn what_hinders_comes_before_what_progresses() {
        let mut at = waits("Postgres", None);
        at.lag = Some(1_000_000);
        assert_eq!(sentence(&at).state, "waiting_for_postgres");
        at.stopping = true;
        assert_eq!(sentence(&at).state, "stopping");
        at.ended = Some(Ended::Fenced);
        assert_eq!(sentence(&at).state, "fenced");
    }

    #[test]
    fn a_backlog_is_named_only_if_it_takes_long() {
        let at = |lag, rate| sentence(&Situation { lag: Some(lag), rate, ..live() }).state;
        assert_eq!(at(1_500, 500.0), "up_to_date");
        assert_eq!(at(1_600, 500.0), "catching_up");
        assert_eq!(at(1_600, 0.0), "up_to_date");
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
