//! A proof on disk: versioned, compressed and checksummed, with the integers of a snapshot.
//!
//! ```text
//! "SSNA"  version: u8  crc32 of the plain bytes: u32  zstd( plain bytes )
//! ```

use std::collections::BTreeMap;

use crate::audit::{Counted, Day, JobHistory, Proof, Sums};
use crate::binding::Offset;
use crate::key::Key;
use crate::session::Span;
use crate::session::snapshot::{put, put_signed, take, take_signed};
use crate::time::EventTime;

const MAGIC: &[u8; 4] = b"SSNA";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 9;
const ZSTD_LEVEL: i32 = 3;

impl Proof {
    /// Serialises the proof.
    pub fn encode(&self) -> Vec<u8> {
        let mut plain = Vec::with_capacity(64 + self.kept.len() * 48);
        let out = &mut plain;
        put_text(&self.history.created_at, out);
        for count in [self.history.losses, self.history.lost, self.history.replays] {
            put(count, out);
        }
        put_signed(self.sealed_before.millis(), out);
        put(u64::from(self.removed_to.is_some()), out);
        put_signed(self.removed_to.map_or(0, |day| day.0), out);
        put(self.shards.len() as u64, out);
        for shard in &self.shards {
            [shard.epoch, shard.events, shard.dead].iter().for_each(|count| put(*count, out));
        }
        put(self.ends.len() as u64, out);
        for ((topic, partition), ends) in &self.ends {
            put_text(topic, out);
            put_signed(i64::from(*partition), out);
            put(ends.len() as u64, out);
            ends.iter().for_each(|end| put_signed(end.get(), out));
        }
        put(self.days.len() as u64, out);
        for (day, sums) in &self.days {
            [day.0, sums.rows, sums.events].iter().for_each(|count| put_signed(*count, out));
            out.extend_from_slice(&sums.hashes.to_le_bytes());
        }
        put(self.kept.len() as u64, out);
        for (key, span) in &self.kept {
            put(key.bytes().len() as u64, out);
            out.extend_from_slice(key.bytes());
            put_signed(span.first.millis(), out);
            put((span.last.millis() - span.first.millis()) as u64, out);
            put(span.count, out);
        }
        let packed = zstd::bulk::compress(&plain, ZSTD_LEVEL).expect("memory into memory");
        let mut bytes = Vec::with_capacity(HEADER_BYTES + packed.len());
        bytes.extend_from_slice(MAGIC);
        bytes.push(VERSION);
        bytes.extend_from_slice(&crc32fast::hash(&plain).to_le_bytes());
        bytes.extend_from_slice(&packed);
        bytes
    }

    /// Reads what [`Self::encode`] wrote; the error says why that is impossible.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < HEADER_BYTES || &bytes[..4] != MAGIC {
            return Err("what the last audit kept does not begin like a proof".to_owned());
        }
        if bytes[4] != VERSION {
            return Err(format!(
                "the last audit kept its proof in version {} of the format, this program reads \
                 {VERSION}",
                bytes[4]
            ));
        }
        let damaged = || "what the last audit kept is damaged".to_owned();
        let plain = zstd::stream::decode_all(&bytes[HEADER_BYTES..]).map_err(|_| damaged())?;
        let checksum = u32::from_le_bytes(bytes[5..9].try_into().expect("four bytes"));
        if crc32fast::hash(&plain) != checksum {
            return Err(damaged());
        }
        content(&plain).ok_or_else(damaged)
    }
}

fn content(mut plain: &[u8]) -> Option<Proof> {
    let rest = &mut plain;
    let created_at = take_text(rest)?;
    let history =
        JobHistory { created_at, losses: take(rest)?, lost: take(rest)?, replays: take(rest)? };
    let sealed_before = EventTime::from_millis(take_signed(rest)?);
    let removed = take(rest)? != 0;
    let day = Day(take_signed(rest)?);
    let mut shards = Vec::new();
    for _ in 0..take(rest)? {
        shards.push(Counted { epoch: take(rest)?, events: take(rest)?, dead: take(rest)? });
    }
    let mut ends = BTreeMap::new();
    for _ in 0..take(rest)? {
        let place = (take_text(rest)?, i32::try_from(take_signed(rest)?).ok()?);
        let mut of_place = Vec::new();
        for _ in 0..take(rest)? {
            of_place.push(Offset::new(take_signed(rest)?));
        }
        if of_place.len() != shards.len() {
            return None;
        }
        ends.insert(place, of_place);
    }
    let mut days = BTreeMap::new();
    for _ in 0..take(rest)? {
        let (day, rows, events) = (Day(take_signed(rest)?), take_signed(rest)?, take_signed(rest)?);
        let hashes = u128::from_le_bytes(take_bytes(rest, 16)?.try_into().ok()?);
        days.insert(day, Sums { rows, events, hashes });
    }
    let mut kept = Vec::new();
    for _ in 0..take(rest)? {
        let length = take(rest)?;
        let key = Key::from_bytes(take_bytes(rest, length)?)?;
        let first = EventTime::from_millis(take_signed(rest)?);
        let last = first.plus(i64::try_from(take(rest)?).ok()?);
        kept.push((key, Span { first, last, count: take(rest)? }));
    }
    let removed_to = removed.then_some(day);
    let proof = Proof { sealed_before, days, removed_to, kept, shards, ends, history };
    (rest.is_empty() && proof.kept.is_sorted()).then_some(proof)
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    put(text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}

fn take_bytes<'a>(rest: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (bytes, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = after;
    Some(bytes)
}

fn take_text(rest: &mut &[u8]) -> Option<String> {
    let length = take(rest)?;
    Some(std::str::from_utf8(take_bytes(rest, length)?).ok()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof() -> Proof {
        let at = EventTime::from_millis;
        let sums = Sums { rows: 3, events: 9, hashes: u128::MAX - 7 };
        Proof {
            sealed_before: at(-77),
            days: BTreeMap::from([(Day(-1), sums), (Day(20_000), Sums { rows: -1, ..sums })]),
            removed_to: Some(Day(-5)),
            kept: vec![
                (Key::new("a", "h"), Span { first: at(-5), last: at(1_700_000_000_000), count: 2 }),
                (Key::new("ü", ""), Span::event(at(4))),
            ],
            shards: vec![Counted { epoch: u64::MAX, events: 1, dead: 0 }; 2],
            ends: BTreeMap::from([(("t".to_owned(), 3), vec![Offset::new(5), Offset::new(0)])]),
            history: JobHistory { created_at: "2026".to_owned(), losses: 1, lost: 2, replays: 3 },
        }
    }

    #[test]
    fn a_proof_comes_back_as_it_was() {
        for proof in [proof(), Proof::of_nothing(128), Proof { removed_to: None, ..proof() }] {
            assert_eq!(Proof::decode(&proof.encode()), Ok(proof));
        }
    }

    #[test]
    fn no_flipped_bit_and_no_cut_passes_for_a_proof() {
        let bytes = proof().encode();
        for at in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            if let Ok(back) = Proof::decode(&damaged) {
                assert_eq!(back, proof(), "bit {at} changed the content unnoticed");
            }
        }
        for length in 0..bytes.len() {
            let why = Proof::decode(&bytes[..length]).expect_err("it is cut");
            let begins = length >= HEADER_BYTES;
            assert_eq!(why.contains("is damaged"), begins, "{length}: {why}");
            assert_eq!(why.contains("does not begin like a proof"), !begins, "{length}: {why}");
        }
        let mut newer = bytes;
        newer[4] = 9;
        let why = Proof::decode(&newer).expect_err("it is newer");
        assert!(why.contains("version 9 of the format, this program reads 1"), "{why}");
    }

    /// Both have the right checksum.
    #[test]
    fn sessions_out_of_order_and_bytes_left_over_are_damage() {
        let mut unsorted = proof();
        unsorted.kept.reverse();
        assert!(Proof::decode(&unsorted.encode()).is_err());
        let packed = &proof().encode()[HEADER_BYTES..];
        let mut plain = zstd::stream::decode_all(packed).expect("packed");
        assert_eq!(content(&plain), Some(proof()));
        plain.push(0);
        assert_eq!(content(&plain), None);
    }

    #[test]
    fn what_changes_the_past_cannot_be_continued_from() {
        use crate::plan::ShardProgress;
        let verified = Counted { epoch: 7, events: 1, dead: 0 };
        let proof = Proof { shards: vec![verified; 2], ..proof() };
        let now = |epoch| vec![ShardProgress { epoch, ..ShardProgress::default() }; 2];
        assert_eq!(proof.why_outdated(&proof.history, &now(7)), None);
        let history = || proof.history.clone();
        for (history, shards, why) in [
            (JobHistory { created_at: "2027".to_owned(), ..history() }, now(7), "created anew"),
            (history(), now(7)[..1].to_vec(), "created anew"),
            (JobHistory { losses: 2, ..history() }, now(7), "the loss of records was accepted"),
            (JobHistory { lost: 3, ..history() }, now(7), "the loss of records was accepted"),
            (JobHistory { replays: 4, ..history() }, now(7), "read other records"),
            (history(), now(6), "up to epoch 7, and has reached 6"),
        ] {
            let said = proof.why_outdated(&history, &shards).expect("it is outdated");
            assert!(said.contains(why), "{said}");
        }
    }
}
