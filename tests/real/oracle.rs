//! The batch answer as rows of the table, and what an event is, without a line of the program.

use std::collections::BTreeSet;

use crate::batch;

/// `(ip, host, session_start, session_end, num_logs)`; times in milliseconds since 1970.
pub type Row = (String, String, i64, i64, i64);

pub const GAP_MS: i64 = 300_000;

/// An event as a test knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub ip: String,
    pub host: String,
    pub time_ms: i64,
}

pub fn event(ip: &str, host: &str, time_ms: i64) -> Event {
    Event { ip: ip.to_owned(), host: host.to_owned(), time_ms }
}

/// The sessions of these events.
pub fn sessions<'a>(events: impl IntoIterator<Item = &'a Event>) -> BTreeSet<Row> {
    let events = events.into_iter().map(|event| ((&*event.ip, &*event.host), event.time_ms));
    let mut rows = BTreeSet::new();
    for ((ip, host), sessions) in batch::sessions(events, GAP_MS) {
        for (first, last, count) in sessions {
            rows.insert((ip.to_owned(), host.to_owned(), first, last + GAP_MS, count as i64));
        }
    }
    rows
}

/// Reads a payload as a lenient consumer would; `None` if it is no event. The clock decides what
/// is in the future.
pub fn read(payload: Option<&[u8]>, latest_ms: i64) -> Option<Event> {
    let value: serde_json::Value = serde_json::from_slice(payload?).ok()?;
    let text = |name: &str| value.get(name)?.as_str().filter(|text| !text.is_empty());
    let (ip, host) = (text("ip")?, text("host")?);
    if ip.contains('\0') || host.contains('\0') || ip.len() + host.len() > 2_600 {
        return None;
    }
    let time_ms = match value.get("event_time")? {
        serde_json::Value::Number(number) => number.as_i64()?,
        serde_json::Value::String(text) => time(text)?,
        _ => return None,
    };
    (time_ms <= latest_ms).then(|| event(ip, host, time_ms))
}

fn time(text: &str) -> Option<i64> {
    let text = text.replacen(' ', "T", 1);
    let parse = |text: &str| chrono::DateTime::parse_from_rfc3339(text).ok();
    let time = parse(&text).or_else(|| parse(&format!("{text}Z")))?;
    Some(time.timestamp_millis())
}
