//! Rereads what a job has read of its topic: for `sessionizer audit` and `sessionizer compare`.

use std::io;
use std::time::Duration;

use indicatif::ProgressBar;
use sessionizer_core::binding::Offset;
use sessionizer_core::fault::Fault;

use crate::dataflow::ports::Record;
use crate::dataflow::run_state::RunState;
use crate::kafka::{Admin, KafkaConfig, Range, scan};
use crate::ui::bars::{bars, style};
use crate::ui::can_redraw;

/// How long to wait for brokers that do not answer.
const BROKER_TIMEOUT: Duration = Duration::from_secs(60);

/// A range of offsets that the job has read, and what Kafka has of its partition now.
pub struct Available<'a> {
    pub range: &'a Range,
    pub oldest: Offset,
    pub end: Offset,
}

impl Available<'_> {
    /// Whether Kafka still has all offsets of the range.
    pub fn is_complete(&self) -> bool {
        self.oldest <= self.range.start && self.range.end <= self.end
    }

    /// The part of the range that Kafka still has; it may be empty.
    pub fn part(&self) -> Range {
        Range {
            start: self.range.start.max(self.oldest),
            end: self.range.end.min(self.end),
            ..self.range.clone()
        }
    }
}

/// Asks Kafka what it has of each range, and waits for brokers that do not answer yet.
pub fn available<'a>(
    kafka: &KafkaConfig,
    ranges: &'a [Range],
    run_state: &RunState,
) -> Result<Vec<Available<'a>>, Fault> {
    let admin = Admin::new(kafka)?;
    admin.topics(BROKER_TIMEOUT, || run_state.ending())?;
    let ask = |range: &'a Range| {
        let (oldest, end) = admin.offsets(&range.topic, range.partition)?;
        Ok(Available { range, oldest, end })
    };
    ranges.iter().map(ask).collect()
}

/// The number of offsets in the ranges, which is at least the number of records.
pub fn count(ranges: &[Range]) -> u64 {
    ranges.iter().map(|range| range.end.since(range.start).max(0) as u64).sum()
}

/// Reads all ranges, each in order, and shows the progress on a terminal. `take` gets the index of
/// the range and the record. Returns how many records were read: `None` if the run ended before.
pub fn read(
    kafka: &KafkaConfig,
    ranges: &[Range],
    run_state: &RunState,
    mut take: impl FnMut(usize, &Record<'_>),
) -> Result<Option<u64>, Fault> {
    let mut records = 0;
    if ranges.is_empty() {
        return Ok(Some(records));
    }
    let bar = match can_redraw(&io::stderr()) {
        true => bars()
            .add(ProgressBar::new(count(ranges)))
            .with_style(style("{bar:24} {percent}% of {human_len} records, {rate}, {eta} to go")),
        false => ProgressBar::hidden(),
    };
    scan(
        kafka,
        ranges,
        || run_state.ending(),
        |at, record| {
            records += 1;
            if records.is_multiple_of(4_096) {
                bar.set_position(records);
            }
            take(at, &record);
            !run_state.ending()
        },
    )?;
    bar.finish_and_clear();
    Ok((!run_state.ending()).then_some(records))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_complete_if_kafka_has_its_first_and_its_last_offset() {
        let range = |start, end| Range {
            topic: "t".to_owned(),
            partition: 0,
            start: Offset::new(start),
            end: Offset::new(end),
        };
        let read = range(10, 20);
        for (oldest, end, complete, part) in [
            (10, 20, true, range(10, 20)),
            (0, 30, true, range(10, 20)),
            (11, 20, false, range(11, 20)),
            (10, 19, false, range(10, 19)),
            (25, 30, false, range(25, 20)),
        ] {
            let (oldest, end) = (Offset::new(oldest), Offset::new(end));
            let available = Available { range: &read, oldest, end };
            assert_eq!(available.is_complete(), complete, "{oldest} to {end}");
            assert_eq!(available.part(), part, "{oldest} to {end}");
        }
        assert_eq!(count(&[range(10, 20), range(25, 20), range(0, 1)]), 11);
    }
}
