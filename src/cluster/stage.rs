//! How far the start of a cluster has come. A complete cluster that stands still holds the fence
//! and does nothing. So a standstill has a time limit, after which the processes that lag are
//! named.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How far a process has come. It only advances.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub enum StartStage {
    /// Waiting for the plan, or making it.
    #[default]
    Planning,
    /// The plan is known, and this many shards are loaded.
    Loading(u64),
    /// Reading.
    Running,
}

impl StartStage {
    /// Describes the stage for people.
    pub fn doing(self) -> &'static str {
        match self {
            StartStage::Planning => "has no plan yet",
            StartStage::Loading(_) => "is still loading its shards",
            StartStage::Running => "runs",
        }
    }
}

/// Watches the stages of all processes.
pub(super) struct StallDetector {
    limit: Duration,
    last: Vec<StartStage>,
    since: Instant,
}

/// What a look at the stages shows.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum StartState {
    /// All processes are running.
    Started,
    Waiting,
    /// Nothing has changed for too long; these processes are the furthest behind.
    Stalled(Vec<usize>),
}

impl StallDetector {
    pub fn new(limit: Duration, now: Instant) -> Self {
        StallDetector { limit, last: Vec::new(), since: now }
    }

    /// Looks at the stage of each process, by index.
    pub fn check(&mut self, stages: Vec<StartStage>, now: Instant) -> StartState {
        if stages.iter().all(|stage| *stage == StartStage::Running) {
            return StartState::Started;
        }
        if stages != self.last {
            (self.last, self.since) = (stages, now);
        }
        if now.duration_since(self.since) < self.limit {
            return StartState::Waiting;
        }
        let rank = |stage: &StartStage| match stage {
            StartStage::Planning => 0,
            StartStage::Loading(_) => 1,
            StartStage::Running => 2,
        };
        let least = self.last.iter().map(rank).min().unwrap_or(0);
        let behind = self.last.iter().enumerate().filter(|(_, stage)| rank(stage) == least);
        StartState::Stalled(behind.map(|(process, _)| process).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_may_take_any_time_as_long_as_something_moves() {
        let (begin, limit) = (Instant::now(), Duration::from_secs(60));
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut detector = StallDetector::new(limit, begin);
        let planning = vec![StartStage::Planning; 2];
        assert_eq!(detector.check(planning.clone(), at(0)), StartState::Waiting);
        assert_eq!(detector.check(planning.clone(), at(59)), StartState::Waiting);
        for shards in 0..10 {
            let stages = vec![StartStage::Loading(shards), StartStage::Planning];
            assert_eq!(detector.check(stages, at(59 * (shards + 2))), StartState::Waiting);
        }
        let stages = vec![StartStage::Running; 2];
        assert_eq!(detector.check(stages, at(9_000)), StartState::Started);
    }

    #[test]
    fn a_standstill_names_who_is_behind() {
        let (begin, limit) = (Instant::now(), Duration::from_secs(60));
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut detector = StallDetector::new(limit, begin);
        let stages = vec![StartStage::Running, StartStage::Loading(3), StartStage::Loading(9)];
        assert_eq!(detector.check(stages.clone(), at(1)), StartState::Waiting);
        assert_eq!(detector.check(stages.clone(), at(60)), StartState::Waiting);
        assert_eq!(detector.check(stages, at(61)), StartState::Stalled(vec![1, 2]));
    }
}
