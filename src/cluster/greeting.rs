//! The first messages between two processes, and whether their settings agree. Works on readers and
//! writers; it knows no sockets.
//!
//! The connecting side sends a [`Hello`], the listening side answers with a [`GreetingReply`]. Both are a
//! magic number, a length and JSON. Data from the other side is checked against limits before it is
//! used, is never used as an index unchecked, and is never shown to people as it is.

use std::io::{self, Read, Write};

use openssl::sha::sha256;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sessionizer_core::epoch_clock::HumanDuration;

/// No other protocol begins with these bytes.
const MAGIC: &[u8; 16] = b"sessionizer-peer";
/// The first byte of a greeting.
pub const FIRST: u8 = MAGIC[0];
/// The length limit of a message.
const MAX_BYTES: u32 = 64 * 1024;
/// How many settings a process compares at most.
const MAX_SETTINGS: usize = 64;
/// The length limit of a setting's name.
const MAX_NAME: usize = 64;
/// A longer value is compared by its hash: see [`shortened`].
const MAX_VALUE: usize = 400;
/// How many characters of a value are shown.
const MAX_SHOWN_CHARS: usize = 150;

/// Clocks further apart than this are reported. A greeting may be on its way for a moment.
const CLOCKS_APART_MS: u64 = 5_000;

/// A setting on which all processes must agree: its name and its value.
pub type Setting = (String, String);

/// Who connects, and what for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The index of the process.
    pub process: usize,
    /// A new number at each start of a process, so that an old connection is not taken for a new
    /// one.
    pub incarnation: u64,
    pub purpose: Purpose,
    /// The wall clock of its machine, in milliseconds since 1970.
    pub clock_ms: u64,
    pub settings: Vec<Setting>,
}

/// What a connection is for. Each pair of processes has one of each of the first three.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Purpose {
    /// Signs of life and notices; it comes first.
    Watch,
    /// Timely's data from the process that connects.
    Send,
    /// Timely's data to the process that connects.
    Receive,
    /// No data: the process that connects asks whether the settings are the same.
    Compare,
}

/// The answer of the listening side.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum GreetingReply {
    /// The connection is accepted. Holds the wall clock here, in milliseconds since 1970.
    Welcome { clock_ms: u64 },
    /// The settings differ; these are mine.
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

/// Receives a message sent by [`send`]. `InvalidData` means that the other side is not one of our
/// processes.
pub fn receive<T: DeserializeOwned>(reader: &mut impl Read) -> io::Result<T> {
    parse(&receive_bytes(reader)?)
}

/// Receives the bytes of a message without decoding it.
pub fn receive_bytes(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut magic = [0; MAGIC.len()];
    // Byte by byte at first: a stranger that sends little is recognized by its first byte.
    for at in 0..MAGIC.len() {
        reader.read_exact(&mut magic[at..=at])?;
        if magic[at] != MAGIC[at] {
            return Err(protocol_error("it does not speak sessionizer's protocol"));
        }
    }
    let mut length = [0; 4];
    reader.read_exact(&mut length)?;
    let mut body = vec![0; body_length(length)?];
    reader.read_exact(&mut body)?;
    Ok(body)
}

/// Takes the first message from the received bytes, if it is complete.
pub fn take<T: DeserializeOwned>(received: &mut Vec<u8>) -> io::Result<Option<T>> {
    let known = received.len().min(MAGIC.len());
    if received[..known] != MAGIC[..known] {
        return Err(protocol_error("it does not speak sessionizer's protocol"));
    }
    let Some(rest) = received.get(MAGIC.len()..) else { return Ok(None) };
    let Some(length) = rest.first_chunk::<4>() else { return Ok(None) };
    let length = body_length(*length)?;
    let Some(body) = rest[4..].get(..length) else { return Ok(None) };
    let message = parse(body)?;
    received.drain(..MAGIC.len() + 4 + length);
    Ok(Some(message))
}

fn body_length(bytes: [u8; 4]) -> io::Result<usize> {
    match u32::from_be_bytes(bytes) {
        length if length <= MAX_BYTES => Ok(length as usize),
        _ => Err(protocol_error("its greeting is too long")),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(|_| protocol_error("its greeting is of another version"))
}

fn protocol_error(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Whether received settings are within the limits.
pub fn check(settings: &[Setting]) -> io::Result<()> {
    let fits = |(name, value): &Setting| name.len() <= MAX_NAME && value.len() <= MAX_VALUE;
    match settings.len() <= MAX_SETTINGS && settings.iter().all(fits) {
        true => Ok(()),
        false => Err(protocol_error("its settings are too many or too long")),
    }
}

/// The settings as they are sent: a long value, such as a list of many topics, is replaced by its
/// beginning and its hash.
pub fn shortened(settings: Vec<Setting>) -> Vec<Setting> {
    let shorten = |(name, value): Setting| match value.len() {
        short if short <= MAX_VALUE => (name, value),
        long => {
            let hash = sha256(value.as_bytes());
            let hash: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
            let begin: String = value.chars().take(60).collect();
            (name, format!("{begin}... ({long} bytes, SHA-256 {hash}...)"))
        }
    };
    settings.into_iter().map(shorten).collect()
}

/// Describes the differences for people; empty if there are none. Shows only names that are known
/// here.
pub fn differences(here: &[Setting], there: &[Setting]) -> Vec<String> {
    let mut all = Vec::new();
    for (name, ours) in here {
        let theirs = there.iter().find(|(known, _)| known == name);
        let theirs = theirs.map_or("unknown", |(_, value)| value.as_str());
        if theirs != ours {
            let (theirs, ours) = (shown(theirs, MAX_SHOWN_CHARS), shown(ours, MAX_SHOWN_CHARS));
            all.push(format!("{name} is {theirs} there and {ours} here"));
        }
    }
    let unknown = |(name, _): &&Setting| !here.iter().any(|(known, _)| known == name);
    match there.iter().filter(unknown).count() {
        0 => {}
        1 => all.push("it has one setting that is unknown here".to_owned()),
        more => all.push(format!("it has {more} settings that are unknown here")),
    }
    all
}

/// Makes a text from another process fit for the log: one line of limited length.
pub fn shown(text: &str, most: usize) -> String {
    let mut shown: String =
        text.chars().take(most).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(most).is_some() {
        shown.push_str("...");
    }
    shown
}

/// Describes how far the clock of a process is from the one here; `None` if they are close enough.
pub fn clocks_apart(process: &str, here_ms: u64, there_ms: u64) -> Option<String> {
    let apart_ms = there_ms.abs_diff(here_ms);
    let direction = if there_ms > here_ms { "ahead of" } else { "behind" };
    (apart_ms >= CLOCKS_APART_MS).then(|| {
        format!(
            "the clock of {process} is {} {direction} the one here. Epochs begin with the clock of \
             process 0 and continue by elapsed time; but each process judges by its own clock which \
             events are of the future (--max-future): set the clocks right",
            HumanDuration(apart_ms)
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
    fn a_stranger_is_recognised_by_its_first_byte() {
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
    fn clocks_that_are_seconds_apart_are_reported_with_a_direction() {
        let apart = |there| clocks_apart("process 1 (b:1)", 100_000, there);
        assert_eq!([apart(104_999), apart(95_001)], [None, None]);
        for (there, says) in [(220_000, "2 min ahead of"), (95_000, "5.0 s behind")] {
            let message = apart(there).expect("they are apart");
            let begins = format!("the clock of process 1 (b:1) is {says} the one here.");
            assert!(message.starts_with(&begins), "{message}");
        }
    }

    #[test]
    fn a_message_is_taken_when_all_of_it_is_there() {
        let mut bytes = Vec::new();
        send(&mut bytes, &hello()).expect("written");
        send(&mut bytes, &GreetingReply::Welcome { clock_ms: 1 }).expect("written");
        let mut received = Vec::new();
        let mut found = 0;
        for byte in bytes {
            received.push(byte);
            if found == 0 {
                let hello_there = take::<Hello>(&mut received).expect("ours");
                found += usize::from(hello_there.is_some_and(|it| it == hello()));
            } else if take::<GreetingReply>(&mut received).expect("ours").is_some() {
                found += 1;
            }
        }
        assert_eq!((found, received.len()), (2, 0));
        for bytes in [&b"GET"[..], &[MAGIC.as_slice(), &[0xff; 4]].concat()] {
            assert!(take::<Hello>(&mut bytes.to_vec()).is_err());
        }
    }

    #[test]
    fn each_setting_that_differs_is_named_with_both_values() {
        let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let here = [setting("--gap", "5m"), setting("-w", "2"), setting("new", "1")];
        let there = [setting("--gap", "1m\u{1b}[2J\n"), setting("-w", "2"), setting("old", "3")];
        let want = [
            "--gap is 1m?[2J? there and 5m here",
            "new is unknown there and 1 here",
            "it has one setting that is unknown here",
        ];
        assert_eq!(differences(&here, &there), want);
        assert!(differences(&here, &here).is_empty());
    }

    #[test]
    fn settings_are_bounded_and_long_values_are_compared_by_their_hash() {
        let topics = |last: &str| format!("{}{last}", "topic,".repeat(1_000));
        let of = |last: &str| shortened(vec![("KAFKA_TOPIC".to_owned(), topics(last))]);
        let (here, there) = (of("a"), of("b"));
        assert!(check(&here).is_ok() && here[0].1.contains("(6001 bytes, SHA-256 "), "{here:?}");
        assert!(differences(&here, &of("a")).is_empty());
        assert_eq!(differences(&here, &there).len(), 1);
        let setting = |name: usize, value: usize| ("n".repeat(name), "v".repeat(value));
        assert!(check(&vec![setting(MAX_NAME, MAX_VALUE); MAX_SETTINGS]).is_ok());
        for wrong in [
            vec![setting(1, 1); MAX_SETTINGS + 1],
            vec![setting(MAX_NAME + 1, 1)],
            vec![setting(1, MAX_VALUE + 1)],
        ] {
            assert!(check(&wrong).is_err());
        }
        let message = differences(&[], &vec![setting(60, 400); 64]).join("; ");
        assert!(message.len() < 100, "{message}");
    }

    #[test]
    fn fuzz_greeting() {
        let mut seed = Vec::new();
        let settings = vec![("--gap".to_owned(), "5m".to_owned())];
        send(&mut seed, &GreetingReply::Differs(settings)).expect("memory takes it");
        let pieces: [&[u8]; 5] = [MAGIC, b"\0\0\0", b"\xff\xff\xff\xff", b"\"", b"}"];
        crate::shared::mutate::fuzz(&[&seed], &pieces, |bytes| {
            let mut rest = bytes.to_vec();
            let taken = take::<GreetingReply>(&mut rest);
            // Byte by byte or at once, it is the same message, and nothing beside it is eaten.
            let received = receive::<GreetingReply>(&mut &bytes[..]);
            match (taken, received) {
                (Ok(Some(one)), Ok(same)) => assert_eq!(one, same),
                (Ok(None), Err(_)) => assert_eq!(rest, bytes),
                (Err(_), Err(_)) => {}
                (taken, received) => panic!("{bytes:?}: {taken:?} and {received:?}"),
            }
        });
    }
}
