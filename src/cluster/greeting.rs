//! What two processes say to each other first, and whether they fit. No sockets: readers, writers.
//!
//! Whoever connects sends a [`Hello`], whoever listens gives an [`Answer`]. Both are a magic number,
//! a length and JSON: a stranger is told from a process of ours by the first bytes, and nothing
//! that a stranger sends is taken for a length or an index.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::epoch_clock::Distance;

/// Nothing that speaks another protocol begins with this.
const MAGIC: &[u8; 16] = b"sessionizer-peer";
/// A greeting is a few hundred bytes; the settings may hold long lists of topics.
const MAX_BYTES: u32 = 256 * 1024;

/// Clocks that are further apart than this are told of. A greeting may be under way for a moment.
const CLOCKS_APART_MS: u64 = 5_000;

/// A setting that all processes must agree on: its name and its value.
pub type Setting = (String, String);

/// Who connects, and what for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Its index.
    pub process: usize,
    /// Another number at each start of a process: an old connection is not taken for a new one.
    pub incarnation: u64,
    pub purpose: Purpose,
    /// The wall clock of its machine, milliseconds since 1970.
    pub clock_ms: u64,
    pub settings: Vec<Setting>,
}

/// Each pair of processes has two connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Purpose {
    /// Signs of life and notices; it comes first.
    Watch,
    /// What timely sends.
    Data,
}

/// What whoever listens says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The connection stands; the wall clock here, milliseconds since 1970.
    Welcome { clock_ms: u64 },
    /// These are my settings; they are not yours.
    Differs(Vec<Setting>),
    /// Not now; the reason is for people.
    Busy(String),
}

/// Sends a greeting or an answer.
pub fn send(writer: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(message).expect("a greeting is plain data");
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&body);
    writer.write_all(&bytes)
}

/// Receives what [`send`] has sent. `InvalidData` says that the other side is no process of ours.
pub fn receive<T: DeserializeOwned>(reader: &mut impl Read) -> io::Result<T> {
    let stranger = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut magic = [0; MAGIC.len()];
    // Byte by byte at the start: a stranger that says little is told by its first byte.
    for at in 0..MAGIC.len() {
        reader.read_exact(&mut magic[at..=at])?;
        if magic[at] != MAGIC[at] {
            return Err(stranger("it does not speak as a process of sessionizer does"));
        }
    }
    let mut length = [0; 4];
    reader.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > MAX_BYTES {
        return Err(stranger("its greeting is too long"));
    }
    let mut body = vec![0; length as usize];
    reader.read_exact(&mut body)?;
    serde_json::from_slice(&body).map_err(|_| stranger("its greeting is of another version"))
}

/// What is not the same, for people; empty if all is.
pub fn differences(here: &[Setting], there: &[Setting]) -> Vec<String> {
    let value = |of: &[Setting], name: &str| {
        let found = of.iter().find(|(known, _)| known == name);
        found.map_or("unknown".to_owned(), |(_, value)| value.clone())
    };
    let mut names: Vec<&String> = here.iter().map(|(name, _)| name).collect();
    names.extend(there.iter().map(|(name, _)| name).filter(|name| value(here, name) == "unknown"));
    let differs = |name: &&String| value(here, name) != value(there, name);
    let tell = |name: &String| {
        format!("{name} is {} there and {} here", value(there, name), value(here, name))
    };
    names.into_iter().filter(differs).map(tell).collect()
}

/// How far the clock of a process is from the one here, for people; `None` if that is not worth a
/// word.
pub fn clocks_apart(process: &str, here_ms: u64, there_ms: u64) -> Option<String> {
    let apart_ms = there_ms.abs_diff(here_ms);
    let direction = if there_ms > here_ms { "ahead of" } else { "behind" };
    (apart_ms >= CLOCKS_APART_MS).then(|| {
        format!(
            "the clock of {process} is {} {direction} the one here. Epochs begin with the clock of \
             process 0 and go on by elapsed time; but each process judges by its own clock which \
             events are of the future (--max-future): set the clocks right",
            Distance(apart_ms)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        let settings = vec![("--gap".to_owned(), "5m".to_owned())];
        let (incarnation, clock_ms) = (u64::MAX, 1_700_000_000_000);
        Hello { process: 1, incarnation, purpose: Purpose::Watch, clock_ms, settings }
    }

    #[test]
    fn a_greeting_comes_as_it_was_sent() {
        let mut bytes = Vec::new();
        send(&mut bytes, &hello()).expect("written");
        assert_eq!(receive::<Hello>(&mut bytes.as_slice()).expect("read"), hello());
    }

    #[test]
    fn a_stranger_is_told_by_its_first_byte() {
        let mut http = io::Cursor::new(b"GET / HTTP/1.1\r\n\r\n".as_slice());
        let why = receive::<Hello>(&mut http).expect_err("a stranger");
        assert_eq!((why.kind(), http.position()), (io::ErrorKind::InvalidData, 1));
    }

    #[test]
    fn lengths_and_bodies_of_strangers_are_not_believed() {
        let mut long = MAGIC.to_vec();
        long.extend_from_slice(&[0xff; 8]);
        let mut other = MAGIC.to_vec();
        other.extend_from_slice(&[0, 0, 0, 2]);
        other.extend_from_slice(b"{}");
        for bytes in [long, other] {
            let why = receive::<Hello>(&mut bytes.as_slice()).expect_err("a stranger");
            assert_eq!(why.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn clocks_that_are_seconds_apart_are_told_with_a_direction() {
        let apart = |there| clocks_apart("process 1 (b:1)", 100_000, there);
        assert_eq!([apart(104_999), apart(95_001)], [None, None]);
        for (there, says) in [(220_000, "2 min ahead of"), (95_000, "5.0 s behind")] {
            let told = apart(there).expect("they are apart");
            let begins = format!("the clock of process 1 (b:1) is {says} the one here.");
            assert!(told.starts_with(&begins), "{told}");
        }
    }

    #[test]
    fn each_setting_that_differs_is_named_with_both_values() {
        let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let here = [setting("--gap", "5m"), setting("-w", "2"), setting("new", "1")];
        let there = [setting("--gap", "1m"), setting("-w", "2"), setting("old", "3")];
        let want = [
            "--gap is 1m there and 5m here",
            "new is unknown there and 1 here",
            "old is 3 there and unknown here",
        ];
        assert_eq!(differences(&here, &there), want);
        assert!(differences(&here, &here).is_empty());
    }
}
