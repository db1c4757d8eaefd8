//! How lives end: bounded runs, clean stops, and the last life, in which everything becomes
//! durable.

use sessionizer::dataflow::messages::Change;

use super::*;

impl World {
    /// Sometimes true, once it is durable somewhere that partitions have ended in this life.
    pub(super) fn is_ending(&mut self, run: &SimRun) -> bool {
        let store = self.store.lock().expect("one at a time");
        let ends = store.has_ends_since(run.plan.first_epoch);
        ends && self.rng.one_in(if store.is_drained() { 2 } else { 15 })
    }

    /// A bounded run that nobody disturbs.
    pub(super) fn drain(&mut self, run: &SimRun) {
        for _ in 0..PATIENCE_STEPS {
            self.step(run);
            if run.ended() {
                return self.check_drained(run);
            }
        }
        panic!("a bounded run does not end");
    }

    /// A bounded run has read what was there at its start, closed it all, and left nothing to read
    /// again.
    pub(super) fn check_drained(&mut self, run: &SimRun) {
        self.seen.drains += 1;
        let mut store = self.store.lock().expect("one at a time");
        let until = |partition| {
            let mut parts = run.plan.partitions.iter();
            let part = parts.find(|part| part.start.partition == partition);
            part.and_then(|part| part.until).unwrap_or(Offset::ZERO)
        };
        assert!(store.is_bound_to(until), "a bounded run has not read what was there");
        assert!(!store.is_bound_behind(until), "a bounded run has read what was not there");
        assert_eq!(store.rows(), store.answer(), "a bounded run has not closed everything");
        assert_eq!(store.start().replay, [], "a bounded run leaves nothing to read again");
    }

    /// A clean stop: everything that was read is committed, and nothing has to be read again.
    pub(super) fn stop(&mut self, run: &SimRun) {
        self.seen.stops += 1;
        // One process is asked. The others learn it from each other, some steps later.
        let asked = self.rng.below(run.processes() as u64) as usize;
        run.controls[asked].request_stop();
        for _ in 0..PATIENCE_STEPS {
            self.change_the_weather();
            let running = (0..run.workers()).filter(|worker| run.step(*worker)).count();
            self.step_stale();
            self.check_fault(run);
            let never_bound = run.controls.iter().find(|run_state| !run_state.stopping());
            if let Some(run_state) = never_bound.filter(|_| self.rng.one_in(4)) {
                run_state.request_stop();
            }
            if run.controls.iter().any(|run_state| run_state.abandoned()) && self.rng.one_in(4) {
                return;
            }
            if running == 0 {
                let durable = self.store.lock().expect("one at a time").start();
                assert_eq!(durable.replay, [], "a clean stop leaves nothing to read again");
                self.check_changes();
                return;
            }
        }
        panic!("a clean stop does not end");
    }

    /// The table at the start of a life plus all changes emitted since is the table.
    fn check_changes(&self) {
        let mut rows = self.rows.clone();
        for (_, change) in self.changes.lock().expect("one at a time").iter() {
            let Change { key, span, diff } = change;
            *rows.entry((key.clone(), *span)).or_default() += diff;
        }
        rows.retain(|_, count| *count != 0);
        let table = self.store.lock().expect("one at a time").table();
        assert_eq!(rows, table, "the changes that left are not those of the table");
        if let Some(statistics) = &self.statistics {
            statistics.check_the_end();
        }
    }

    /// Everything arrives, nothing fails, and then nobody sends any more.
    pub(super) fn last_life(&mut self) {
        if self.rng.one_in(4) {
            self.let_everything_come();
            let run = self.start(true);
            self.drain(&run);
            let store = self.store.lock().expect("one at a time");
            assert_eq!(Some(store.rows()), store.whole_answer());
            return;
        }
        let run = self.start(false);
        for _ in 0..self.rng.below(300) {
            self.step(&run);
        }
        self.leap();
        self.let_everything_come();
        self.tell(|| "the last disturbance is over".to_owned());
        self.settle(&run);
        self.seen.pauses +=
            run.controls.iter().map(|run_state| run_state.memory.pauses()).sum::<u64>();
        self.tell(|| "everything is durable".to_owned());
        self.go_on(&run);
        self.stop(&run);
        let store = self.store.lock().expect("one at a time");
        let (rows, want) = store.settled().expect("all of the topic is bound");
        assert_eq!(rows, want);
    }

    /// Liveness: in a quiet world everything there is becomes durable, and sessions close, within a
    /// bounded number of steps.
    fn settle(&mut self, run: &SimRun) {
        let (mut commits, mut settled) = (0, None);
        // One record at a time takes longer.
        let most = if self.memory == 1 { 10 * QUIET_STEPS } else { QUIET_STEPS };
        for steps in 0..most {
            self.step_quietly(run);
            let store = self.store.lock().expect("one at a time");
            // Only a commit changes the table, what is bound, or what was dropped.
            if store.commits != commits {
                (commits, settled) = (store.commits, store.settled());
            }
            if settled.as_ref().is_some_and(|(rows, want)| rows == want) {
                self.seen.quiet_steps = steps;
                return;
            }
        }
        panic!("a quiet world does not become the batch answer: {settled:?}");
    }

    /// Liveness: epochs advance, and become durable, at the speed at which time passes.
    fn go_on(&mut self, run: &SimRun) {
        let first = run.plan.first_epoch;
        let durable = |world: &World| world.store.lock().expect("one at a time").durable_epoch();
        // Until the last epochs are as far behind as they will stay, with that many workers.
        let began = self.clocks.elapsed_ms();
        while self.clocks.elapsed_ms() < began + GO_ON_MS / 2 {
            self.step_quietly(run);
        }
        let (began, before) = (self.clocks.elapsed_ms(), durable(self).max(first));
        while self.clocks.elapsed_ms() < began + GO_ON_MS {
            self.step_quietly(run);
        }
        let (passed, made) = (self.clocks.elapsed_ms() - began, durable(self) - before);
        // All follow the fastest of their clocks.
        let least = passed * (100 + self.fastest_percent) / 100 * 4 / 5;
        assert!(made >= least, "in {passed} ms of quiet, {made} ms became durable, not {least}");
        // The fastest clock is half as fast again as time; a partition that appears ends an epoch.
        let (passed, made) = (self.clocks.elapsed_ms() - self.began_ms, durable(self) - first);
        assert!(made <= passed * 3 / 2 + 10, "in {passed} ms of a life, {made} ms became durable");
    }

    /// Time passes and somebody moves; nothing else happens.
    fn step_quietly(&mut self, run: &SimRun) {
        self.change_the_weather();
        self.clocks.pass(self.rng.below(4));
        let worker = self.rng.below(run.workers() as u64) as usize;
        run.step(worker);
        self.step_stale();
        self.check_fault(run);
    }

    fn let_everything_come(&mut self) {
        self.store.lock().expect("one at a time").faulty = false;
        let now_ms = self.clocks.elapsed_ms();
        let mut topic = self.topic.lock().expect("one at a time");
        (topic.existing, topic.calm) = (topic.logs.len(), true);
        for log in &mut topic.logs {
            log.unserved = false;
            log.set_transaction(false, now_ms);
            log.show(usize::MAX / 2, now_ms);
        }
    }
}
