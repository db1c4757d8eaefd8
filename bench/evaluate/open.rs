//! Marathons that a job finds while they are still open.

use std::collections::{BTreeMap, HashMap};

use sessionizer_core::anomaly::{Hour, HourSums, Kind, Limits, Session, Thresholds};

use crate::outcome::Found;

/// When an open session is looked at: at most a gap after it has become long, and then each time it
/// has grown by ten minutes.
const LOOKED_AT_MS: i64 = 300_000 + 600_000;

/// The sessions that are flagged before they close, and when that is known at the latest. Events
/// are taken to be so frequent that a session is as long as the time since it began.
pub fn marathons(rows: &[Session<'_>], thresholds: &Thresholds) -> Vec<Found> {
    let mut hosts: HashMap<&str, BTreeMap<Hour, HourSums>> = HashMap::new();
    for row in rows {
        let hours = hosts.entry(row.host).or_default();
        hours.entry(Hour::of(row.end)).or_default().add(&row.span, 1, thresholds);
    }
    let is_long = |row: &&Session<'_>| row.duration_ms() > thresholds.marathon.min;
    let found = rows.iter().filter(is_long).filter_map(|row| {
        let known_ms = known(row, &hosts[row.host], thresholds)? + LOOKED_AT_MS;
        // Otherwise it closes before, and its row is judged.
        (known_ms < row.end.millis()).then(|| Found {
            kind: Kind::Marathon,
            host: row.host.to_owned(),
            subject: row.ip.to_owned(),
            at_ms: row.span.first.millis(),
            known_ms: Some(known_ms),
        })
    });
    found.collect()
}

/// When the session is longer than the limit of the hour of the watermark.
fn known(
    row: &Session<'_>,
    hours: &BTreeMap<Hour, HourSums>,
    thresholds: &Thresholds,
) -> Option<i64> {
    let first_ms = row.span.first.millis();
    let long = Hour::of(row.span.first.plus(thresholds.marathon.min as i64));
    (long.0..=Hour::of(row.end).0).map(Hour).find_map(|hour| {
        let limit = Limits::of(hours, hour, thresholds)?.marathon;
        let beyond_ms = first_ms + limit.above as i64 + 1;
        let from_ms = beyond_ms.max(hour.start().millis());
        (from_ms < Hour(hour.0 + 1).start().millis()).then_some(from_ms)
    })
}
