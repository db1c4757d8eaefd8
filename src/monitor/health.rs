//! Whether the process is live and whether it is ready, as pure functions.
//!
//! It is *live* unless a restart would help: a worker has not stepped for a minute, or another
//! instance has taken over. It is *ready* if it makes progress or has nothing to do. An outage of
//! Kafka or Postgres makes it unready, but it stays live.

use std::time::Duration;

use crate::ui::text::duration;

/// A worker that has not stepped for this long hangs.
pub const HANG_TIMEOUT: Duration = Duration::from_secs(60);

/// The facts by which health is judged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Vitals {
    /// Another instance has taken over.
    pub fenced: bool,
    /// The plan is loaded and all workers run.
    pub running: bool,
    /// The run is stopping, or has ended.
    pub ending: bool,
    /// For how long each worker has not stepped.
    pub still: Vec<Duration>,
    /// For how long something outside has not answered.
    pub waits: Option<Duration>,
    /// For how long nothing has become durable.
    pub undurable: Duration,
    /// Something waits to be made durable.
    pub pending: bool,
}

/// A verdict: good, or why not.
pub type Verdict = Result<(), String>;

/// Whether the process is live.
pub fn live(at: &Vitals) -> Verdict {
    if at.fenced {
        return Err("fenced: another instance of the job has taken over".to_owned());
    }
    let hangs = at.still.iter().enumerate().find(|(_, still)| **still >= HANG_TIMEOUT);
    match hangs {
        Some((worker, still)) => {
            Err(format!("worker {worker} has not stepped for {}", duration(*still)))
        }
        None => Ok(()),
    }
}

/// Whether the process is ready. `within` is how long it may make no progress; `sentence` says
/// what it does.
pub fn ready(at: &Vitals, within: Duration, sentence: &str) -> Verdict {
    live(at)?;
    let waits = at.waits.is_some_and(|waits| waits >= within);
    let stuck = at.pending && at.undurable >= within;
    match at.running && !at.ending && !waits && !stuck {
        true => Ok(()),
        false if stuck && !waits && !at.ending => {
            Err(format!("{sentence}; nothing has become durable for {}", duration(at.undurable)))
        }
        false => Err(sentence.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_secs(60);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn good() -> Vitals {
        Vitals { running: true, still: vec![seconds(0), seconds(1)], ..Vitals::default() }
    }

    #[test]
    fn a_job_that_works_or_has_nothing_to_do_is_live_and_ready() {
        let working = Vitals { pending: true, undurable: seconds(59), ..good() };
        let idle = Vitals { pending: false, undurable: seconds(3_600), ..good() };
        for at in [good(), working, idle] {
            assert_eq!((live(&at), ready(&at, WITHIN, "fine")), (Ok(()), Ok(())), "{at:?}");
        }
    }

    #[test]
    fn a_server_that_is_away_makes_it_unready_and_not_dead() {
        let kafka = Vitals { waits: Some(seconds(60)), ..good() };
        let postgres = Vitals { pending: true, undurable: seconds(61), ..good() };
        let start = Vitals { running: false, ..good() };
        let stops = Vitals { ending: true, ..good() };
        for at in [kafka, postgres, start, stops] {
            assert_eq!(live(&at), Ok(()), "{at:?}");
            assert!(ready(&at, WITHIN, "waiting").expect_err("unready").starts_with("waiting"));
        }
        let soon = Vitals { waits: Some(seconds(59)), ..good() };
        assert_eq!(ready(&soon, WITHIN, "waiting"), Ok(()));
    }

    #[test]
    fn only_what_a_restart_would_mend_is_dead() {
        let hangs = Vitals { still: vec![seconds(0), seconds(61)], ..good() };
        assert_eq!(live(&hangs), Err("worker 1 has not stepped for 1 min 1 s".to_owned()));
        let fenced = Vitals { fenced: true, ..good() };
        assert!(live(&fenced).is_err() && ready(&fenced, WITHIN, "").is_err());
    }
}
