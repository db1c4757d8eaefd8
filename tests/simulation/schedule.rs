//! One seed, one schedule: a world, and the lives of the job in it. `disturbances`
//! is what happens to them, `ending` how they end, and `commands` what is done in between; `seen`
//! counts it.

mod commands;
mod disturbances;
mod ending;
mod seen;

use std::sync::{Arc, Mutex};

pub use self::seen::Seen;
use sessionizer::job::recover::assemble;
use sessionizer_core::alignment::Drift;
use sessionizer_core::binding::{Late, Offset, RecordRules, Status};
use sessionizer_core::fault::Fault;
use sessionizer_core::plan::RecoveryPlan;

use crate::clocks::SimClocks;
use crate::ledger::Store;
use crate::rng::Rng;
use crate::run::{Setup, SimRun};
use crate::sabotage::{self, Sabotage};
use crate::statistics::{Changes, Rows, Statistics};
use crate::topic::{KEYS, MAX_FUTURE_MS, Topic};

/// How many steps a run may take to its end, once that is near.
const PATIENCE_STEPS: usize = 20_000;
/// How many steps a quiet world may take until everything is durable.
const QUIET_STEPS: u64 = 2_000;
/// How long it is then watched.
const GO_ON_MS: u64 = 1_000;

struct World {
    rng: Rng,
    topic: Arc<Mutex<Topic>>,
    store: Arc<Mutex<Store>>,
    /// A state of the store that it may go back to.
    earlier: Option<Store>,
    clocks: Arc<SimClocks>,
    /// When the current life began.
    began_ms: u64,
    /// By how many percent its fastest clock is faster than time.
    fastest_percent: u64,
    /// Whether clocks are set by hours.
    leaps: bool,
    /// How many bytes a process of the current life may have in flight.
    memory: u64,
    /// How much of a payload a dead letter keeps: less than that of any event, or all of it.
    dead_letter_bytes: usize,
    /// The changes emitted by the commit operators of the current life, and the table at its start.
    changes: Changes,
    rows: Rows,
    /// The statistics of the current life, and the chance that shapes them.
    statistics: Option<Statistics>,
    statistics_rng: Rng,
    /// The chance that decides about commands between two lives.
    commands_rng: Rng,
    /// An instance that does not know that it was replaced.
    stale: Option<SimRun>,
    /// The last life crashed while it drained.
    shaken: bool,
    /// The process of the current life that moves less often than the others.
    slow: Option<usize>,
    seen: Seen,
    sabotage: Option<Sabotage>,
    story: bool,
}

/// Runs a schedule; with a sabotage, it is expected to panic.
pub fn run(seed: u64, sabotage: Option<Sabotage>) -> Seen {
    let mut rng = Rng::new(seed);
    let keys = rng.between(1, KEYS);
    let shards = rng.between(1, 6) as u32;
    let topic = Arc::new(Mutex::new(Topic::new(&mut rng, keys, sabotage)));
    let chance = Rng::new(rng.below(u64::MAX));
    let clocks: Arc<SimClocks> = Arc::default();
    let store =
        Arc::new(Mutex::new(Store::new(Arc::clone(&topic), Arc::clone(&clocks), shards, chance)));
    let of_others = sabotage.is_some_and(|rule| !rule.is_of_commands());
    let dead_letter_bytes = [100, 100, 30, 5][if of_others { 0 } else { seed as usize % 4 }];
    store.lock().expect("one at a time").cuts = dead_letter_bytes < 100;
    let leaps = rng.one_in(2);
    let (changes, rows, seen) = (Arc::default(), Rows::new(), Seen::default());
    let (stale, shaken, slow) = (None, false, None);
    let mut world = World {
        rng,
        topic,
        store,
        earlier: None,
        clocks,
        began_ms: 0,
        fastest_percent: 0,
        leaps,
        memory: u64::MAX,
        dead_letter_bytes,
        changes,
        rows,
        statistics: None,
        statistics_rng: Rng::new(seed.wrapping_mul(0x5851_f42d_4c95_7f2d)),
        commands_rng: Rng::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d)),
        stale,
        shaken,
        slow,
        seen,
        sabotage,
        story: std::env::var_os("SESSIONIZER_SEED").is_some(),
    };
    for _ in 0..world.rng.below(11) {
        world.live();
        world.use_commands();
    }
    world.last_life();
    world.use_commands();
    let store = world.store.lock().expect("one at a time");
    world.seen.commits = store.commits;
    world.seen.lost_replies = store.lost_replies;
    world.seen.late = store.late;
    world.seen.dead = store.dead();
    world.seen.read_again = store.read_again;
    world.seen.blanked = store.blanked;
    world.seen.dropped = store.check_dropped();
    store.audit();
    if let Some(statistics) = &world.statistics {
        world.seen.statistics.add(&statistics.seen);
    }
    world.seen
}

impl World {
    /// Starts the next life; a bounded one ends where the partitions end now.
    fn start(&mut self, bounded: bool) -> SimRun {
        let plan = self.plan(bounded);
        self.seen.lives += 1;
        self.seen.replayed_epochs += plan.replay.len() as u64;
        let setup = self.setup(plan, bounded);
        self.began_ms = self.clocks.elapsed_ms();
        self.tell(|| {
            let Setup { plan, processes, workers, memory, .. } = &setup;
            let (kind, replay) = (if bounded { "bounded " } else { "" }, plan.replay.len());
            format!(
                "a {kind}life of {processes} processes and {workers} workers begins: epochs from \
                 {}, {replay} to read again, the clock says {}, slow: {:?}, late: {:?}, \
                 memory: {memory}",
                plan.first_epoch,
                self.clocks.wall_ms(0),
                self.slow,
                plan.rules.late
            )
        });
        SimRun::start(setup)
    }

    /// What the next life begins with, from what is durable.
    fn plan(&mut self, bounded: bool) -> RecoveryPlan {
        let mut durable = self.store.lock().expect("one at a time").start();
        // Sometimes clocks were set in the meantime.
        if self.rng.one_in(10) {
            self.clocks.set(0, -300);
        }
        if self.rng.one_in(4) {
            self.leap();
        }
        let first = self.clocks.wall_ms(0);
        sabotage::durable(self.sabotage, &mut durable, first);
        let existing = self.topic.lock().expect("one at a time").existing;
        // The rule for late events may change at every start.
        let late = if self.rng.one_in(3) { Late::Drop } else { Late::Merge };
        let rules = RecordRules { max_future_ms: MAX_FUTURE_MS, late };
        let topics = ["t".to_owned()];
        let mut plan = assemble(&durable, &topics, &[existing as i32], first, rules)
            .expect("nothing is missing");
        self.changes = Arc::default();
        self.rows = self.store.lock().expect("one at a time").table();
        sabotage::plan(self.sabotage, &mut plan, first);
        self.begin_statistics(&plan);
        if bounded {
            let topic = self.topic.lock().expect("one at a time");
            for part in &mut plan.partitions {
                let log = &topic.logs[part.start.partition.number as usize];
                part.until = Some(log.readable_end());
            }
        }
        plan
    }

    /// Draws the size of the next life and its settings.
    fn setup(&mut self, plan: RecoveryPlan, bounded: bool) -> Setup {
        let processes = if self.rng.one_in(2) { 1 } else { self.rng.between(2, 3) as usize };
        let workers = match processes {
            1 => self.rng.between(1, 4) as usize,
            several => several * self.rng.between(1, 2) as usize,
        };
        self.seen.clusters += u64::from(processes > 1);
        self.slow = (processes > 1 && self.rng.one_in(2))
            .then(|| self.rng.below(processes as u64) as usize);
        let fast_percent = self.rng.below(3) * 5;
        self.fastest_percent = fast_percent * (workers as u64 - 1);
        // Some have room for one record at a time, some for a few.
        self.memory = [u64::MAX, u64::MAX, 5_000, 1_000, 1][self.rng.below(5) as usize];
        Setup {
            plan: Arc::new(plan),
            workers,
            processes,
            writers: self.rng.between(1, 4) as u32,
            topic: Arc::clone(&self.topic),
            store: Arc::clone(&self.store),
            clocks: Arc::clone(&self.clocks),
            changes: Arc::clone(&self.changes),
            statistics: self.statistics.clone(),
            lag_ms: self.rng.below(3) * 7,
            fast_percent,
            sabotage: self.sabotage,
            gather_from_rows: self.rng.below(2) * 5,
            drift: Drift {
                most_ms: [0, 30, 500, 1_000_000][self.rng.below(4) as usize],
                sessions: [0, 0, 3, 1_000][self.rng.below(4) as usize],
            },
            bounded,
            memory: self.memory,
            dead_letter_bytes: self.dead_letter_bytes,
        }
    }

    /// Most lives have statistics. With a broken rule only those have them that are about them.
    fn begin_statistics(&mut self, plan: &RecoveryPlan) {
        if let Some(statistics) = self.statistics.take() {
            self.seen.statistics.add(&statistics.seen);
        }
        let of_others = self.sabotage.is_some_and(|rule| !rule.is_of_statistics());
        if self.statistics_rng.one_in(6) || of_others {
            return;
        }
        let mut bindings = plan.replay.iter().flat_map(|bound| &bound.bindings);
        let drained = bindings.any(|binding| binding.status == Status::Ended);
        self.statistics = Some(Statistics::new(
            &mut self.statistics_rng,
            (&self.rows, &self.changes),
            drained,
            &self.store,
            self.sabotage,
        ));
    }

    /// Picks whose turn it is: a slow process has fewer turns than the others.
    fn pick(&mut self, run: &SimRun) -> usize {
        let worker = self.rng.below(run.workers() as u64) as usize;
        if self.slow == Some(run.process_of(worker)) && !self.rng.one_in(6) {
            return self.rng.below(run.workers() as u64) as usize;
        }
        worker
    }

    /// Time passes, records arrive, somebody moves.
    fn step(&mut self, run: &SimRun) {
        if self.rng.one_in(100) {
            self.earlier = Some(self.store.lock().expect("one at a time").clone());
        }
        self.pass_time();
        let worker = self.pick(run);
        run.step(worker);
        self.step_stale();
        self.check_fault(run);
    }

    /// Prints a line of the story of a schedule that runs alone.
    fn tell(&self, what: impl Fn() -> String) {
        if self.story {
            println!("{:>6} ms: {}", self.clocks.elapsed_ms(), what());
        }
    }

    fn check_fault(&self, run: &SimRun) {
        assert_eq!(run.fault(), None, "the job gave up");
        let believed = run.believed_durable();
        let durable = self.store.lock().expect("one at a time").durable_epoch();
        assert!(believed <= durable, "I7: {believed} is taken for durable, {durable} is");
    }

    /// The replaced instance carries on until it learns that it was replaced.
    fn step_stale(&mut self) {
        let Some(stale) = &self.stale else { return };
        stale.step(self.rng.below(stale.workers() as u64) as usize);
        if let Some(fault) = stale.fault() {
            assert!(matches!(fault, Fault::Fenced(_) | Fault::GoneBack(_)), "{fault:?}");
            self.seen.fenced += u64::from(matches!(fault, Fault::Fenced(_)));
            self.stale = None;
        } else if stale.ended() || self.rng.one_in(200) {
            self.stale = None;
        }
    }

    /// One life: it ends with a crash, a clean stop, or a successor that it does not know. A
    /// bounded one may reach its own end first.
    fn live(&mut self) {
        // A second crash soon after one in a drain: the drain is replayed into shards, some of
        // which have advanced since.
        let shaken = std::mem::take(&mut self.shaken);
        let bounded = !shaken && self.rng.one_in(4);
        if bounded || shaken || self.rng.one_in(2) {
            self.arrive();
        }
        let run = self.start(bounded);
        if bounded && self.rng.one_in(2) {
            // A partition that appears now does not belong to the bounded run.
            let now_ms = self.clocks.elapsed_ms();
            self.topic.lock().expect("one at a time").grow(now_ms);
        }
        let crashes_at_the_end = bounded && self.rng.one_in(2);
        // Short lives leave much to read again to the next one, and to the one after it.
        let most = if !shaken && self.rng.one_in(2) { 400 } else { 150 };
        for _ in 0..self.rng.below(most) {
            self.step(&run);
            if run.ended() {
                self.tell(|| "it has read to the end".to_owned());
                return self.check_drained(&run);
            }
            // A crash shortly before the end, when only some of it is durable, reveals the most.
            if crashes_at_the_end && self.is_ending(&run) {
                self.tell(|| "it crashes while it drains".to_owned());
                self.seen.crashes += 1;
                self.shaken = true;
                return;
            }
        }
        if run.processes() > 1 && self.rng.one_in(3) {
            return self.lose_one(run);
        }
        if self.rng.one_in(6)
            && let Some(earlier) = self.earlier.take()
        {
            return self.go_back(run, &earlier);
        }
        self.end(run, bounded, shaken);
    }

    /// Records arrive while nobody runs; without them, a bounded run would have little to do.
    fn arrive(&mut self) {
        let now_ms = self.clocks.elapsed_ms();
        let mut topic = self.topic.lock().expect("one at a time");
        let existing = topic.existing;
        for log in &mut topic.logs[..existing] {
            log.show(self.rng.below(12) as usize, now_ms);
        }
    }

    /// Ends a life that has not ended by itself; with a crash if the one before ended so in a drain.
    fn end(&mut self, run: SimRun, bounded: bool, shaken: bool) {
        let end = self.rng.below(4);
        self.tell(|| match end {
            _ if shaken => "it crashes".to_owned(),
            0 => "it is stopped".to_owned(),
            1 | 2 if bounded => "it drains".to_owned(),
            1 => "it is replaced and does not know".to_owned(),
            _ => "it crashes".to_owned(),
        });
        match end {
            _ if shaken => self.seen.crashes += 1,
            0 => self.stop(&run),
            1 | 2 if bounded => self.drain(&run),
            1 => self.stale = Some(run),
            _ => self.seen.crashes += 1,
        }
    }
}
