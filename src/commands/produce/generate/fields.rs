//! An event as a list of fields, for what a well-behaved encoder never writes.
//!
//! Slow and rarely used: only odd and bad records pass through here. The caller decides what is
//! written; the result need not be valid JSON.

use crate::commands::produce::event::WebEvent;

const NAMES: [&str; 7] = ["url", "referrer", "user_agent", "host", "ip", "headers", "event_time"];

/// Field names and their values as JSON text, in the order in which they are written.
pub struct EventFields(Vec<(&'static str, String)>);

impl EventFields {
    /// The fields of `event`. Written unchanged, they are what [`WebEvent::to_json`] returns (with
    /// the headers sorted by name).
    pub fn of(event: &WebEvent<'_>) -> Self {
        let json = serde_json::to_value(event).expect("an event always has a JSON form");
        EventFields(NAMES.map(|name| (name, json[name].to_string())).to_vec())
    }

    /// Replaces the value of `name` by `json`.
    pub fn with(mut self, name: &str, json: impl Into<String>) -> Self {
        let field = self.0.iter_mut().find(|(field, _)| *field == name);
        field.expect("a field of an event").1 = json.into();
        self
    }

    /// Adds one more field at the end, even if there is one with that name.
    pub fn and(mut self, name: &'static str, json: impl Into<String>) -> Self {
        self.0.push((name, json.into()));
        self
    }

    /// Removes every field called `name`.
    pub fn without(mut self, name: &str) -> Self {
        self.0.retain(|(field, _)| *field != name);
        self
    }

    /// Reverses the order of the fields.
    pub fn reversed(mut self) -> Self {
        self.0.reverse();
        self
    }

    /// The value of `name` as JSON text.
    pub fn value(&self, name: &str) -> String {
        let field = self.0.iter().find(|(field, _)| *field == name);
        field.expect("a field of an event").1.clone()
    }

    /// The object without any white space.
    pub fn write(&self) -> Vec<u8> {
        self.join(":", ",")
    }

    /// The object with white space wherever JSON allows it.
    pub fn write_spaced(&self) -> Vec<u8> {
        self.join(" :\t", " ,\r\n  ")
    }

    fn join(&self, colon: &str, comma: &str) -> Vec<u8> {
        let fields: Vec<String> =
            self.0.iter().map(|(name, json)| format!("\"{name}\"{colon}{json}")).collect();
        format!("{{{}}}", fields.join(comma)).into_bytes()
    }
}

/// `text` as a JSON string.
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_left_alone_are_the_event() {
        let event = WebEvent {
            url: "/a\"b\"".into(),
            referrer: "".into(),
            user_agent: "ü}".into(),
            host: "h".into(),
            ip: "i".into(),
            headers: vec![("a".into(), "1\\".into()), ("b".into(), "\"event_time\":".into())],
            event_time_ms: 1,
        };
        for event_time_ms in [0, 1_700_000_000_123, i64::MAX] {
            let event = WebEvent { event_time_ms, ..event.clone() };
            assert_eq!(EventFields::of(&event).write(), event.to_json());
        }
        let spaced = EventFields::of(&event).write_spaced();
        let parse = |json: &[u8]| serde_json::from_slice::<serde_json::Value>(json).expect("JSON");
        assert_eq!(parse(&spaced), parse(&event.to_json()));
    }
}
