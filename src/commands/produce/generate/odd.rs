//! Good events in unusual forms: whatever the contract allows and a careless decoder trips over.
//!
//! The time is always that of the event, and so are address and host unless the kind says
//! otherwise: an odd event counts like any other.

use chrono::{DateTime, FixedOffset, SecondsFormat, Utc};

use crate::commands::produce::event::WebEvent;
use crate::commands::produce::generate::fields::EventFields;
use crate::commands::produce::generate::random::Random;

/// The host of the kinds with a foreign host.
pub const FOREIGN_HOST: &str = "münchen.example";
const FOREIGN_HOST_ESCAPED: &str = r#""m\u00fcnchen.example""#;

/// What is unusual about an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OddKind {
    /// The fields that matter appear twice with the same value.
    DuplicateFields,
    /// Unknown fields, some with objects and lists inside.
    UnknownFields,
    /// Null, a number, an array or an object instead of text, in fields that do not matter.
    LooseTypes,
    /// The fields that do not matter are missing.
    MissingFields,
    /// The fields in reverse order.
    Reversed,
    /// White space wherever JSON allows it.
    Spaced,
    /// The time as integer milliseconds.
    TimeMillis,
    /// The time at an offset like +02:00.
    TimeOffset,
    /// The time with a space instead of the T.
    TimeSpace,
    /// The time without a zone, which means UTC.
    TimeNoZone,
    /// The time in microseconds, not a whole millisecond.
    TimeMicros,
    /// The host with every character escaped.
    EscapedHost,
    /// Another host: [`FOREIGN_HOST`], with its umlaut escaped.
    ForeignHostEscaped,
    /// Another host: [`FOREIGN_HOST`], in UTF-8.
    ForeignHost,
}

impl OddKind {
    /// Every kind, in the order in which a generator goes through them.
    pub const ALL: [OddKind; 14] = [
        OddKind::DuplicateFields,
        OddKind::UnknownFields,
        OddKind::LooseTypes,
        OddKind::MissingFields,
        OddKind::Reversed,
        OddKind::Spaced,
        OddKind::TimeMillis,
        OddKind::TimeOffset,
        OddKind::TimeSpace,
        OddKind::TimeNoZone,
        OddKind::TimeMicros,
        OddKind::EscapedHost,
        OddKind::ForeignHostEscaped,
        OddKind::ForeignHost,
    ];
}

/// The payload of `event`, in an unusual form.
pub fn dress(event: &WebEvent<'_>, kind: OddKind, random: &mut Random) -> Vec<u8> {
    let fields = EventFields::of(event);
    match kind {
        OddKind::DuplicateFields => duplicated(fields),
        OddKind::UnknownFields => fields
            .and("status", "200")
            .and("geo", r#"{"country":"DE","ip":null,"points":[[52.5,13.4],[]]}"#)
            .and("quote \\\" and {brace", r#""\"}],\\""#)
            .and("", "1e-7"),
        OddKind::LooseTypes => fields
            .with("url", random.pick(&LOOSE))
            .with("referrer", random.pick(&LOOSE))
            .with("user_agent", random.pick(&LOOSE))
            .with("headers", random.pick(&LOOSE)),
        OddKind::MissingFields => {
            fields.without("url").without("referrer").without("user_agent").without("headers")
        }
        OddKind::Reversed => fields.reversed(),
        OddKind::Spaced => return fields.write_spaced(),
        OddKind::EscapedHost => fields.with("host", escaped(&event.host)),
        OddKind::ForeignHostEscaped => fields.with("host", FOREIGN_HOST_ESCAPED),
        OddKind::ForeignHost => fields.with("host", format!("\"{FOREIGN_HOST}\"")),
        OddKind::TimeMillis
        | OddKind::TimeOffset
        | OddKind::TimeSpace
        | OddKind::TimeNoZone
        | OddKind::TimeMicros => fields.with("event_time", time(event, kind, random)),
    }
    .write()
}

const LOOSE: [&str; 6] = ["null", "-12.5", "[1,\"two\",[null]]", "{\"a\":{}}", "true", "[]"];
const OFFSETS_MINUTES: [i32; 5] = [120, -480, 330, 0, -210];

fn duplicated(fields: EventFields) -> EventFields {
    let [host, ip, time] = ["host", "ip", "event_time"].map(|name| fields.value(name));
    fields.and("event_time", time).and("ip", ip).and("host", host)
}

/// The time of `event` as JSON text; plain milliseconds if there is no other way.
fn time(event: &WebEvent<'_>, kind: OddKind, random: &mut Random) -> String {
    let Some(time) = DateTime::<Utc>::from_timestamp_millis(event.event_time_ms) else {
        return event.event_time_ms.to_string();
    };
    match kind {
        OddKind::TimeOffset => {
            let offset = FixedOffset::east_opt(60 * random.pick(&OFFSETS_MINUTES));
            let time = time.with_timezone(&offset.expect("less than a day"));
            format!("\"{}\"", time.to_rfc3339_opts(SecondsFormat::Millis, false))
        }
        OddKind::TimeSpace => time.format("\"%Y-%m-%d %H:%M:%S%.3fZ\"").to_string(),
        OddKind::TimeNoZone => time.format("\"%Y-%m-%dT%H:%M:%S%.3f\"").to_string(),
        OddKind::TimeMicros => {
            let micros = random.below(1_000);
            time.format(&format!("\"%Y-%m-%dT%H:%M:%S%.3f{micros:03}Z\"")).to_string()
        }
        _ => event.event_time_ms.to_string(),
    }
}

/// `text` as a JSON string in which every character is a `\u` escape.
fn escaped(text: &str) -> String {
    let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
    format!("\"{units}\"")
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::Value;

    use super::*;

    fn event() -> WebEvent<'static> {
        WebEvent {
            url: "/".into(),
            referrer: "".into(),
            user_agent: "x".into(),
            host: "a-ü.example".into(),
            ip: "192.0.2.1".into(),
            headers: vec![("a".into(), "b".into())],
            event_time_ms: 1_700_000_000_123,
        }
    }

    /// The milliseconds of every form of time that the contract allows.
    pub fn millis(time: &Value) -> i64 {
        if let Some(millis) = time.as_i64() {
            return millis;
        }
        let text = time.as_str().expect("text or an integer").replace(' ', "T");
        let with_zone = DateTime::parse_from_rfc3339(&text);
        let time = with_zone.or_else(|_| DateTime::parse_from_rfc3339(&format!("{text}Z")));
        time.unwrap_or_else(|error| panic!("{text}: {error}")).timestamp_millis()
    }

    #[test]
    fn odd_events_keep_their_key_and_their_time() {
        let mut random = Random::new(4, 4);
        for kind in OddKind::ALL {
            for _ in 0..100 {
                let payload = dress(&event(), kind, &mut random);
                assert_ne!(payload, event().to_json(), "{kind:?}");
                let value: Value = serde_json::from_slice(&payload)
                    .unwrap_or_else(|e| panic!("{kind:?}: {e}: {}", payload.escape_ascii()));
                let foreign = matches!(kind, OddKind::ForeignHost | OddKind::ForeignHostEscaped);
                assert_eq!(value["host"], if foreign { FOREIGN_HOST } else { "a-ü.example" });
                assert_eq!(value["ip"], "192.0.2.1", "{kind:?}");
                assert_eq!(millis(&value["event_time"]), 1_700_000_000_123, "{kind:?}");
            }
        }
    }

    #[test]
    fn oddities_match_their_kind() {
        let mut random = Random::new(5, 5);
        for (kind, want) in [
            (OddKind::DuplicateFields, r#""ip":"192.0.2.1","host":"a-ü.example"}"#),
            (OddKind::Reversed, r#"{"event_time":"2023-11-14T22:13:20.123Z","headers":{"#),
            (OddKind::Spaced, "\"host\" :\t\"a-ü.example\" ,\r\n  \"ip\" :"),
            (OddKind::MissingFields, r#"{"host":"a-ü.example","ip":"192.0.2.1","event_time":"2"#),
            (OddKind::TimeMillis, r#""event_time":1700000000123}"#),
            (OddKind::TimeSpace, r#""2023-11-14 22:13:20.123Z"}"#),
            (OddKind::TimeNoZone, r#""2023-11-14T22:13:20.123"}"#),
            (OddKind::TimeMicros, r#""2023-11-14T22:13:20.123"#),
            (OddKind::EscapedHost, r#""host":"\u0061\u002d\u00fc\u002e\u0065\u0078"#),
            (OddKind::ForeignHostEscaped, r#""host":"m\u00fcnchen.example""#),
            (OddKind::ForeignHost, r#""host":"münchen.example""#),
        ] {
            let text = String::from_utf8(dress(&event(), kind, &mut random)).expect("UTF-8");
            assert!(text.contains(want), "{kind:?}: {text}");
        }
    }
}
