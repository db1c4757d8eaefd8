//! The clocks of a schedule: one that only goes forward, and the wall clock of each process, which
//! may be set at will.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use sessionizer::dataflow::source::WorldClocks;
use sessionizer_core::plan::RecoveryPlan;

use crate::sabotage::Sabotage;
use crate::topic::BEGIN_MS;

const HOUR_MS: i64 = 3_600_000;
/// The limit on how far a clock is off.
const MOST_MS: i64 = 120 * HOUR_MS;
/// The maximum number of processes in a life.
const PROCESSES: usize = 3;

/// All clocks.
#[derive(Debug, Default)]
pub struct SimClocks {
    elapsed_ms: AtomicU64,
    /// How far the wall clock of each process is ahead of the true time.
    ahead_ms: [AtomicI64; PROCESSES],
    /// Every time that a wall clock has shown to anybody.
    said: Mutex<BTreeSet<u64>>,
}

impl SimClocks {
    /// Time passes for everybody.
    pub fn pass(&self, ms: u64) {
        self.elapsed_ms.fetch_add(ms, Relaxed);
    }

    /// The time since the beginning of the schedule.
    pub fn elapsed_ms(&self) -> u64 {
        self.elapsed_ms.load(Relaxed)
    }

    /// Sets the wall clock of a process forward or back.
    pub fn set(&self, process: usize, by_ms: i64) {
        let ahead_ms = &self.ahead_ms[process % PROCESSES];
        let ahead = (ahead_ms.load(Relaxed) + by_ms).clamp(-MOST_MS, MOST_MS);
        ahead_ms.store(ahead, Relaxed);
    }

    pub fn wall_ms(&self, process: usize) -> u64 {
        let ahead_ms = self.ahead_ms[process].load(Relaxed);
        (BEGIN_MS + self.elapsed_ms()).saturating_add_signed(ahead_ms)
    }

    /// Whether a wall clock has shown this time.
    pub fn have_said(&self, ms: u64) -> bool {
        self.said.lock().expect("one at a time").contains(&ms)
    }

    /// The clocks of one worker from now on. It learns the plan `late_ms` after the first worker,
    /// and its clock is fast by the given percentage.
    pub fn of_worker(
        self: &Arc<Self>,
        process: usize,
        plan: &RecoveryPlan,
        (late_ms, fast_percent): (u64, u64),
        sabotage: Option<Sabotage>,
    ) -> WorldClocks {
        let began_ms = self.elapsed_ms();
        let (first_epoch, clocks) = (plan.first_epoch, Arc::clone(self));
        let elapsed = move || {
            let passed = (clocks.elapsed_ms() - began_ms).saturating_sub(late_ms);
            passed + passed * fast_percent / 100
        };
        let clocks = Arc::clone(self);
        let walls = [0, process].map(|process| self.wall_ms(process));
        let elapsed: Arc<dyn Fn() -> u64 + Send + Sync> = match sabotage {
            Some(Sabotage::EpochsWaitForTheWallClock) => {
                Arc::new(move || elapsed().min(clocks.wall_ms(process).saturating_sub(first_epoch)))
            }
            Some(Sabotage::EpochsFollowTheWallClock) => {
                Arc::new(move || clocks.wall_ms(process).saturating_sub(first_epoch))
            }
            Some(Sabotage::EveryProcessHasItsOwnEpochs) => {
                let own = walls[1].saturating_sub(walls[0]);
                let behind = walls[0].saturating_sub(walls[1]);
                Arc::new(move || (elapsed() + own).saturating_sub(behind))
            }
            _ => Arc::new(elapsed),
        };
        let (clocks, epochs) = (Arc::clone(self), Arc::clone(&elapsed));
        let wall = move || match sabotage {
            Some(Sabotage::FutureJudgedByTheEpoch) => first_epoch + epochs(),
            _ => {
                let wall_ms = clocks.wall_ms(process);
                clocks.said.lock().expect("one at a time").insert(wall_ms);
                wall_ms
            }
        };
        WorldClocks { elapsed_ms: elapsed, wall_ms: Arc::new(wall) }
    }
}
