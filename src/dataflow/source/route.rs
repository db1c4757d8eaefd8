//! Turns one record of a partition, in one epoch, into an arrival or a dead letter. Pure.
//!
//! What becomes of a record depends only on the record and on what its epoch is bound with (I2), so
//! a replayed epoch comes out the same.

use sessionizer_core::binding::Partition;
use sessionizer_core::event;
use sessionizer_core::event::{Event, Reason, Rejected};
use sessionizer_core::key;
use sessionizer_core::key::{Key, Shard, stable_hash};
use sessionizer_core::time::{Epoch, EventTime, Gap};
use sessionizer_core::watermark::WatermarkGenerator;

use crate::dataflow::messages::{DeadLetter, Suspect};
use crate::dataflow::ports::Record;
use crate::dataflow::span_batch::SpanBatchBuilder;

/// The longest detail of a dead letter, in bytes: a decoder may repeat the whole payload.
const DETAIL_BYTES: usize = 2_000;

/// Routes records of one partition, in one epoch.
pub struct Router<'a> {
    pub topic: &'a str,
    pub partition: Partition,
    pub shards: u32,
    pub epoch: Epoch,
    /// An event later than this is too far in the future.
    pub latest: EventTime,
    pub gap: Gap,
    /// An event whose session could end before this may be late.
    pub suspect_before: EventTime,
    pub dead_letter_bytes: usize,
}

/// Where records go.
pub struct Routed<'a> {
    pub arrivals: &'a mut SpanBatchBuilder,
    pub suspects: &'a mut Vec<Suspect>,
    pub dead_letters: &'a mut Vec<DeadLetter>,
}

impl Router<'_> {
    /// Decodes a record and sends it where it belongs. `scratch` is reused from call to call.
    /// Returns how many bytes of memory that takes.
    pub fn take(
        &self,
        record: &Record<'_>,
        generator: &mut WatermarkGenerator,
        scratch: &mut Vec<u8>,
        out: &mut Routed<'_>,
    ) -> u64 {
        let event = match self.decode(record) {
            Ok(event) => event,
            Err(rejected) => {
                generator.dead_letter(self.epoch);
                // It has no key, so its position in Kafka decides its shard.
                let (number, offset) = (self.partition.number, record.offset);
                let shard = Shard::of_record(self.topic, number, offset, self.shards);
                let letter = self.dead_letter(shard, record, rejected);
                let bytes = letter.bytes();
                out.dead_letters.push(letter);
                return bytes;
            }
        };
        generator.event(event.time, self.epoch);
        scratch.clear();
        key::encode(&event.ip, &event.host, scratch);
        let hash = stable_hash(scratch);
        let mut bytes = 0;
        if self.gap.end_after(event.time) < self.suspect_before {
            let rejected = Rejected { reason: Reason::Late, detail: String::new() };
            // It has a key, so it is dropped and counted where the sessions of that key are.
            let letter = self.dead_letter(Shard::of(hash, self.shards), record, rejected);
            let (key, time) = (Key::from_encoded(scratch), event.time);
            let suspect = Suspect { hash, key, time, letter };
            bytes = suspect.bytes();
            out.suspects.push(suspect);
        }
        bytes + out.arrivals.add(hash, scratch, event.time) as u64
    }

    /// Decodes a record; rejects an event too far in the future.
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
        let mut detail = rejected.detail;
        if detail.len() > DETAIL_BYTES {
            let whole = |at: &usize| detail.is_char_boundary(*at);
            let end = (0..=DETAIL_BYTES).rev().find(whole).unwrap_or(0);
            detail = detail[..end].to_owned();
        }
        DeadLetter {
            shard,
            partition: self.partition,
            offset: record.offset,
            reason: rejected.reason,
            detail,
            payload: record.payload.map(|bytes| bytes[..bytes.len().min(most)].to_vec()),
            payload_bytes: record.payload.map_or(0, |bytes| bytes.len() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sessionizer_core::binding::{Binding, Offset};
    use sessionizer_core::watermark::WatermarkConfig;

    #[test]
    fn a_dead_letter_takes_little_memory_however_long_its_payload_is() {
        let partition = Partition { topic: 0, number: 3 };
        let gap = Gap::from_millis(300_000).expect("valid");
        let router = Router {
            topic: "t",
            partition,
            shards: 128,
            epoch: 7,
            latest: EventTime::FOREVER,
            gap,
            suspect_before: EventTime::NEVER,
            dead_letter_bytes: 4_096,
        };
        let config = WatermarkConfig { out_of_orderness_ms: 0, idle_timeout_ms: 1 };
        let mut generator =
            WatermarkGenerator::resume(config, Binding::initial(partition, Offset::ZERO), 7);
        let (mut builder, mut suspects, mut letters) =
            (SpanBatchBuilder::new(gap, 128, 1), Vec::new(), Vec::new());
        // JSON, but not an object: the decoder's message repeats it.
        let payload = format!("\"{}\"", "ü".repeat(100_000));
        let record = Record { offset: Offset::new(5), payload: Some(payload.as_bytes()) };
        let mut taken =
            Routed { arrivals: &mut builder, suspects: &mut suspects, dead_letters: &mut letters };
        let bytes = router.take(&record, &mut generator, &mut Vec::new(), &mut taken);
        assert!(bytes < 8_000, "{bytes} bytes");
        let letter = &letters[0];
        assert_eq!((letter.bytes(), letter.payload_bytes), (bytes, 200_002));
        assert_eq!(letter.payload.as_deref(), Some(&payload.as_bytes()[..4_096]));
        assert!(letter.detail.starts_with("invalid type: string"), "{}", letter.detail);
    }
}
