//! One message in, one event or the reason why not out. Pure: no clock, no Kafka.
//!
//! Only `ip`, `host` and `event_time` matter; every other field may be missing, null, of any
//! type, or there twice (the last one counts). Strings are borrowed from the payload unless they
//! hold an escape.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::key::{self, Key, MAX_KEY_BYTES};
use crate::scan::{Scanned, ScannedTime, scan};
use crate::time::EventTime;

/// What a session is made of. The texts are UTF-8, kept as bytes: nobody reads them here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event<'a> {
    /// Who: never empty, no NUL, together with `host` at most [`MAX_KEY_BYTES`].
    pub ip: Cow<'a, [u8]>,
    /// Where: never empty, no NUL.
    pub host: Cow<'a, [u8]>,
    /// When.
    pub time: EventTime,
}

impl Event<'_> {
    /// Whose it is.
    pub fn key(&self) -> Key {
        let mut bytes = Vec::new();
        key::encode(&self.ip, &self.host, &mut bytes);
        Key::from_encoded(&bytes)
    }
}

/// Why a record became a dead letter. The names are stored, so they never change.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, serde::Deserialize,
)]
pub enum Reason {
    /// No payload (a tombstone) or an empty one.
    Empty,
    /// Not one JSON object.
    BadJson,
    /// `ip` is missing, null, empty or not a string.
    NoIp,
    /// `host` is missing, null, empty or not a string.
    NoHost,
    /// `event_time` is missing, null or empty.
    NoTime,
    /// `event_time` is neither RFC 3339 nor integer milliseconds, or not in the years 1 to 9999.
    BadTime,
    /// `ip` or `host` holds U+0000, which Postgres cannot store.
    NulInKey,
    /// `ip` and `host` are longer than an index entry can hold.
    KeyTooLong,
    /// Later than the wall clock of its epoch by more than `--max-future`.
    Future,
    /// Behind a closed session, and the job runs with `--late drop`.
    Late,
}

impl Reason {
    /// All of them, in the order of their declaration.
    pub const ALL: [Reason; 10] = [
        Reason::Empty,
        Reason::BadJson,
        Reason::NoIp,
        Reason::NoHost,
        Reason::NoTime,
        Reason::BadTime,
        Reason::NulInKey,
        Reason::KeyTooLong,
        Reason::Future,
        Reason::Late,
    ];

    /// The name in `dead_letters.reason`.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Empty => "empty",
            Reason::BadJson => "bad_json",
            Reason::NoIp => "no_ip",
            Reason::NoHost => "no_host",
            Reason::NoTime => "no_time",
            Reason::BadTime => "bad_time",
            Reason::NulInKey => "nul_in_key",
            Reason::KeyTooLong => "key_too_long",
            Reason::Future => "future",
            Reason::Late => "late",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A record that is no event: why, and the detail for a person (never a secret of ours: it speaks
/// of the payload only).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejected {
    pub reason: Reason,
    pub detail: String,
}

fn rejected<T>(reason: Reason, detail: impl Into<String>) -> Result<T, Rejected> {
    Err(Rejected { reason, detail: detail.into() })
}

/// Decodes the payload of one message; `None` is a tombstone.
///
/// Whether the event lies in the future is not decided here: that needs the epoch.
pub fn decode(payload: Option<&[u8]>) -> Result<Event<'_>, Rejected> {
    let payload = match payload {
        None => return rejected(Reason::Empty, "a tombstone: the message has no payload"),
        Some([]) => return rejected(Reason::Empty, "the payload has no bytes"),
        Some(payload) => payload,
    };
    match scan(payload).and_then(usual) {
        Some(event) => Ok(event),
        None => decode_any(payload),
    }
}

/// A good event in the usual shape: its strings hold no escapes and no control characters, so no
/// NUL. Why another is none, only the general way says.
fn usual(scanned: Scanned<'_>) -> Option<Event<'_>> {
    let Scanned { ip, host, event_time } = scanned;
    let time = EventTime::from_millis(match event_time {
        ScannedTime::Text(text) => parse_rfc3339(text)?,
        ScannedTime::Integer(millis) => millis,
    });
    let good = !ip.is_empty()
        && !host.is_empty()
        && (EventTime::EARLIEST..=EventTime::LATEST).contains(&time)
        && ip.len() + host.len() <= MAX_KEY_BYTES;
    good.then_some(Event { ip: Cow::Borrowed(ip), host: Cow::Borrowed(host), time })
}

/// Any JSON whatsoever.
fn decode_any(payload: &[u8]) -> Result<Event<'_>, Rejected> {
    let fields: Fields<Field<'_>> = match serde_json::from_slice(payload) {
        Ok(fields) => fields,
        Err(why) => match overridden(payload) {
            Some(fields) => fields,
            None => return rejected(Reason::BadJson, why.to_string()),
        },
    };
    if has_raw_control_character(payload) {
        let detail = "control character (\\u0000-\\u001F) found in the name of a field";
        return rejected(Reason::BadJson, detail);
    }
    let ip = text(fields.ip, Reason::NoIp, "ip")?;
    let host = text(fields.host, Reason::NoHost, "host")?;
    let time = event_time(fields.event_time)?;
    for (name, value) in [("ip", &ip), ("host", &host)] {
        if value.contains(&0) {
            return rejected(Reason::NulInKey, format!("{name} holds U+0000"));
        }
    }
    let bytes = ip.len() + host.len();
    if bytes > MAX_KEY_BYTES {
        let detail = format!("ip and host have {bytes} bytes, at most {MAX_KEY_BYTES} fit the key");
        return rejected(Reason::KeyTooLong, detail);
    }
    Ok(Event { ip, host, time })
}

/// The fields of an object in which a value cannot be had (a number beyond all bounds, half of a
/// surrogate pair), if a later field of the same name overrides it: the last one counts, and of the
/// others only that they are JSON.
fn overridden(payload: &[u8]) -> Option<Fields<Field<'_>>> {
    let Fields { ip, host, event_time } = serde_json::from_slice(payload).ok()?;
    fn field(value: Option<&RawValue>) -> Option<Field<'_>> {
        value.map_or(Some(Field::Absent), |value| serde_json::from_str(value.get()).ok())
    }
    Some(Fields { ip: field(ip)?, host: field(host)?, event_time: field(event_time)? })
}

/// Whether a string of a JSON text holds a control character that is not escaped. Only names of
/// fields can: whatever else holds one was refused.
fn has_raw_control_character(json: &[u8]) -> bool {
    let (mut in_string, mut escaped) = (false, false);
    json.iter().any(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            _ => return in_string && *byte < 0x20,
        }
        false
    })
}

fn text<'a>(field: Field<'a>, reason: Reason, name: &str) -> Result<Cow<'a, [u8]>, Rejected> {
    match field {
        Field::Text(Cow::Borrowed(text)) if !text.is_empty() => Ok(Cow::Borrowed(text.as_bytes())),
        Field::Text(Cow::Owned(text)) if !text.is_empty() => Ok(Cow::Owned(text.into_bytes())),
        Field::Text(_) => rejected(reason, format!("{name} is empty")),
        Field::Absent => rejected(reason, format!("{name} is missing or null")),
        Field::Integer(_) | Field::Other => rejected(reason, format!("{name} is not a string")),
    }
}

fn event_time(field: Field<'_>) -> Result<EventTime, Rejected> {
    let millis = match field {
        Field::Integer(millis) => millis,
        Field::Text(text) if text.is_empty() => {
            return rejected(Reason::NoTime, "event_time is empty");
        }
        Field::Text(text) => match parse_rfc3339(text.as_bytes()) {
            Some(millis) => millis,
            None => return rejected(Reason::BadTime, "event_time is not an RFC 3339 time"),
        },
        Field::Absent => return rejected(Reason::NoTime, "event_time is missing or null"),
        Field::Other => {
            return rejected(Reason::BadTime, "event_time is neither a string nor an integer");
        }
    };
    let time = EventTime::from_millis(millis);
    if !(EventTime::EARLIEST..=EventTime::LATEST).contains(&time) {
        return rejected(Reason::BadTime, "event_time is outside the years 1 to 9999");
    }
    Ok(time)
}

/// Milliseconds since 1970 of `2023-11-14T22:13:20.123Z`: any fraction (cut to milliseconds), any
/// offset (`Z`, `+02:00`, `+0200`, `+02`), `T` or a space, no zone means UTC. A leap second is the
/// first moment of the next minute.
pub fn parse_rfc3339(text: &[u8]) -> Option<i64> {
    let (head, rest) = text.split_first_chunk::<19>()?;
    let separators = [head[4], head[7], head[13], head[16]] == *b"--::";
    if !separators || !matches!(head[10], b'T' | b't' | b' ') {
        return None;
    }
    // One look at the end for all fourteen digits: what is no digit sets a bit above the low four
    // in itself or in what it becomes six later.
    let mut doubt = 0;
    let mut number = |at: usize| {
        let (tens, ones) = (head[at].wrapping_sub(b'0'), head[at + 1].wrapping_sub(b'0'));
        doubt |= (tens | tens.wrapping_add(6)) | (ones | ones.wrapping_add(6));
        u32::from(tens) * 10 + u32::from(ones)
    };
    let year = number(0) * 100 + number(2);
    let (month, day) = (number(5), number(8));
    let (hour, minute, second) = (number(11), number(14), number(17));
    if doubt & 0xf0 != 0 || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = days_since_1970(year, month, day)?;
    let (fraction_ms, zone) = fraction(rest)?;
    // A leap second is counted like any other: it is the first of the next minute.
    let seconds = i64::from((hour * 60 + minute) * 60 + second);
    Some((days * 86_400 + seconds) * 1_000 + fraction_ms - zone_ms(zone)?)
}

/// The number of a day, in the calendar of today for all times; `None` if there is no such day.
fn days_since_1970(year: u32, month: u32, day: u32) -> Option<i64> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u32::from(leap),
        _ => return None,
    };
    if day == 0 || day > length {
        return None;
    }
    // Years that begin in March have their odd day at the end, and 153 days in five months. They
    // are counted from 400 years before the year 0, so that nothing is negative.
    let (year, month) = if month > 2 { (year + 400, month - 3) } else { (year + 399, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    Some(i64::from(days) - DAYS_TO_1970)
}

/// From the first of March of the year -400 to 1970.
const DAYS_TO_1970: i64 = 146_097 + 719_468;

/// `.123456…` in milliseconds, and what follows it; without a point, nothing was there.
fn fraction(rest: &[u8]) -> Option<(i64, &[u8])> {
    let Some((b'.' | b',', digits)) = rest.split_first() else { return Some((0, rest)) };
    let count = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    if count == 0 {
        return None;
    }
    let digit = |at: usize| if at < count { i64::from(digits[at] - b'0') } else { 0 };
    Some((digit(0) * 100 + digit(1) * 10 + digit(2), &digits[count..]))
}

/// How far the zone is ahead of UTC, in milliseconds.
fn zone_ms(zone: &[u8]) -> Option<i64> {
    let (sign, rest) = match zone {
        [] | [b'Z' | b'z'] => return Some(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = match rest.len() {
        2 => (digits_at(rest, 0, 2)?, 0),
        4 => (digits_at(rest, 0, 2)?, digits_at(rest, 2, 2)?),
        5 if rest[2] == b':' => (digits_at(rest, 0, 2)?, digits_at(rest, 3, 2)?),
        _ => return None,
    };
    (hours < 24 && minutes < 60).then(|| sign * i64::from(hours * 60 + minutes) * 60_000)
}

fn digits_at(bytes: &[u8], at: usize, digits: usize) -> Option<u32> {
    bytes[at..at + digits].iter().try_fold(0, |sum, byte| match byte {
        b'0'..=b'9' => Some(sum * 10 + u32::from(byte - b'0')),
        _ => None,
    })
}

/// One field as it stands in the JSON.
#[derive(Default)]
enum Field<'a> {
    #[default]
    Absent,
    Text(Cow<'a, str>),
    Integer(i64),
    Other,
}

/// The values of the three fields that matter.
#[derive(Default)]
struct Fields<V> {
    ip: V,
    host: V,
    event_time: V,
}

impl<'de, V: Deserialize<'de> + Default> Deserialize<'de> for Fields<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de> + Default> Visitor<'de> for Object<V> {
            type Value = Fields<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<V>, A::Error> {
                let mut fields = Fields::default();
                while let Some(name) = map.next_key::<Name>()? {
                    match name {
                        Name::Ip => fields.ip = map.next_value()?,
                        Name::Host => fields.host = map.next_value()?,
                        Name::EventTime => fields.event_time = map.next_value()?,
                        Name::Other => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Object(PhantomData))
    }
}

/// The name of a field.
enum Name {
    Ip,
    Host,
    EventTime,
    Other,
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a field")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Name, E> {
                self.visit_bytes(name.as_bytes())
            }

            /// A name that is not UTF-8 is none of ours.
            fn visit_bytes<E>(self, name: &[u8]) -> Result<Name, E> {
                Ok(match name {
                    b"ip" => Name::Ip,
                    b"host" => Name::Host,
                    b"event_time" => Name::EventTime,
                    _ => Name::Other,
                })
            }
        }
        deserializer.deserialize_bytes(Text)
    }
}

impl<'de> Deserialize<'de> for Field<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Value;
        impl<'de> Visitor<'de> for Value {
            type Value = Field<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Field<'de>, E> {
                Ok(Field::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Field<'de>, E> {
                Ok(Field::Text(Cow::Owned(text.to_owned())))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Field<'de>, E> {
                Ok(Field::Integer(number))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Field<'de>, E> {
                Ok(i64::try_from(number).map_or(Field::Other, Field::Integer))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Field<'de>, E> {
                Ok(Field::Other)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Field<'de>, E> {
                Ok(Field::Other)
            }
            fn visit_unit<E>(self) -> Result<Field<'de>, E> {
                Ok(Field::Absent)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Field<'de>, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Field::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field<'de>, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Field::Other)
            }
        }
        deserializer.deserialize_any(Value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: i64 = 1_700_000_000_123;

    fn reason(payload: impl AsRef<[u8]>) -> Reason {
        let payload = payload.as_ref();
        let text = String::from_utf8_lossy(payload);
        decode(Some(payload)).expect_err(&format!("accepted {text}")).reason
    }

    #[test]
    fn an_event_needs_three_fields_and_minds_no_other() {
        let others = [
            r#""url":"/","referrer":null,"user_agent":7,"headers":{"a":[1,{"b":null}]},"#,
            r#""url":[],"referrer":{},"user_agent":true,"headers":"x","extra":1e400,"#,
            r#""ip":17,"host":null,"event_time":[],"#,
            "",
        ];
        for other in others {
            let json = format!(
                r#"{{{other}"host":"a.example","ip":"1.2.3.4","event_time":"2023-11-14T22:13:20.123Z"}}"#
            );
            let event =
                decode(Some(json.as_bytes())).unwrap_or_else(|why| panic!("{json}: {why:?}"));
            assert_eq!(
                (&*event.ip, &*event.host, event.time.millis()),
                (&b"1.2.3.4"[..], &b"a.example"[..], TIME)
            );
            assert!(matches!((event.ip, event.host), (Cow::Borrowed(_), Cow::Borrowed(_))));
        }
    }

    #[test]
    fn other_fields_may_nest_deeply_and_hold_bytes_that_are_not_utf8() {
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let json = format!(r#"{{"headers":{deep},"ip":"i","host":"h","event_time":1}}"#);
        assert!(decode(Some(json.as_bytes())).is_ok());
        let json =
            b"{\"url\":\"\xff\xfe\",\"\xff\":1,\"ip\":\"i\",\"host\":\"h\",\"event_time\":1}";
        assert!(decode(Some(json)).is_ok());
    }

    #[test]
    fn the_last_of_a_duplicate_field_counts() {
        let json = r#"{"ip":"a","host":"h","event_time":1,"ip":"b","event_time":2}"#;
        let event = decode(Some(json.as_bytes())).expect("valid");
        assert_eq!((&*event.ip, event.time.millis()), (&b"b"[..], 2));
        assert_eq!(reason(r#"{"ip":"a","host":"h","event_time":1,"ip":null}"#), Reason::NoIp);
    }

    #[test]
    fn keys_are_taken_byte_for_byte_with_escapes_resolved() {
        let json = r#"{"ip":" 1 ","host":"m\u00fcnchen.\ud83d\ude00","event_time":1,"\u0069p2":0}"#;
        let event = decode(Some(json.as_bytes())).expect("valid");
        assert_eq!((&*event.ip, &*event.host), (&b" 1 "[..], "münchen.😀".as_bytes()));
    }

    #[test]
    fn every_reason_has_its_inputs() {
        let with = |ip: &str, host: &str, time: &str| {
            format!(r#"{{"ip":{ip},"host":{host},"event_time":{time}}}"#)
        };
        let long = format!("\"{}\"", "x".repeat(MAX_KEY_BYTES));
        let cases = [
            (String::new(), Reason::Empty),
            ("{".into(), Reason::BadJson),
            ("[]".into(), Reason::BadJson),
            ("null".into(), Reason::BadJson),
            ("{} {}".into(), Reason::BadJson),
            ("{\"ip\":\"\\ud800\",\"host\":\"h\",\"event_time\":1}".into(), Reason::BadJson),
            (with("null", "\"h\"", "1"), Reason::NoIp),
            (with("\"\"", "\"h\"", "1"), Reason::NoIp),
            (with("5", "\"h\"", "1"), Reason::NoIp),
            (with("\"i\"", "{}", "1"), Reason::NoHost),
            (r#"{"ip":"i","event_time":1}"#.into(), Reason::NoHost),
            (with("\"i\"", "\"h\"", "null"), Reason::NoTime),
            (with("\"i\"", "\"h\"", "\"\""), Reason::NoTime),
            (with("\"i\"", "\"h\"", "1.5"), Reason::BadTime),
            (with("\"i\"", "\"h\"", "true"), Reason::BadTime),
            (with("\"i\"", "\"h\"", "\"yesterday\""), Reason::BadTime),
            (with("\"i\"", "\"h\"", "253402300800000"), Reason::BadTime),
            (with("\"i\"", "\"h\"", "-62135596800001"), Reason::BadTime),
            (with("\"i\"", "\"h\"", "18446744073709551615"), Reason::BadTime),
            (with("\"i\"", "\"h\"", "99999999999999999999999"), Reason::BadTime),
            (with("\"a\\u0000b\"", "\"h\"", "1"), Reason::NulInKey),
            (with("\"i\"", "\"a\\u0000\"", "1"), Reason::NulInKey),
            (with("\"i\"", &long, "1"), Reason::KeyTooLong),
        ];
        for (json, want) in cases {
            assert_eq!(reason(&json), want, "{json}");
        }
        assert_eq!(decode(None).expect_err("tombstone").reason, Reason::Empty);
        assert_eq!(reason(b"{\"ip\":\"\xff\",\"host\":\"h\",\"event_time\":1}"), Reason::BadJson);
    }

    #[test]
    fn a_key_of_exactly_the_limit_fits() {
        let host = "x".repeat(MAX_KEY_BYTES - 1);
        let json = format!(r#"{{"ip":"i","host":"{host}","event_time":1}}"#);
        assert!(decode(Some(json.as_bytes())).is_ok());
    }

    #[test]
    fn times_of_every_shape_are_read_to_the_millisecond() {
        let second = 1_700_000_000_000;
        let cases = [
            ("2023-11-14T22:13:20.123Z", second + 123),
            ("2023-11-14T22:13:20Z", second),
            ("2023-11-14t22:13:20z", second),
            ("2023-11-14 22:13:20", second),
            ("2023-11-14T22:13:20.1", second + 100),
            ("2023-11-14T22:13:20.123999999999Z", second + 123),
            ("2023-11-15T00:13:20.5+02:00", second + 500),
            ("2023-11-14T16:43:20-0530", second),
            ("2023-11-15 00:13:20+02", second),
            ("1970-01-01T00:00:00Z", 0),
            ("1969-12-31T23:59:59.999Z", -1),
            ("2016-12-31T23:59:60Z", 1_483_228_800_000),
            ("2024-02-29T00:00:00Z", 1_709_164_800_000),
        ];
        for (text, want) in cases {
            assert_eq!(parse_rfc3339(text.as_bytes()), Some(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        let cases = [
            "",
            "2023",
            "2023-11-14",
            "2023-11-14T22:13",
            "2023-11-14T22:13:20.",
            "2023-11-14T24:00:00Z",
            "2023-02-29T00:00:00Z",
            "2023-13-01T00:00:00Z",
            "2023-11-14T22:13:61Z",
            "2023-11-14T22:13:20ZZ",
            "2023-11-14T22:13:20+25:00",
            "2023-11-14T22:13:20+1:00",
            "2023-11-14_22:13:20Z",
            "+023-11-14T22:13:20Z",
            "2023-11-14T22:13:20 UTC",
            "1700000000000",
            "２０２３-11-14T22:13:20Z",
        ];
        for text in cases {
            assert_eq!(parse_rfc3339(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn every_day_of_the_calendar_has_its_number_and_no_other_day_has_one() {
        for year in 0..=9_999 {
            for month in 0..=13 {
                for day in 0..=32 {
                    let want = chrono::NaiveDate::from_ymd_opt(year as i32, month, day)
                        .map(|date| date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp());
                    let got = days_since_1970(year, month, day).map(|days| days * 86_400);
                    assert_eq!(got, want, "{year}-{month}-{day}");
                }
            }
        }
    }

    /// The scanner and the general parser: whatever is broken, and however, both paths give the
    /// same event, the same reason and the same words.
    #[test]
    fn the_scanner_never_shows() {
        let seeds = [
            concat!(
                r#"{"url":"/a?b=\"c\"","referrer":"","user_agent":"k\u00e4fer","host":"a.example","#,
                r#""ip":"192.0.2.7","headers":{"a":"b","c":["d",1,null]},"#,
                r#""event_time":"2023-11-14T22:13:20.123Z"}"#,
            ),
            r#" { "ip" : "1" , "host":"m\u00fcnchen" ,"event_time": 1700000000123 , "x":[ ] } "#,
            concat!(
                r#"{"event_time":"2023-11-14 22:13:20+02:00","n":15,"ip":"ü","t":true,"#,
                r#""host":"h","f":false}"#,
            ),
            r#"{"ip":"","host":"","event_time":"","ip":"i","host":"h","event_time":0}"#,
        ];
        let pieces: Vec<&[u8]> = [
            "\"",
            "\\",
            ",",
            ":",
            "{",
            "}",
            "[",
            "]",
            "0",
            "-",
            "null",
            "\u{1}",
            " ",
            "\n",
            "1e5",
            "\\u12G4",
            "\\ud800",
            "\\n",
            "\"ip\":",
            "\"host\":7,",
            "\"ip\":1e999,",
            "\"\t\":0,",
            "\"\\n\":0,",
            "\"event_time\":\"\\ud800\",",
            "\"event_time\":\"\",",
            "ü",
            "é",
        ]
        .iter()
        .map(|piece| piece.as_bytes())
        .chain([&b"\xff"[..], b"\0", b"\x1f", b""])
        .collect();
        let mut random = 1u64;
        let mut below = |n: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize % n
        };
        let (mut scanned, mut rejected) = (0, 0);
        for round in 0..400_000 {
            let mut json = seeds[round % seeds.len()].as_bytes().to_vec();
            for _ in 0..below(4) {
                let at = below(json.len() + 1);
                let gone = below(3).min(json.len() - at);
                json.splice(at..at + gone, pieces[below(pieces.len())].iter().copied());
            }
            if json.is_empty() {
                continue;
            }
            let got = decode(Some(&json));
            assert_eq!(got, decode_any(&json), "{}", String::from_utf8_lossy(&json));
            scanned += usize::from(scan(&json).is_some());
            rejected += usize::from(got.is_err());
        }
        assert!(scanned > 20_000 && rejected > 20_000, "{scanned} scanned, {rejected} rejected");
    }

    #[test]
    fn of_a_field_that_is_there_twice_the_first_must_only_be_json() {
        let with = |first: &str| {
            let (ip, host, time) = (r#""ip":"i""#, r#""host":"h""#, r#""event_time":17"#);
            ["ip", "host", "event_time"].map(|name| {
                format!(r#"{{"x":1e999,"{name}":{first},{ip},"y":"\ud800",{host},{time}}}"#)
            })
        };
        for first in
            ["1e999", "-1e999", r#""\ud800""#, r#""\udc00\ud800""#, "[1e999]", "{}", "null"]
        {
            for json in with(first) {
                let event = decode(Some(json.as_bytes())).expect(&json);
                assert_eq!(
                    (&*event.ip, &*event.host, event.time.millis()),
                    (b"i" as &[u8], b"h" as &[u8], 17),
                    "{json}"
                );
            }
        }
        for first in ["1e", "01", "\"\\x\"", "\"\u{1}\"", "[", "nul", "\"\\ud8\""] {
            for json in with(first) {
                assert_eq!(reason(&json), Reason::BadJson, "{json}");
            }
        }
        for last in [r#""ip":"i","ip":1e999"#, r#""ip":"i","ip":"\ud800""#] {
            let json = format!(r#"{{{last},"host":"h","event_time":17}}"#);
            assert_eq!(reason(&json), Reason::BadJson, "{json}");
        }
    }

    #[test]
    fn a_control_character_must_be_escaped_in_names_as_in_values() {
        let event = |name: &str| format!(r#"{{"{name}":1,"ip":"i","host":"h","event_time":17}}"#);
        for name in ["\u{1}", "a\tb", "\\n\u{1f}", "\\\"\n", "\\\\\u{0}", "ip\n"] {
            assert_eq!(reason(event(name)), Reason::BadJson, "{name:?}");
            let nested = format!(r#"{{"x":{},"ip":"i","host":"h","event_time":17}}"#, event(name));
            assert_eq!(reason(nested), Reason::BadJson, "{name:?}");
        }
        for name in ["", "\\u0001", "\\n", "\\\\", "\\\"", "\u{7f}", "ü", "\\ud800"] {
            decode(Some(event(name).as_bytes())).expect(name);
        }
        let spaced = "{\t\"ip\"\n:\r\"i\" ,\"host\":\"h\",\"event_time\":17, \"\\n\":0\t}";
        decode(Some(spaced.as_bytes())).expect("white space between strings");
    }

    #[test]
    fn reasons_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
