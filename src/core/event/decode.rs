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
mod tests;
