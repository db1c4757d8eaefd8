//! A visitor that is to be forgotten, and which keys and open sessions are the visitor's.

use std::ops::Range;

use crate::key::{Key, Shard, stable_hash};
use crate::session::SessionTable;

/// Who is to be forgotten: a visitor on one host, or on all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Visitor {
    pub ip: String,
    pub host: Option<String>,
}

impl Visitor {
    /// Whether a session key is one of the visitor's.
    pub fn has_key(&self, key: &[u8]) -> bool {
        Key::from_bytes(key).is_some_and(|key| {
            let (ip, host) = key.parts();
            self.ip == ip && self.host.as_ref().is_none_or(|own| own == host)
        })
    }

    /// The shards in which it can have open sessions.
    pub fn shards(&self, shards: u32) -> Range<u32> {
        match &self.host {
            Some(host) => {
                let hash = stable_hash(Key::new(&self.ip, host).bytes());
                let shard = Shard::of(hash, shards).0;
                shard..shard + 1
            }
            None => 0..shards,
        }
    }

    /// The shard without the open sessions of the visitor; `None` if it has none there.
    pub fn removed_from(&self, table: &SessionTable) -> Option<SessionTable> {
        let left = table.without(|key| self.has_key(key));
        (left.len() < table.len()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Span;
    use crate::time::{EventTime, Gap};

    #[test]
    fn only_the_sessions_of_the_visitor_are_removed_and_the_horizon_stays() {
        let at = EventTime::from_millis;
        let mut table = SessionTable::new(Gap::from_millis(10).expect("valid"), at(5));
        let keys = [("192.0.2.1", "a"), ("192.0.2.1", "b"), ("192.0.2.11", "a")];
        for (ip, host) in keys {
            let key = Key::new(ip, host);
            table.insert(stable_hash(key.bytes()), key.bytes(), Span::event(at(7)));
        }
        let removed = |ip: &str, host: Option<&str>| {
            let visitor = Visitor { ip: ip.to_owned(), host: host.map(str::to_owned) };
            visitor.removed_from(&table)
        };
        let one = removed("192.0.2.1", Some("a")).expect("it has one");
        assert_eq!((one.len(), one.open_records(), one.horizon()), (2, 2, at(5)));
        let left = removed("192.0.2.1", None).expect("it has two");
        let left: Vec<Key> = left.open().filter_map(|open| Key::from_bytes(open.key)).collect();
        assert_eq!(left, [Key::new("192.0.2.11", "a")]);
        assert!(removed("192.0.2.1", Some("c")).is_none() && removed("192.0.2", None).is_none());
    }

    #[test]
    fn its_shards_are_those_of_its_keys() {
        let of_key = Shard::of(stable_hash(Key::new("192.0.2.1", "a").bytes()), 16).0;
        let mut visitor = Visitor { ip: "192.0.2.1".to_owned(), host: Some("a".to_owned()) };
        assert_eq!(visitor.shards(16), of_key..of_key + 1);
        visitor.host = None;
        assert_eq!(visitor.shards(16), 0..16);
    }
}
