//! Records that the job must send to its dead letters, one kind for each way to be wrong.
//!
//! Each kind is wrong in exactly one way: a decoder that misses it would accept the rest of the
//! event as good.

use std::fmt;

use crate::commands::produce::event::WebEvent;
use crate::commands::produce::generate::fields::{EventFields, quoted};
use crate::commands::produce::generate::random::Random;

/// The length of the host of [`BadKind::LongKey`] in bytes.
pub const LONG_HOST_BYTES: usize = 5_000;

const FUTURE_MS: i64 = 366 * 86_400_000;
/// 2100-01-01: the earliest time of a [`BadKind::FarFuture`]. If old events are replayed, a year
/// after the event is in the past: such a record would be good, and would advance the watermark.
const FUTURE_FROM_MS: i64 = 4_102_444_800_000;

/// What is wrong with a record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum BadKind {
    /// Text or bytes that are not JSON at all.
    NotJson,
    /// A truncated event.
    TruncatedJson,
    /// JSON, but an array, a string, a number, a boolean or null.
    NotAnObject,
    /// `ip` is missing or null.
    NoIp,
    /// `host` is the empty string.
    EmptyHost,
    /// `event_time` is null.
    NullTime,
    /// `event_time` is text that is not a time, or of a type that a time cannot have.
    UnreadableTime,
    /// `ip` contains U+0000, which PostgreSQL cannot store.
    NulInIp,
    /// `host` is `LONG_HOST_BYTES` long.
    LongKey,
    /// `event_time` is 366 days after the event, and not before the year 2100. This is wrong only
    /// for a job that limits how far ahead of the clock an event may be.
    FarFuture,
    /// A message of zero bytes.
    EmptyMessage,
    /// A message without a value.
    Tombstone,
}

impl BadKind {
    /// Every kind, in the order in which a generator goes through them.
    pub const ALL: [BadKind; 12] = [
        BadKind::NotJson,
        BadKind::TruncatedJson,
        BadKind::NotAnObject,
        BadKind::NoIp,
        BadKind::EmptyHost,
        BadKind::NullTime,
        BadKind::UnreadableTime,
        BadKind::NulInIp,
        BadKind::LongKey,
        BadKind::FarFuture,
        BadKind::EmptyMessage,
        BadKind::Tombstone,
    ];
}

impl fmt::Display for BadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadKind::NotJson => "not JSON",
            BadKind::TruncatedJson => "truncated JSON",
            BadKind::NotAnObject => "not an object",
            BadKind::NoIp => "no ip",
            BadKind::EmptyHost => "empty host",
            BadKind::NullTime => "null event time",
            BadKind::UnreadableTime => "unreadable event time",
            BadKind::NulInIp => "NUL in ip",
            BadKind::LongKey => "key too long",
            BadKind::FarFuture => "far in the future",
            BadKind::EmptyMessage => "empty message",
            BadKind::Tombstone => "tombstone",
        })
    }
}

/// Spoils `event`. Returns the payload (`None` is a tombstone) and the event time that is still
/// readable in it, in milliseconds since 1970.
pub fn spoil(
    event: &WebEvent<'_>,
    kind: BadKind,
    random: &mut Random,
) -> (Option<Vec<u8>>, Option<i64>) {
    let fields = || EventFields::of(event);
    let with_time = |fields: EventFields| (fields.write(), Some(event.event_time_ms));
    let (payload, event_time_ms) = match kind {
        BadKind::NotJson => (random.pick(&NOT_JSON).to_vec(), None),
        BadKind::TruncatedJson => (truncated(event, random), None),
        BadKind::NotAnObject => (random.pick(&NOT_OBJECTS).as_bytes().to_vec(), None),
        BadKind::NoIp if random.chance(0.5) => with_time(fields().with("ip", "null")),
        BadKind::NoIp => with_time(fields().without("ip")),
        BadKind::EmptyHost => with_time(fields().with("host", "\"\"")),
        BadKind::NullTime => (fields().with("event_time", "null").write(), None),
        BadKind::UnreadableTime => {
            (fields().with("event_time", random.pick(&NOT_TIMES)).write(), None)
        }
        BadKind::NulInIp => {
            let ip = format!("{}\0", event.ip);
            with_time(fields().with("ip", quoted(&ip)))
        }
        BadKind::LongKey => with_time(fields().with("host", quoted(&long_host(&event.host)))),
        BadKind::FarFuture => {
            let event_time_ms = event.event_time_ms.saturating_add(FUTURE_MS).max(FUTURE_FROM_MS);
            let event = WebEvent { event_time_ms, ..event.clone() };
            (event.to_json(), Some(event_time_ms))
        }
        BadKind::EmptyMessage => (Vec::new(), None),
        BadKind::Tombstone => return (None, None),
    };
    (Some(payload), event_time_ms)
}

const NOT_JSON: [&[u8]; 6] = [
    b"this is not JSON",
    b"<html><body>502 Bad Gateway</body></html>",
    b"{url: '/', ip: '192.0.2.1'}",
    b"\x00\x00\x00\x00\x07\x02\xff\xfe\x80",
    b"}",
    b"{\"ip\":\"192.0.2.1\",\"host\":\"example.org\",\"event_time\":1700000000000}}",
];

const NOT_OBJECTS: [&str; 7] =
    ["[]", "[{\"ip\":\"192.0.2.1\"}]", "\"event\"", "42", "-1.5e3", "true", "null"];

const NOT_TIMES: [&str; 8] = [
    "\"yesterday\"",
    "\"\"",
    "\"2023-13-01T00:00:00Z\"",
    "\"2023-02-30T12:00:00.000Z\"",
    "\"17/May/2015:10:05:03 +0000\"",
    "true",
    "[2023,11,14]",
    "{\"$date\":1700000000000}",
];

/// A random proper prefix of the event, at least one byte long.
fn truncated(event: &WebEvent<'_>, random: &mut Random) -> Vec<u8> {
    let mut json = event.to_json();
    let keep = 1 + random.below(json.len() as u64 - 1);
    json.truncate(keep as usize);
    json
}

fn long_host(host: &str) -> String {
    let mut long = "very-long-label.".repeat(LONG_HOST_BYTES / 16);
    long.truncate(LONG_HOST_BYTES.saturating_sub(host.len()));
    long + host
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn event() -> WebEvent<'static> {
        WebEvent {
            url: "/".into(),
            referrer: "".into(),
            user_agent: "x".into(),
            host: "a.example".into(),
            ip: "192.0.2.1".into(),
            headers: vec![],
            event_time_ms: 1_700_000_000_123,
        }
    }

    /// Every kind, a hundred times.
    fn spoiled(kind: BadKind) -> Vec<(Option<Vec<u8>>, Option<i64>)> {
        let mut random = Random::new(3, 3);
        (0..100).map(|_| spoil(&event(), kind, &mut random)).collect()
    }

    fn object(payload: &Option<Vec<u8>>) -> Value {
        let payload = payload.as_deref().expect("a payload");
        let value: Value = serde_json::from_slice(payload).expect("JSON");
        assert!(value.is_object());
        value
    }

    #[test]
    fn what_is_no_json_object_cannot_be_read_as_one() {
        use BadKind::{EmptyMessage, NotAnObject, NotJson, TruncatedJson};
        for kind in [NotJson, TruncatedJson, NotAnObject, EmptyMessage] {
            for (payload, time) in spoiled(kind) {
                let payload = payload.expect("a payload");
                let value: Result<Value, _> = serde_json::from_slice(&payload);
                assert_eq!(value.is_ok(), kind == NotAnObject, "{kind}: {payload:?}");
                assert!(!value.is_ok_and(|value| value.is_object()), "{kind}: {payload:?}");
                assert_eq!(payload.is_empty(), kind == EmptyMessage);
                assert_eq!(time, None);
            }
        }
        assert!(spoiled(BadKind::Tombstone).iter().all(|bad| *bad == (None, None)));
    }

    #[test]
    fn other_kinds_differ_from_the_event_in_one_field() {
        let good: Value = serde_json::from_slice(&event().to_json()).expect("JSON");
        for (kind, field) in [
            (BadKind::NoIp, "ip"),
            (BadKind::EmptyHost, "host"),
            (BadKind::NullTime, "event_time"),
            (BadKind::UnreadableTime, "event_time"),
            (BadKind::NulInIp, "ip"),
            (BadKind::LongKey, "host"),
            (BadKind::FarFuture, "event_time"),
        ] {
            for (payload, _) in spoiled(kind) {
                let mut value = object(&payload);
                assert_ne!(value[field], good[field], "{kind}");
                value[field] = good[field].clone();
                assert_eq!(value, good, "{kind}");
            }
        }
    }

    #[test]
    fn the_field_is_wrong_in_the_way_of_the_kind() {
        let first = |kind| spoiled(kind).swap_remove(0);
        assert_eq!(object(&first(BadKind::EmptyHost).0)["host"], "");
        assert_eq!(object(&first(BadKind::NullTime).0)["event_time"], Value::Null);
        assert_eq!(object(&first(BadKind::NulInIp).0)["ip"], "192.0.2.1\0");
        assert_eq!(first(BadKind::NulInIp).1, Some(1_700_000_000_123));
        let host = object(&first(BadKind::LongKey).0)["host"].clone();
        assert_eq!(host.as_str().map(str::len), Some(LONG_HOST_BYTES));
        assert_eq!(object(&first(BadKind::FarFuture).0)["event_time"], "2100-01-01T00:00:00.000Z");
        let late = WebEvent { event_time_ms: FUTURE_FROM_MS, ..event() };
        let (_, time) = spoil(&late, BadKind::FarFuture, &mut Random::new(0, 0));
        assert_eq!(time, Some(FUTURE_FROM_MS + FUTURE_MS));
        let missing = spoiled(BadKind::NoIp).iter().any(|(p, _)| object(p).get("ip").is_none());
        let null = spoiled(BadKind::NoIp).iter().any(|(p, _)| object(p).get("ip").is_some());
        assert!(missing && null);
    }

    #[test]
    fn all_holds_every_kind_once() {
        let mut kinds = BadKind::ALL.to_vec();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), BadKind::ALL.len());
        assert_eq!(kinds.last(), Some(&BadKind::Tombstone));
    }
}
