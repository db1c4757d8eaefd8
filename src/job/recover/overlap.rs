//! Whether a first start on a table with rows would read events that are in those rows already.
//!
//! The offsets of the consumer group show this if the previous job committed them. Where it did
//! not, the first events that would be read do: one that is no later than the last event of the
//! newest row may be in the table.

use std::collections::BTreeMap;
use std::time::Duration;

use sessionizer_core::binding::Offset;
use sessionizer_core::event;
use sessionizer_core::fault::Fault;
use sessionizer_core::time::EventTime;

use crate::config::Config;
use crate::job::recover::beginning::{NAMED, Place};
use crate::kafka::{Range, StartAt, scan_for};
use crate::ledger::Rows;

/// How many records of a partition are searched for events older than the newest row.
const LOOKED_AT: i64 = 1_000;
/// The same for all partitions together, but at least [`LOOKED_AT_LEAST`] for each.
const LOOKED_AT_IN_ALL: i64 = 100_000;
const LOOKED_AT_LEAST: i64 = 10;
/// How long reading those records may take.
const LOOK_PATIENCE: Duration = Duration::from_secs(20);
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
    places: &[Place],
    rows: &Rows,
) -> Result<Option<String>, Fault> {
    let mut overlaps: BTreeMap<usize, Overlap> = BTreeMap::new();
    for (at, place) in places.iter().enumerate() {
        if let Some(overlap) = held_against_group(place) {
            overlaps.insert(at, overlap);
        }
    }
    let told = matches!(config.from, Some(StartAt::Group(_) | StartAt::Savepoint(_)));
    if overlaps.is_empty() && !told {
        overlaps = held_against_events(config, places, rows)?;
    }
    if overlaps.is_empty() {
        return Ok(None);
    }
    let place = |(at, overlap): (&usize, &Overlap)| {
        let (name, begin) = (places[*at].name(), places[*at].begin);
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
    let Rows { table, newest } = rows;
    let newest = newest.map_or(String::new(), |newest| {
        let last = newest.plus(-config.ledger.gap.millis());
        format!(" (the last event of the newest is of {last})")
    });
    let mut what =
        format!("the table {table} has rows{newest}, and reading would begin before their end:");
    let shown = overlaps.iter().take(NAMED).map(place);
    shown.for_each(|line| what.push_str(&format!("\n  {line}")));
    if overlaps.len() > NAMED {
        what.push_str(&format!("\n  and {} more", overlaps.len() - NAMED));
    }
    if config.accept_overlap {
        return Ok(Some(format!(
            "{what}\nGoing on, as --accept-overlap says: events may be counted twice"
        )));
    }
    Err(Fault::Config(format!(
        "{what}\nTheir events would be counted twice. Nothing was changed. Begin where the job \
         before has stopped (--from group, --from group:NAME), at a later time (--from TIME), with \
         another table (--table), or empty this one. If no row is of those records, add \
         --accept-overlap"
    )))
}

/// Whether a beginning is before the position that the group has read. If this program committed
/// the offset, the table may hold records beyond it.
fn held_against_group(place: &Place) -> Option<Overlap> {
    let committed = place.committed?.offset;
    (place.begin < committed.min(place.end)).then_some(Overlap::ReadBefore { committed })
}

/// Reads the first records of the partitions for which no group shows how far they were read.
fn held_against_events(
    config: &Config,
    places: &[Place],
    rows: &Rows,
) -> Result<BTreeMap<usize, Overlap>, Fault> {
    let mut overlaps = BTreeMap::new();
    let Some(newest) = rows.newest else { return Ok(overlaps) };
    let last_event = newest.plus(-config.ledger.gap.millis());
    let exact = |place: &Place| place.committed.is_some_and(|committed| !committed.ours);
    let unknown: Vec<usize> = (0..places.len())
        .filter(|at| !exact(&places[*at]) && places[*at].begin < places[*at].end)
        .collect();
    let each = LOOKED_AT_IN_ALL / (unknown.len() as i64).max(1);
    let each = each.clamp(LOOKED_AT_LEAST, LOOKED_AT);
    let ranges: Vec<Range> = unknown
        .iter()
        .map(|at| {
            let Place { topic, partition, begin, end, .. } = &places[*at];
            let end = (*end).min(begin.plus(each));
            Range { topic: topic.clone(), partition: *partition, start: *begin, end }
        })
        .collect();
    scan_for(&config.kafka, &ranges, LOOK_PATIENCE, |at, record| {
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
    use crate::kafka::Committed;

    fn place(begin: i64, committed: Option<i64>) -> Place {
        let committed = committed.map(Offset::new);
        Place {
            topic: "t".to_owned(),
            partition: 3,
            oldest: Offset::new(5),
            end: Offset::new(20),
            committed: committed.map(|offset| Committed { offset, ours: false }),
            begin: Offset::new(begin),
        }
    }

    #[test]
    fn a_beginning_before_what_a_group_has_read_overlaps() {
        let overlaps = |begin, committed| held_against_group(&place(begin, committed)).is_some();
        assert_eq!([9, 10, 11].map(|begin| overlaps(begin, Some(10))), [true, false, false]);
        assert!(!overlaps(5, None), "nobody has said how far it was read");
        assert!(!overlaps(20, Some(30)), "after the end, there is nothing to read twice");
        assert!(overlaps(19, Some(30)));
    }
}
