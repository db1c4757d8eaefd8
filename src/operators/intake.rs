//! One record of a partition, in one epoch: an arrival, or a dead letter. Pure.
//!
//! What becomes of a record depends on the record and on what its epoch is bound with, and on
//! nothing else (I2): an epoch that is read again comes out the same.

use super::parcel::Packer;
use super::{DeadLetter, Record, Suspect};
use crate::binding::Partition;
use crate::event::{self, Event, Reason, Rejected};
use crate::key::{self, Key, Shard, stable_hash};
use crate::time::{Epoch, EventTime, Gap};
use crate::watermark::PartitionClock;

/// Takes in records of one partition, in one epoch.
pub struct Intake<'a> {
    pub topic: &'a str,
    pub partition: Partition,
    pub shards: u32,
    pub epoch: Epoch,
    /// A later event is of the future.
    pub latest: EventTime,
    pub gap: Gap,
    /// An event whose session could end before this may be too late.
    pub suspect_before: EventTime,
    pub dead_letter_bytes: usize,
}

/// Where records go.
pub struct Taken<'a> {
    pub arrivals: &'a mut Packer,
    pub suspects: &'a mut Vec<Suspect>,
    pub dead_letters: &'a mut Vec<DeadLetter>,
}

impl Intake<'_> {
    /// Decodes a record and sends it where it belongs; `scratch` is reused from call to call. Gives
    /// how many bytes that takes.
    pub fn take(
        &self,
        record: &Record<'_>,
        clock: &mut PartitionClock,
        scratch: &mut Vec<u8>,
        out: &mut Taken<'_>,
    ) -> u64 {
        let event = match self.decode(record) {
            Ok(event) => event,
            Err(rejected) => {
                clock.dead_letter(self.epoch);
                // It has no key: it belongs to the shard of its place.
                let (number, offset) = (self.partition.number, record.offset);
                let shard = Shard::of_record(self.topic, number, offset, self.shards);
                let letter = self.dead_letter(shard, record, rejected);
                let bytes = letter.bytes();
                out.dead_letters.push(letter);
                return bytes;
            }
        };
        clock.event(event.time, self.epoch);
        scratch.clear();
        key::encode(&event.ip, &event.host, scratch);
        let hash = stable_hash(scratch);
        let mut bytes = 0;
        if self.gap.end_after(event.time) < self.suspect_before {
            let rejected = Rejected { reason: Reason::Late, detail: String::new() };
            // It has a key, and is dropped and counted where the sessions of the key are.
            let letter = self.dead_letter(Shard::of(hash, self.shards), record, rejected);
            let (key, time) = (Key::from_encoded(scratch), event.time);
            let suspect = Suspect { hash, key, time, letter };
            bytes = suspect.bytes();
            out.suspects.push(suspect);
        }
        bytes + out.arrivals.add(hash, scratch, event.time) as u64
    }

    /// Decodes a record; an event too far in the future is none.
    fn decode<'r>(&self, record: &Record<'r>) -> Result<Event<'r>, Rejected> {
        let event = event::decode(record.payload)?;
        if event.time > self.latest {
            let detail = format!(
                "event_time {} is later than {}, the clock of the job plus --max-future",
                event.time, self.latest
            );
            return Err(Rejected { reason: Reason::Future, detail });
        }
        Ok(event)
    }

    fn dead_letter(&self, shard: Shard, record: &Record<'_>, rejected: Rejected) -> DeadLetter {
        let most = self.dead_letter_bytes;
        DeadLetter {
            shard,
            partition: self.partition,
            offset: record.offset,
            reason: rejected.reason,
            detail: rejected.detail,
            payload: record.payload.map(|bytes| bytes[..bytes.len().min(most)].to_vec()),
            payload_bytes: record.payload.map_or(0, |bytes| bytes.len() as u64),
        }
    }
}
