//! The inputs of the window and of the detectors, kept until their epoch is complete.
//!
//! Epochs are grouped by ticks, which are the same for every worker: what is complete is then
//! complete everywhere.

use std::collections::BTreeMap;
use std::slice::IterMut;

use sessionizer_core::anomaly::OpenReport;
use sessionizer_core::time::{Epoch, EventTime, tick};
use timely::dataflow::operators::{Capability, InputCapability};
use timely::progress::frontier::MutableAntichain;

use crate::dataflow::statistics::rows::WindowInput;
use crate::dataflow::statistics::sums::{Host, Row};
use crate::dataflow::statistics::watermarks::TableWatermark;

/// What has arrived of the epochs that are not complete, for an operator with this many outputs.
pub struct PendingEpochs<const OUTPUTS: usize> {
    every_ms: u64,
    pending: BTreeMap<Epoch, EpochInput>,
}

/// What has arrived of an epoch.
#[derive(Default)]
pub struct EpochInput {
    /// One for each output.
    capabilities: Vec<Capability<Epoch>>,
    pub rows: Vec<Row>,
    /// What has become of the long sessions that are or were open.
    pub open: Vec<(Host, OpenReport)>,
    /// No session that closed before the start ended later than this.
    pub horizon: Option<EventTime>,
    /// Whether everything that the table had at the start has been sent (true), or could not be
    /// read (false).
    pub past: Option<bool>,
    /// Up to which event time the table is complete.
    pub watermark: Option<TableWatermark>,
}

/// The complete epochs of a tick.
pub struct CompleteTick<const OUTPUTS: usize> {
    /// The last of them.
    pub epoch: Epoch,
    /// Those of the last epoch, one for each output.
    pub capabilities: [Capability<Epoch>; OUTPUTS],
    /// In order.
    pub epochs: Vec<(Epoch, EpochInput)>,
}

/// All epochs before the one returned are complete, and so are their ticks.
pub fn complete_before(frontier: Option<Epoch>, every_ms: u64) -> Epoch {
    frontier.map_or(Epoch::MAX, |frontier| tick(frontier, every_ms))
}

impl<const OUTPUTS: usize> PendingEpochs<OUTPUTS> {
    /// None, with ticks of `every_ms`.
    pub fn new(every_ms: u64) -> Self {
        PendingEpochs { every_ms, pending: BTreeMap::new() }
    }

    /// Takes in inputs that have arrived together.
    pub fn add_inputs(
        &mut self,
        cap: &InputCapability<Epoch>,
        batches: IterMut<'_, Vec<WindowInput>>,
    ) {
        let of_epoch = self.of_epoch(cap);
        for input in batches.flat_map(|batch| batch.drain(..)) {
            match input {
                WindowInput::Row(row) => of_epoch.rows.push(row),
                WindowInput::Open(host, report) => of_epoch.open.push((host, report)),
                WindowInput::Horizon { horizon, .. } => {
                    of_epoch.horizon = of_epoch.horizon.max(Some(horizon));
                }
                WindowInput::Past { whole, .. } => of_epoch.past = Some(whole),
            }
        }
    }

    /// Takes in the watermark of an epoch.
    pub fn add_watermarks(
        &mut self,
        cap: &InputCapability<Epoch>,
        batches: IterMut<'_, Vec<TableWatermark>>,
    ) {
        let of_epoch = self.of_epoch(cap);
        let all = of_epoch.watermark.into_iter().chain(batches.flat_map(|batch| batch.drain(..)));
        of_epoch.watermark = all.reduce(TableWatermark::max);
    }

    /// Removes the ticks that are complete, given the frontiers of the inputs, and returns them in
    /// order.
    pub fn complete(
        &mut self,
        frontiers: &[MutableAntichain<Epoch>],
    ) -> Vec<CompleteTick<OUTPUTS>> {
        let frontier = frontiers.iter().filter_map(|f| f.frontier().first().copied()).min();
        let incomplete = self.pending.split_off(&complete_before(frontier, self.every_ms));
        let mut complete = std::mem::replace(&mut self.pending, incomplete);
        let mut ticks = Vec::new();
        while let Some((first, _)) = complete.first_key_value() {
            let later = complete.split_off(&(tick(*first, self.every_ms) + self.every_ms));
            let mut epochs: Vec<(Epoch, EpochInput)> =
                std::mem::replace(&mut complete, later).into_iter().collect();
            let (epoch, last) = epochs.last_mut().expect("it has a first");
            let capabilities = std::mem::take(&mut last.capabilities);
            let capabilities = capabilities.try_into().expect("one for each output");
            ticks.push(CompleteTick { epoch: *epoch, capabilities, epochs });
        }
        ticks
    }

    /// The entry of a message's epoch. It keeps the capabilities of the first message.
    fn of_epoch(&mut self, cap: &InputCapability<Epoch>) -> &mut EpochInput {
        let epoch = *cap.least().expect("inputs travel under an epoch");
        let of_epoch = self.pending.entry(epoch).or_default();
        if of_epoch.capabilities.is_empty() {
            let retain = |port| cap.retain_least(port).expect("a message's stamp holds its epoch");
            of_epoch.capabilities.extend((0..OUTPUTS).map(retain));
        }
        of_epoch
    }
}
