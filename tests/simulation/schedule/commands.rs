//! What is done to the job between two lives, if it has stopped cleanly: `sessionizer forget` and
//! `sessionizer redrive`.

use sessionizer_core::event::Reason;
use sessionizer_core::visitor::Visitor;

use super::*;
use crate::topic;

impl World {
    /// Forgets a visitor or processes dead letters again, or neither, or both in any order. With a
    /// broken rule, this happens only if the rule is about it.
    pub(super) fn use_commands(&mut self) {
        if self.sabotage.is_some_and(|rule| !rule.is_of_commands()) {
            return;
        }
        for _ in 0..self.commands_rng.below(4) {
            match self.commands_rng.one_in(3) {
                true => self.forget(),
                false => self.redrive(),
            }
        }
    }

    /// On one host or on all; some visitors are nowhere.
    fn forget(&mut self) {
        let rng = &mut self.commands_rng;
        let name = format!("k{}", rng.below(topic::KEYS));
        let host = [Some("g"), Some("h"), Some(topic::host(&name)), None][rng.below(4) as usize];
        let (ip, host) = (topic::ip(&name).to_owned(), host.map(str::to_owned));
        let visitor = Visitor { ip, host };
        let records = self.store.lock().expect("one at a time").forget(&visitor);
        if let Some((records, open)) = records {
            self.seen.forgotten += records;
            self.seen.forgotten_open += open;
            self.tell(|| {
                format!("{visitor:?} is forgotten: {records} records, {open} of them open")
            });
        }
    }

    /// The same once more changes nothing.
    fn redrive(&mut self) {
        let rng = &mut self.commands_rng;
        let reasons = match rng.below(4) {
            0 => vec![Reason::Late],
            1 => vec![Reason::Future],
            _ => Reason::ALL.to_vec(),
        };
        let late = if rng.one_in(3) { Late::Drop } else { Late::Merge };
        // Sometimes the limit is raised; a year ahead is never an event.
        let rules = RecordRules { max_future_ms: MAX_FUTURE_MS * rng.between(1, 2) as i64, late };
        let twice = rng.one_in(2);
        let now_ms = self.clocks.wall_ms(0);
        let redrive = || self.store.lock().expect("one at a time").redrive(&reasons, rules, now_ms);
        let Some(merged) = redrive() else { return };
        if twice {
            assert_eq!(redrive(), Some(0), "the same dead letters are merged again");
        }
        self.seen.redriven += merged;
        self.tell(|| format!("{merged} dead letters are merged, {reasons:?}, late: {late:?}"));
    }
}
