//! How far the start of a cluster has come. A complete cluster that stands still holds the fence
//! and does nothing. So a standstill has a time limit, after which the processes that lag are
//! named.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How far a process has come. It only advances.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub enum Stage {
    /// Waiting for the plan, or making it.
    #[default]
    Planning,
    /// The plan is known, and this many shards are loaded.
    Loading(u64),
    /// Reading.
    Running,
}

impl Stage {
    /// Describes the stage for people.
    pub fn doing(self) -> &'static str {
        match self {
            Stage::Planning => "has no plan yet",
            Stage::Loading(_) => "is still loading its shards",
            Stage::Running => "runs",
        }
    }
}

/// Watches the stages of all processes.
pub(super) struct Standstill {
    limit: Duration,
    last: Vec<Stage>,
    since: Instant,
}

/// What a look at the stages shows.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Look {
    /// All processes are running.
    Started,
    Waiting,
    /// Nothing has changed for too long; these processes are the furthest behind.
    Still(Vec<usize>),
}

impl Standstill {
    pub fn new(limit: Duration, now: Instant) -> Self {
        Standstill { limit, last: Vec::new(), since: now }
    }

    /// Looks at the stage of each process, by index.
    pub fn look(&mut self, stages: Vec<Stage>, now: Instant) -> Look {
        if stages.iter().all(|stage| *stage == Stage::Running) {
            return Look::Started;
        }
        if stages != self.last {
            (self.last, self.since) = (stages, now);
        }
        if now.duration_since(self.since) < self.limit {
            return Look::Waiting;
        }
        let rank = |stage: &Stage| match stage {
            Stage::Planning => 0,
            Stage::Loading(_) => 1,
            Stage::Running => 2,
        };
        let least = self.last.iter().map(rank).min().unwrap_or(0);
        let behind = self.last.iter().enumerate().filter(|(_, stage)| rank(stage) == least);
        Look::Still(behind.map(|(process, _)| process).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_may_take_any_time_as_long_as_something_moves() {
        let (begin, limit) = (Instant::now(), Duration::from_secs(60));
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut watch = Standstill::new(limit, begin);
        let planning = vec![Stage::Planning; 2];
        assert_eq!(watch.look(planning.clone(), at(0)), Look::Waiting);
        assert_eq!(watch.look(planning.clone(), at(59)), Look::Waiting);
        for shards in 0..10 {
            let stages = vec![Stage::Loading(shards), Stage::Planning];
            assert_eq!(watch.look(stages, at(59 * (shards + 2))), Look::Waiting);
        }
        let stages = vec![Stage::Running; 2];
        assert_eq!(watch.look(stages, at(9_000)), Look::Started);
    }

    #[test]
    fn a_standstill_names_who_is_behind() {
        let (begin, limit) = (Instant::now(), Duration::from_secs(60));
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut watch = Standstill::new(limit, begin);
        let stages = vec![Stage::Running, Stage::Loading(3), Stage::Loading(9)];
        assert_eq!(watch.look(stages.clone(), at(1)), Look::Waiting);
        assert_eq!(watch.look(stages.clone(), at(60)), Look::Waiting);
        assert_eq!(watch.look(stages, at(61)), Look::Still(vec![1, 2]));
    }
}
