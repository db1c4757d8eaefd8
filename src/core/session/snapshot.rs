//! A shard on disk: its open sessions and its horizon, versioned, compressed and checksummed. Pure.
//!
//! Layout, all integers little-endian or LEB128 varints:
//!
//! ```text
//! "SSNZ"  version: u8  crc32 of the plain bytes: u32  zstd( plain bytes )
//! plain:  horizon: zigzag varint   sessions: varint
//!         per session  key length: varint  key  first: zigzag varint  last - first: varint
//!                      count: varint  late: u8
//! ```
//!
//! Sessions are sorted by key and start, so equal shards have equal snapshots.

use std::fmt;

use crate::key::{Key, Shard, stable_hash};
use crate::session::{Open, SessionTable, Span};
use crate::time::{EventTime, Gap};

const MAGIC: &[u8; 4] = b"SSNZ";
/// The version of the format that this program writes.
pub const VERSION: u8 = 1;
const HEADER_BYTES: usize = 9;
/// Level 1: snapshots are part of commits, so their cost matters more than their size.
const ZSTD_LEVEL: i32 = 1;

/// Why a snapshot cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Damage {
    /// Not a snapshot at all.
    NotASnapshot,
    /// Written by a later version of this program.
    Version(u8),
    /// It cannot be decompressed.
    Compression(String),
    /// The checksum does not match.
    Checksum,
    /// The checksum matches but the content is invalid: a bug of the writer.
    Content,
    /// It holds sessions of another shard.
    OtherShard,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::NotASnapshot => f.write_str("it does not begin like a snapshot"),
            Damage::Version(found) => {
                write!(f, "its format is version {found}, this program reads up to {VERSION}")
            }
            Damage::Compression(why) => write!(f, "it cannot be decompressed: {why}"),
            Damage::Checksum => f.write_str("its checksum does not match its content"),
            Damage::Content => f.write_str("its checksum matches, but its content is invalid"),
            Damage::OtherShard => f.write_str("it holds sessions of another shard"),
        }
    }
}

/// Serialises a shard.
pub fn encode(table: &SessionTable) -> Vec<u8> {
    table.check();
    let mut open: Vec<Open<'_>> = table.open().collect();
    open.sort_unstable();
    let mut plain = Vec::with_capacity(16 + open.len() * 48);
    put_signed(table.horizon().millis(), &mut plain);
    put(open.len() as u64, &mut plain);
    for Open { key, span, late } in open {
        put(key.len() as u64, &mut plain);
        plain.extend_from_slice(key);
        put_signed(span.first.millis(), &mut plain);
        put((span.last.millis() - span.first.millis()) as u64, &mut plain);
        put(span.count, &mut plain);
        plain.push(u8::from(late));
    }
    let packed = zstd::bulk::compress(&plain, ZSTD_LEVEL).expect("memory compresses into memory");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + packed.len());
    bytes.extend_from_slice(MAGIC);
    bytes.push(VERSION);
    bytes.extend_from_slice(&crc32fast::hash(&plain).to_le_bytes());
    bytes.extend_from_slice(&packed);
    bytes
}

/// Reads what [`encode`] wrote.
pub fn decode(bytes: &[u8], gap: Gap) -> Result<SessionTable, Damage> {
    if bytes.len() < HEADER_BYTES || &bytes[..4] != MAGIC {
        return Err(Damage::NotASnapshot);
    }
    if bytes[4] != VERSION {
        return Err(Damage::Version(bytes[4]));
    }
    let checksum = u32::from_le_bytes(bytes[5..9].try_into().expect("four bytes"));
    let packed = &bytes[HEADER_BYTES..];
    let plain =
        zstd::stream::decode_all(packed).map_err(|why| Damage::Compression(why.to_string()))?;
    if crc32fast::hash(&plain) != checksum {
        return Err(Damage::Checksum);
    }
    content(&plain, gap).ok_or(Damage::Content)
}

/// Reads what [`encode`] wrote for one of `shards` shards, and checks that it is the right one.
pub fn decode_of(
    bytes: &[u8],
    gap: Gap,
    shard: Shard,
    shards: u32,
) -> Result<SessionTable, Damage> {
    let table = decode(bytes, gap)?;
    let foreign = table.open().any(|open| Shard::of(stable_hash(open.key), shards) != shard);
    if foreign { Err(Damage::OtherShard) } else { Ok(table) }
}

fn content(mut plain: &[u8], gap: Gap) -> Option<SessionTable> {
    let rest = &mut plain;
    let horizon = EventTime::from_millis(take_signed(rest)?);
    let sessions = take(rest)?;
    let mut open = Vec::with_capacity(usize::try_from(sessions).ok()?.min(rest.len()));
    let mut records: u64 = 0;
    for _ in 0..sessions {
        let length = usize::try_from(take(rest)?).ok()?;
        let (key, after) = rest.split_at_checked(length)?;
        *rest = after;
        let first = EventTime::from_millis(take_signed(rest)?);
        let last = first.plus(i64::try_from(take(rest)?).ok()?);
        let count = take(rest)?;
        let (late, after) = rest.split_first()?;
        *rest = after;
        let span = Span { first, last, count };
        records = records.checked_add(count)?;
        let times = EventTime::EARLIEST..=EventTime::LATEST;
        let is_span = times.contains(&first) && times.contains(&last) && first <= last && count > 0;
        if !Key::is_encoded(key) || !is_span {
            return None;
        }
        open.push(Open { key, span, late: *late != 0 });
    }
    rest.is_empty().then(|| SessionTable::restore(gap, horizon, open))
}

pub(crate) fn put(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_signed(value: i64, out: &mut Vec<u8>) {
    put((value.wrapping_shl(1) ^ (value >> 63)) as u64, out);
}

pub(crate) fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

pub(crate) fn take_signed(rest: &mut &[u8]) -> Option<i64> {
    take(rest).map(|value| (value >> 1) as i64 ^ -((value & 1) as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::stable_hash;
    use crate::shared::mutate::fuzz;

    fn gap() -> Gap {
        Gap::from_millis(300_000).expect("valid")
    }

    fn table() -> SessionTable {
        let mut table = SessionTable::new(gap(), EventTime::from_millis(-5));
        for (ip, time) in [("a", 0), ("a", 1_000_000), ("b", -77), ("ü", 1_700_000_000_123)] {
            let key = Key::new(ip, "host.example");
            let span = Span { count: 3, ..Span::event(EventTime::from_millis(time)) };
            table.insert(stable_hash(key.bytes()), key.bytes(), span);
        }
        table
    }

    #[test]
    fn a_shard_comes_back_as_it_was() {
        for table in [table(), SessionTable::new(gap(), EventTime::NEVER)] {
            let bytes = encode(&table);
            let back = decode(&bytes, gap()).expect("readable");
            assert_eq!(encode(&back), bytes);
            assert_eq!((back.len(), back.horizon()), (table.len(), table.horizon()));
            assert_eq!(back.open_records(), table.open_records());
        }
    }

    #[test]
    fn damage_is_named() {
        let bytes = encode(&table());
        assert!(matches!(decode(b"", gap()), Err(Damage::NotASnapshot)));
        assert!(matches!(decode(b"something else", gap()), Err(Damage::NotASnapshot)));
        let [less, header] = [HEADER_BYTES - 1, HEADER_BYTES].map(|n| decode(&bytes[..n], gap()));
        assert!(matches!(less, Err(Damage::NotASnapshot)));
        assert!(matches!(header, Err(Damage::Compression(_) | Damage::Checksum)));
        let mut newer = bytes.clone();
        newer[4] = 9;
        let why = decode(&newer, gap()).expect_err("version 9");
        assert_eq!(why, Damage::Version(9));
        assert_eq!(why.to_string(), "its format is version 9, this program reads up to 1");
        let mut other = bytes.clone();
        other[5] ^= 1;
        assert!(matches!(decode(&other, gap()), Err(Damage::Checksum)));
        assert!(matches!(
            decode(&bytes[..bytes.len() - 1], gap()),
            Err(Damage::Compression(_) | Damage::Checksum)
        ));
    }

    #[test]
    fn no_flipped_bit_passes_for_a_snapshot() {
        let bytes = encode(&table());
        for at in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            if let Ok(back) = decode(&damaged, gap()) {
                assert_eq!(encode(&back), bytes, "bit {at} changed the content unnoticed");
            }
        }
    }

    #[test]
    fn integers_of_every_size_come_back() {
        for value in [0, 1, 127, 128, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            put(value, &mut bytes);
            assert_eq!(take(&mut &bytes[..]), Some(value));
        }
        for value in [0, -1, 1, i64::MIN, i64::MAX, EventTime::NEVER.millis()] {
            let mut bytes = Vec::new();
            put_signed(value, &mut bytes);
            assert_eq!(take_signed(&mut &bytes[..]), Some(value));
        }
        assert_eq!(take(&mut &[0x80][..]), None);
    }

    #[test]
    fn a_shard_is_not_taken_for_another_one() {
        let key = Key::new("192.0.2.7", "host.example");
        let mut table = SessionTable::new(gap(), EventTime::NEVER);
        let span = Span::event(EventTime::from_millis(0));
        table.insert(stable_hash(key.bytes()), key.bytes(), span);
        let (bytes, own) = (encode(&table), Shard::of(stable_hash(key.bytes()), 8));
        for shard in (0..8).map(Shard) {
            let damage = decode_of(&bytes, gap(), shard, 8).err();
            assert_eq!(damage, (shard != own).then_some(Damage::OtherShard), "{shard:?}");
        }
    }

    #[test]
    fn sessions_without_events_or_outside_the_calendar_are_damage() {
        let read = |first: i64, lasts_ms: u64, count: u64| {
            let mut plain = Vec::new();
            put_signed(EventTime::NEVER.millis(), &mut plain);
            put(1, &mut plain);
            put(3, &mut plain);
            plain.extend_from_slice(b"a\0h");
            put_signed(first, &mut plain);
            put(lasts_ms, &mut plain);
            put(count, &mut plain);
            plain.push(0);
            content(&plain, gap()).map(|table| table.open_records())
        };
        let [earliest, latest] = [EventTime::EARLIEST, EventTime::LATEST].map(EventTime::millis);
        assert_eq!([read(earliest, 5, 2), read(latest - 5, 5, 1)], [Some(2), Some(1)]);
        assert_eq!([read(earliest - 1, 0, 1), read(earliest - 1, 5, 1)], [None, None]);
        assert_eq!([read(latest, 1, 1), read(0, 5, 0)], [None, None]);
    }

    /// Damage that the checksum does not show, because it was computed afterwards.
    #[test]
    fn fuzz_content() {
        let table = table();
        let plain = zstd::stream::decode_all(&encode(&table)[HEADER_BYTES..]).expect("packed");
        let mut read = 0;
        fuzz(&[&plain], &[b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\0", b"\x80"], |plain| {
            let Some(table) = content(plain, gap()) else { return };
            read += 1;
            let again = decode(&encode(&table), gap()).expect("it was just written");
            assert_eq!(encode(&again), encode(&table), "{plain:?}");
        });
        assert!(read > 0);
    }

    #[test]
    fn fuzz_snapshot() {
        let bytes = encode(&table());
        fuzz(&[&bytes], &[MAGIC, b"\xff\xff\xff\xff"], |damaged| {
            if let Ok(back) = decode(damaged, gap()) {
                assert_eq!(encode(&back), bytes, "{damaged:?}");
            }
        });
    }
}
