//! Decodes the payload of a message into an event, or into the reason why it is not one.
//!
//! The scanner reads events of the usual shape. Everything that it declines goes through
//! serde_json, which alone decides what is wrong.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::event::scan::{Scanned, ScannedTime, scan};
use crate::event::{Event, Reason, Rejected};
use crate::key::MAX_KEY_BYTES;
use crate::rfc3339::parse_rfc3339;
use crate::time::EventTime;

fn rejected<T>(reason: Reason, detail: impl Into<String>) -> Result<T, Rejected> {
    Err(Rejected { reason, detail: detail.into() })
}

/// Decodes the payload of one message; `None` is a tombstone.
///
/// It does not decide whether the event is too far in the future: that needs the epoch.
///
/// ```
/// use sessionizer_core::event::{Reason, decode};
///
/// let payload = br#"{"ip":"192.0.2.7","host":"a.example","event_time":1700000000123}"#;
/// let event = decode(Some(payload)).expect("an event");
/// assert_eq!(event.key().parts(), ("192.0.2.7", "a.example"));
/// assert_eq!(event.time.to_string(), "2023-11-14T22:13:20.123Z");
///
/// let rejected = decode(Some(br#"{"ip":"192.0.2.7"}"#)).expect_err("no host");
/// assert_eq!(rejected.reason, Reason::NoHost);
/// ```
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

/// A valid event in the usual shape: its strings contain no escapes and no control characters, so
/// no NUL. Only the general path says why another one is invalid.
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

/// Decodes any JSON.
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
            return rejected(Reason::NulInKey, format!("{name} contains U+0000"));
        }
    }
    let bytes = ip.len() + host.len();
    if bytes > MAX_KEY_BYTES {
        let detail = format!(
            "ip and host have {bytes} bytes together, the key holds at most {MAX_KEY_BYTES}"
        );
        return rejected(Reason::KeyTooLong, detail);
    }
    Ok(Event { ip, host, time })
}

/// Reads an object in which a value cannot be represented (a number out of range, half of a
/// surrogate pair), if a later field of the same name overrides it: the last one counts, and the
/// others only have to be JSON.
fn overridden(payload: &[u8]) -> Option<Fields<Field<'_>>> {
    let Fields { ip, host, event_time } = serde_json::from_slice(payload).ok()?;
    fn field(value: Option<&RawValue>) -> Option<Field<'_>> {
        value.map_or(Some(Field::Absent), |value| serde_json::from_str(value.get()).ok())
    }
    Some(Fields { ip: field(ip)?, host: field(host)?, event_time: field(event_time)? })
}

/// Whether a string in a JSON text contains an unescaped control character. Only names of fields
/// can: the parser has refused any other.
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

/// The value of one field in the JSON.
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

            /// A name that is not UTF-8 is none of the three.
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

    /// The scanner and the general parser: whatever is broken, both paths give the same event, the
    /// same reason and the same message.
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
