//! What an event is, and why a record is not one.
//!
//! Only `ip`, `host` and `event_time` matter. Every other field may be missing, null, of any type,
//! or duplicated; of a duplicated field, the last value counts. Strings are borrowed from the
//! payload unless they contain an escape.

mod decode;
mod scan;

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;

pub use self::decode::decode;
use crate::key;
use crate::key::Key;
use crate::time::EventTime;

/// The event that sessions are made of. The texts are UTF-8, kept as bytes because nothing here
/// reads them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event<'a> {
    /// The visitor: never empty, no NUL, together with `host` at most [`key::MAX_KEY_BYTES`].
    pub ip: Cow<'a, [u8]>,
    /// The site: never empty, no NUL.
    pub host: Cow<'a, [u8]>,
    /// When it happened.
    pub time: EventTime,
}

impl Event<'_> {
    /// The session key.
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
    /// `ip` or `host` contains U+0000, which Postgres cannot store.
    NulInKey,
    /// `ip` and `host` are longer than an index entry can hold.
    KeyTooLong,
    /// Later than the wall clock of its epoch by more than `--max-future`.
    Future,
    /// Its session would have closed already, and the job runs with `--late drop`.
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

/// Why a record is not an event, with a detail for people. The detail describes the payload only,
/// so it never contains a secret of the job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejected {
    pub reason: Reason,
    pub detail: String,
}
