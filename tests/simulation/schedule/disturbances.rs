//! What happens to the job from outside: time, clocks, a ledger that is away, transactions,
//! leaders, lost processes, and a database that goes back.

use super::*;

impl World {
    /// Clocks move, records arrive, and servers go away and come back.
    pub(super) fn pass_time(&mut self) {
        self.change_the_weather();
        if self.rng.one_in(2) {
            self.clocks.pass(self.rng.below(8));
        } else if self.rng.one_in(200) {
            let process = self.rng.below(3) as usize;
            self.clocks.set(process, self.rng.below(100) as i64 - 50);
        } else if self.rng.one_in(150) {
            self.leap();
        }
        if self.rng.one_in(3) {
            let now_ms = self.clocks.elapsed_ms();
            let mut topic = self.topic.lock().expect("one at a time");
            let at = self.rng.below(topic.existing as u64) as usize;
            let log = &mut topic.logs[at];
            log.show(self.rng.below(4) as usize, now_ms);
            if self.rng.one_in(50) {
                topic.grow(now_ms);
            }
        }
    }

    /// Sets the clock of a process by hours, in a schedule in which that happens.
    pub(super) fn leap(&mut self) {
        if self.leaps {
            self.seen.leaps += 1;
            let hours = [-24, -5, -1, 1, 5, 24][self.rng.below(6) as usize];
            let process = self.rng.below(3) as usize;
            self.clocks.set(process, hours * 3_600_000 + self.rng.below(1_000) as i64);
            self.tell(|| format!("the clock of process {process} is set by {hours} h"));
        }
    }

    /// Sometimes the ledger does not answer for a while.
    pub(super) fn change_the_weather(&mut self) {
        let mut store = self.store.lock().expect("one at a time");
        let changes = self.rng.one_in(if store.away { 60 } else { 300 });
        let before = store.away;
        store.away = store.faulty && (store.away != changes);
        if before != store.away {
            self.tell(|| (if before { "the ledger answers" } else { "nobody answers" }).to_owned());
        }
        // The same for one process alone; the writers of the others carry on.
        if !store.faulty || store.cut_off.is_some() && self.rng.one_in(60) {
            store.cut_off = None;
        } else if self.rng.one_in(300) {
            store.cut_off = Some(self.rng.below(3) as usize);
        }
        let faulty = store.faulty;
        drop(store);
        if faulty {
            self.disturb_the_topic();
        }
    }

    /// Transactions begin and end, and partitions lose their leader for a while.
    fn disturb_the_topic(&mut self) {
        let now_ms = self.clocks.elapsed_ms();
        let topic = &mut *self.topic.lock().expect("one at a time");
        for (at, log) in topic.logs.iter_mut().enumerate() {
            if self.rng.one_in(if log.is_in_a_transaction() { 60 } else { 600 }) {
                let open = !log.is_in_a_transaction();
                log.set_transaction(open, now_ms);
                self.seen.transactions += u64::from(open);
            }
            if self.rng.one_in(if log.unserved { 60 } else { 600 }) {
                log.unserved = !log.unserved;
                self.seen.unserved += u64::from(log.unserved);
                if self.story {
                    println!("{now_ms:>6} ms: partition {at} unserved: {}", log.unserved);
                }
            }
        }
    }

    /// One process is killed or cut off. The others notice after a while, and carry on until then:
    /// complete epochs are committed, writer by writer, even beside the life that comes next.
    pub(super) fn lose_one(&mut self, run: SimRun) {
        self.seen.losses += 1;
        self.tell(|| "it loses a process".to_owned());
        run.lose(self.rng.below(run.processes() as u64) as usize);
        for _ in 0..self.rng.below(100) {
            self.step(&run);
        }
        if self.rng.one_in(2) {
            self.stale = Some(run);
        }
        self.seen.crashes += 1;
    }

    /// The database goes back to an earlier state. The instance that runs notices at its next
    /// commit, writer by writer; a writer all of whose commits are there carries on.
    pub(super) fn go_back(&mut self, run: SimRun, earlier: &Store) {
        self.seen.gone_back += 1;
        self.store.lock().expect("one at a time").go_back(earlier);
        self.tell(|| "the database goes back".to_owned());
        for _ in 0..self.rng.below(100) {
            self.pass_time();
            run.step(self.pick(&run));
            self.step_stale();
            if let Some(fault) = run.fault() {
                assert!(matches!(fault, Fault::GoneBack(_)), "{fault:?}");
            }
        }
        // It may learn of it only when the next life has begun.
        if run.fault().is_none() && self.rng.one_in(2) {
            self.stale = Some(run);
        }
    }
}
