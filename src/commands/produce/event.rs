//! One web event in its wire format.
//!
//! Owns the field names, their order and the format of the time. [`WebEvent::to_json`] always
//! returns one valid JSON object. This module knows neither where an event comes from nor whether
//! the job will accept it: a host may be empty here, and an address may be nonsense.

use std::borrow::Cow;

use chrono::{DateTime, SecondsFormat};
use serde::{Serialize, Serializer};

/// The years that RFC 3339 can express, 0000 to 9999, in milliseconds since 1970.
const RFC_3339_MS: std::ops::RangeInclusive<i64> = -62_167_219_200_000..=253_402_300_799_999;

/// A page view: who (`ip`) saw what (`url` on `host`), and when.
///
/// Text is borrowed where possible, so that a line of a log is not copied field by field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WebEvent<'a> {
    /// The requested URL as in the request; usually a path.
    pub url: Cow<'a, str>,
    /// The previous page; empty if there was none.
    pub referrer: Cow<'a, str>,
    /// The browser's user agent; empty if it did not send one.
    pub user_agent: Cow<'a, str>,
    /// The site; together with `ip`, the key of a session.
    pub host: Cow<'a, str>,
    /// The visitor's address (or a host name, if the log has one).
    pub ip: Cow<'a, str>,
    /// Names and values in their order; a JSON object on the wire.
    #[serde(serialize_with = "write_headers")]
    pub headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// When it happened, in milliseconds since 1970; RFC 3339 in UTC on the wire.
    #[serde(rename = "event_time", serialize_with = "write_event_time")]
    pub event_time_ms: i64,
}

impl WebEvent<'_> {
    /// The event as a JSON object in UTF-8, without a newline.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = Vec::with_capacity(512);
        serde_json::to_writer(&mut json, self)
            .expect("strings and numbers always have a JSON form");
        json
    }
}

fn write_headers<S: Serializer>(
    headers: &[(Cow<'_, str>, Cow<'_, str>)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(headers.iter().map(|(name, value)| (name, value)))
}

/// Writes `2023-11-14T22:13:20.123Z`. A time that RFC 3339 cannot express is written as integer
/// milliseconds, which the wire format also allows.
fn write_event_time<S: Serializer>(millis: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    match DateTime::from_timestamp_millis(*millis) {
        Some(time) if RFC_3339_MS.contains(millis) => {
            serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
        }
        _ => serializer.serialize_i64(*millis),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event_time_ms: i64) -> WebEvent<'static> {
        WebEvent {
            url: "/a?b=\"c\"".into(),
            referrer: "".into(),
            user_agent: "käfer\t1".into(),
            host: "example.org".into(),
            ip: "192.0.2.7".into(),
            headers: vec![("z".into(), "1".into()), ("a".into(), "2".into())],
            event_time_ms,
        }
    }

    fn text(event: &WebEvent<'_>) -> String {
        String::from_utf8(event.to_json()).expect("JSON is UTF-8")
    }

    #[test]
    fn fields_are_named_and_ordered_as_in_the_contract() {
        let want = concat!(
            r#"{"url":"/a?b=\"c\"","referrer":"","user_agent":"käfer\t1","host":"example.org","#,
            r#""ip":"192.0.2.7","headers":{"z":"1","a":"2"},"#,
            r#""event_time":"2023-11-14T22:13:20.123Z"}"#,
        );
        assert_eq!(text(&event(1_700_000_000_123)), want);
    }

    #[test]
    fn times_are_rfc_3339_as_long_as_it_can_write_them() {
        for (millis, want) in [
            (0, r#""1970-01-01T00:00:00.000Z""#),
            (-1, r#""1969-12-31T23:59:59.999Z""#),
            (*RFC_3339_MS.start(), r#""0000-01-01T00:00:00.000Z""#),
            (*RFC_3339_MS.end(), r#""9999-12-31T23:59:59.999Z""#),
            (RFC_3339_MS.end() + 1, "253402300800000"),
            (RFC_3339_MS.start() - 1, "-62167219200001"),
            (i64::MAX, "9223372036854775807"),
        ] {
            let json = text(&event(millis));
            assert!(json.ends_with(&format!("\"event_time\":{want}}}")), "{millis}: {json}");
        }
    }
}
