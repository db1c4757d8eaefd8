//! What has arrived of each epoch, until it is handed to the writers: epochs that are incomplete,
//! and complete ones that are gathered.

use std::collections::BTreeMap;

use sessionizer_core::time::{Epoch, tick};
use timely::dataflow::operators::{Capability, InputCapability};

use crate::dataflow::EPOCHS_IN_FLIGHT;
use crate::dataflow::commit::writer::WriterEpoch;
use crate::dataflow::messages::{DeadLetter, EpochMeta, ShardOutput};

/// One for each output.
pub(super) type Capabilities = [Capability<Epoch>; 2];

/// What has arrived, by epoch.
#[derive(Default)]
pub(super) struct Stash {
    epochs: BTreeMap<Epoch, EpochStash>,
}

/// What has arrived of an epoch.
#[derive(Default)]
pub(super) struct EpochStash {
    capabilities: Option<Capabilities>,
    pub(super) outputs: Vec<ShardOutput>,
    pub(super) meta: Option<EpochMeta>,
    pub(super) dead_letters: Vec<DeadLetter>,
}

impl Stash {
    /// The entry of a message's epoch. It keeps the capabilities of the first message.
    pub(super) fn of_epoch(&mut self, cap: &InputCapability<Epoch>) -> &mut EpochStash {
        let epoch = *cap.least().expect("messages travel under an epoch");
        let of_epoch = self.epochs.entry(epoch).or_default();
        let retain = |port| cap.retain_least(port).expect("a message's stamp holds its epoch");
        of_epoch.capabilities.get_or_insert_with(|| [0, 1].map(retain));
        of_epoch
    }

    /// Whether the epochs before `frontier`, which are complete, wait for later ones of the same
    /// tick.
    pub(super) fn waits(&self, frontier: Epoch, tick_ms: u64) -> bool {
        let complete = self.epochs.range(..frontier);
        let mut epochs = complete.clone().map(|(epoch, _)| *epoch);
        let same_tick = |first| tick(first, tick_ms) == tick(frontier, tick_ms);
        epochs.next().is_some_and(same_tick)
            && epochs.count() + 1 < EPOCHS_IN_FLIGHT / 2
            && complete.into_iter().any(|(_, of_epoch)| of_epoch.has_rows())
    }

    /// Removes the epochs before `frontier`.
    pub(super) fn take_before(&mut self, frontier: Epoch) -> BTreeMap<Epoch, EpochStash> {
        let later = self.epochs.split_off(&frontier);
        std::mem::replace(&mut self.epochs, later)
    }
}

impl EpochStash {
    fn has_rows(&self) -> bool {
        self.outputs.iter().any(|output| !output.closed.is_empty())
    }

    /// The parts of these writers, out of `writers`, and the capabilities to keep until each part
    /// is durable.
    pub(super) fn split(
        self,
        epoch: Epoch,
        hosted: impl Iterator<Item = u32>,
        writers: u32,
    ) -> (Capabilities, BTreeMap<u32, WriterEpoch>) {
        let meta = self.meta.expect("every epoch has its meta on every worker");
        let capabilities = self.capabilities.expect("a stash begins with a message");
        let part = |writer| {
            let meta = meta.clone();
            let (outputs, dead_letters) = (Vec::new(), Vec::new());
            (writer, WriterEpoch { epoch, meta, outputs, dead_letters })
        };
        let mut parts: BTreeMap<u32, WriterEpoch> = hosted.map(part).collect();
        for output in self.outputs {
            let part = parts.get_mut(&output.shard.writer(writers)).expect("routed to its writer");
            part.outputs.push(output);
        }
        for letter in self.dead_letters {
            let part = parts.get_mut(&letter.shard.writer(writers)).expect("routed to its writer");
            part.dead_letters.push(letter);
        }
        (capabilities, parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sessionizer_core::key::{Key, Shard};
    use sessionizer_core::session::{Closed, Span};
    use sessionizer_core::time::EventTime;

    const TICK_MS: u64 = 1_000;

    /// Whether these complete epochs wait; each comes with whether it has rows.
    fn wait(complete: &[(Epoch, bool)], frontier: Epoch) -> bool {
        let of_epoch = |rows: &bool| {
            let span = Span::event(EventTime::from_millis(0));
            let closed = Closed { key: Key::new("ip", "host"), span, late: false };
            let closed = rows.then_some(closed).into_iter().collect();
            let output = ShardOutput {
                shard: Shard(0),
                closed,
                dropped: Vec::new(),
                open_records: 1,
                snapshot: None,
            };
            EpochStash { outputs: vec![output], ..EpochStash::default() }
        };
        let epochs = complete.iter().map(|(epoch, rows)| (*epoch, of_epoch(rows))).collect();
        Stash { epochs }.waits(frontier, TICK_MS)
    }

    #[test]
    fn short_epochs_wait_until_their_tick_has_passed() {
        assert!(wait(&[(5_000, true)], 5_250));
        assert!(wait(&[(5_000, true), (5_250, true), (5_500, false)], 5_750));
        assert!(!wait(&[(5_000, true), (5_250, true)], 6_000));
        assert!(!wait(&[(5_750, true)], 6_000));
        assert!(!wait(&[(5_000, true)], Epoch::MAX), "nothing comes after the last");
        assert!(!wait(&[], 5_000));
    }

    #[test]
    fn epochs_without_rows_do_not_wait_for_rows() {
        assert!(!wait(&[(5_000, false), (5_250, false)], 5_500));
        assert!(wait(&[(5_000, false), (5_250, true)], 5_500));
    }

    #[test]
    fn those_that_wait_are_fewer_than_half_of_what_may_be_in_flight() {
        let epochs = |count: u64| (0..count).map(|at| (5_000 + at, true)).collect::<Vec<_>>();
        let half = EPOCHS_IN_FLIGHT as u64 / 2;
        assert!(wait(&epochs(half - 1), 5_900));
        assert!(!wait(&epochs(half), 5_900));
    }
}
