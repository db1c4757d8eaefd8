//! How far the watermark can be, from what one source knows.

use crate::binding::{Binding, Status};
use crate::time::{Epoch, EventTime};

/// An upper bound of the watermark, from what one source knows. Other sources contribute to it,
/// too.
///
/// `W(e)` is at most the promise of any partition that is active at `e`, unless it was already
/// higher. So while a source reads an active partition, its own promises bound `W`. While it reads
/// none, only what the sessions have computed since does.
#[derive(Clone, Debug)]
pub struct WatermarkBound {
    known: EventTime,
    /// The last epoch at which no partition of this source was active, until the watermark up to
    /// that epoch is known.
    blind_at: Option<Epoch>,
}

impl WatermarkBound {
    /// Starts with the known `watermark`.
    pub fn new(watermark: EventTime) -> Self {
        WatermarkBound { known: watermark, blind_at: None }
    }

    /// Notes the watermark of a replayed epoch that has just been cut.
    pub fn set(&mut self, watermark: EventTime) {
        self.known = watermark;
    }

    /// Notes that `epoch` is cut, with the last bindings of this source's partitions.
    pub fn cut<'a>(&mut self, epoch: Epoch, own: impl Iterator<Item = &'a Binding>) {
        let active = own.filter(|binding| binding.status == Status::Active);
        match active.map(|binding| binding.promise).min() {
            Some(promise) => self.known = self.known.max(promise),
            None => self.blind_at = Some(epoch),
        }
    }

    /// Notes that the watermark has reached `watermark` or further, in all epochs before `open`
    /// (`None`: in all epochs that are cut).
    pub fn learn(&mut self, open: Option<Epoch>, watermark: Option<EventTime>) {
        if self.blind_at.is_some_and(|blind| open.is_none_or(|open| blind < open)) {
            self.blind_at = None;
            self.known = self.known.max(watermark.unwrap_or(EventTime::NEVER));
        }
    }

    /// The watermark of the last cut epoch is not later than this.
    pub fn at_most(&self) -> EventTime {
        if self.blind_at.is_some() { EventTime::FOREVER } else { self.known }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binding::{Offset, Partition};

    fn at(millis: i64) -> EventTime {
        EventTime::from_millis(millis)
    }

    fn binding(number: i32, promise: i64, status: Status, quiet_since: Epoch) -> Binding {
        let initial = Binding::initial(Partition { topic: 0, number }, Offset::ZERO);
        Binding { promise: at(promise), status, quiet_since, ..initial }
    }

    #[test]
    fn a_source_bounds_the_watermark_by_its_own_promises_while_it_has_any() {
        let active = binding(0, 50, Status::Active, 0);
        let idle = binding(1, 900, Status::Idle, 7);
        let mut bound = WatermarkBound::new(at(10));
        assert_eq!(bound.at_most(), at(10));
        bound.cut(8, [&active, &idle].into_iter());
        assert_eq!(bound.at_most(), at(50), "an active partition holds it");
        bound.cut(9, [&idle].into_iter());
        assert_eq!(bound.at_most(), EventTime::FOREVER, "others move it, nobody knows how far");
        bound.cut(10, [&active].into_iter());
        bound.learn(Some(9), Some(at(700)));
        assert_eq!(bound.at_most(), EventTime::FOREVER, "what became of epoch 9 is not known yet");
        bound.learn(Some(10), Some(at(800)));
        assert_eq!(bound.at_most(), at(800));
        bound.cut(11, [&active].into_iter());
        assert_eq!(bound.at_most(), at(800), "the watermark never falls");
    }

    #[test]
    fn the_watermark_of_a_replayed_epoch_is_known() {
        let mut bound = WatermarkBound::new(at(10));
        bound.set(at(70));
        assert_eq!(bound.at_most(), at(70));
    }
}
