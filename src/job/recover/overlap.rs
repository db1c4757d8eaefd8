//! Whether a first start on a table with rows would read events that are in those rows already.
//!
//! The offsets of the consumer group show this if the previous job committed them. Where it did
//! not, the first events that would be read do: one that is no later than the last event of the
//! newest row may be in the table.

use std::collections::BTreeMap;
use std::time::Duration;

use sessionizer_core::binding::Offset;
use sessionizer_core::event;
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::time::EventTime;

use crate::config::Config;
use crate::job::recover::beginning::{MAX_NAMED, NOTHING_CHANGED, PartitionStart};
use crate::kafka::{Range, StartAt, scan_for};
use crate::ledger::ExistingRows;

/// How many records of a partition are searched for events older than the newest row.
const LOOKED_AT: i64 = 1_000;
/// The same for all partitions together, but at least [`MIN_RECORDS_PER_PARTITION`] for each.
const MAX_RECORDS_READ: i64 = 100_000;
const MIN_RECORDS_PER_PARTITION: i64 = 10;
/// How long reading those records may take.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// The evidence that events after the beginning are already in the rows.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Overlap {
    /// The group has read beyond the position where reading begins.
    ReadBefore { committed: Offset },
    /// An event that is no later than the last event of the newest row.
    OldEvent { offset: Offset, time: EventTime },
}

/// Refuses to begin before the end of what the rows hold; returns a warning if that is accepted.
pub(super) fn refuse(
    config: &Config,
    group: &str,
    starts: &[PartitionStart],
    rows: &ExistingRows,
) -> Result<Option<String>, Fault> {
    let mut overlaps: BTreeMap<usize, Overlap> = BTreeMap::new();
    for (at, start) in starts.iter().enumerate() {
        if let Some(overlap) = overlap_with_group(start) {
            overlaps.insert(at, overlap);
        }
    }
    let has_exact_start = matches!(config.from, Some(StartAt::Group(_) | StartAt::Savepoint(_)));
    if overlaps.is_empty() && !has_exact_start {
        overlaps = overlap_with_events(config, starts, rows)?;
    }
    if overlaps.is_empty() {
        return Ok(None);
    }
    let start = |(at, overlap): (&usize, &Overlap)| {
        let (name, begin) = (starts[*at].name(), starts[*at].begin);
        match overlap {
            Overlap::ReadBefore { committed } => format!(
                "{name} would be read from offset {begin}, but the consumer group {group} has read \
                 up to {committed}"
            ),
            Overlap::OldEvent { offset, time } => {
                format!("{name} has at offset {offset} an event of {time}")
            }
        }
    };
    let ExistingRows { table, newest } = rows;
    let newest = newest.map_or(String::new(), |newest| {
        let last = newest.plus(-config.ledger.gap.millis());
        format!(" (the last event of the newest is of {last})")
    });
    let mut what =
        format!("the table {table} has rows{newest}, and reading would begin before their end:");
    let shown = overlaps.iter().take(MAX_NAMED).map(start);
    shown.for_each(|line| what.push_str(&format!("\n  {line}")));
    if overlaps.len() > MAX_NAMED {
        what.push_str(&format!("\n  and {} more", overlaps.len() - MAX_NAMED));
    }
    if config.accept_overlap {
        return Ok(Some(format!(
            "{what}\nGoing on, as --accept-overlap says: events may be counted twice"
        )));
    }
    let problem = format!("{what}\nTheir events would be counted twice");
    let remedy = "Begin where the job before has stopped (--from group, --from group:NAME), at a \
                  later time (--from TIME), with another table (--table), or empty this one. If no \
                  row is of those records, add --accept-overlap";
    Err(Fault::config(Message::new(problem).remedy(NOTHING_CHANGED, remedy)))
}

/// Whether a beginning is before the position that the group has read. If this program committed
/// the offset, the table may hold records beyond it.
fn overlap_with_group(start: &PartitionStart) -> Option<Overlap> {
    let committed = start.committed?.offset;
    (start.begin < committed.min(start.end)).then_some(Overlap::ReadBefore { committed })
}

/// Reads the first records of the partitions for which no group shows how far they were read.
fn overlap_with_events(
    config: &Config,
    starts: &[PartitionStart],
    rows: &ExistingRows,
) -> Result<BTreeMap<usize, Overlap>, Fault> {
    let mut overlaps = BTreeMap::new();
    let Some(newest) = rows.newest else { return Ok(overlaps) };
    let last_event = newest.plus(-config.ledger.gap.millis());
    let exact = |start: &PartitionStart| start.committed.is_some_and(|committed| !committed.ours);
    let unknown: Vec<usize> = (0..starts.len())
        .filter(|at| !exact(&starts[*at]) && starts[*at].begin < starts[*at].end)
        .collect();
    let each = MAX_RECORDS_READ / (unknown.len() as i64).max(1);
    let each = each.clamp(MIN_RECORDS_PER_PARTITION, LOOKED_AT);
    let ranges: Vec<Range> = unknown
        .iter()
        .map(|at| {
            let PartitionStart { topic, partition, begin, end, .. } = &starts[*at];
            let end = (*end).min(begin.plus(each));
            Range { topic: topic.clone(), partition: *partition, start: *begin, end }
        })
        .collect();
    scan_for(&config.kafka, &ranges, READ_TIMEOUT, |at, record| {
        let time = event::decode(record.payload).ok().map(|event| event.time);
        if let Some(time) = time.filter(|time| *time <= last_event) {
            let overlap = Overlap::OldEvent { offset: record.offset, time };
            overlaps.entry(unknown[at]).or_insert(overlap);
        }
        overlaps.len() < unknown.len()
    })?;
    Ok(overlaps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::GroupOffset;

    fn start(begin: i64, committed: Option<i64>) -> PartitionStart {
        let committed = committed.map(Offset::new);
        PartitionStart {
            topic: "t".to_owned(),
            partition: 3,
            oldest: Offset::new(5),
            end: Offset::new(20),
            committed: committed.map(|offset| GroupOffset { offset, ours: false }),
            begin: Offset::new(begin),
        }
    }

    #[test]
    fn a_beginning_before_what_a_group_has_read_overlaps() {
        let overlaps = |begin, committed| overlap_with_group(&start(begin, committed)).is_some();
        assert_eq!([9, 10, 11].map(|begin| overlaps(begin, Some(10))), [true, false, false]);
        assert!(!overlaps(5, None), "nobody has said how far it was read");
        assert!(!overlaps(20, Some(30)), "after the end, there is nothing to read twice");
        assert!(overlaps(19, Some(30)));
    }
}
