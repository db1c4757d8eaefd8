//! What commands do to a job that has stopped: `forget` and `redrive`, with what `src/core` decides
//! for both, on the rows, snapshots and counts of this store instead of SQL.
//!
//! What was done is also kept for the checks, in words that the commands do not use: which offsets
//! of whom were forgotten, and which records were merged when. `Model` says what they should be.

use sessionizer::ledger::decode_again;
use sessionizer_core::moves::{Moves, counted_in};
use sessionizer_core::session::again::{LastEpoch, again, part_of};
use sessionizer_core::visitor::Visitor;

use super::*;
use crate::topic::key;

/// Where a record is.
type Place = (Partition, Offset);

/// What was asked of a job that had stopped.
#[derive(Clone, Debug)]
pub(super) enum Request {
    Forget(Visitor),
    Redrive { reasons: Vec<Reason>, late: Late, latest: EventTime },
}

/// A visitor that was forgotten, and up to which offset of each partition.
#[derive(Clone, Debug)]
pub(super) struct Forgotten {
    visitor: Visitor,
    before: BTreeMap<Partition, Offset>,
}

impl Forgotten {
    pub fn has(&self, key: &Key, (partition, offset): Place) -> bool {
        let (ip, host) = key.parts();
        let own = self.visitor.host.as_ref().is_none_or(|own| own == host);
        own && self.visitor.ip == ip && self.before.get(&partition).is_some_and(|end| offset < *end)
    }
}

impl Store {
    /// The epoch at which the job has stopped cleanly, if it has.
    fn stopped_at(&self) -> Option<Epoch> {
        let epoch = self.progress[0].epoch;
        let all = self.progress.iter().all(|shard| shard.epoch == epoch)
            && self.snapshots.iter().all(|(of, _)| *of == epoch)
            && self.epochs.keys().next_back() == Some(&epoch);
        (all && epoch > 0).then_some(epoch)
    }

    /// Forgets a visitor, if the job has stopped cleanly. Returns how many records that removes, and how
    /// many of them were in open sessions.
    pub fn forget(&mut self, visitor: &Visitor) -> Option<(u64, u64)> {
        let epoch = self.stopped_at()?;
        self.take_fence();
        let shards = self.progress.len() as u32;
        let mut moves = Moves::new(shards);
        for (key, rows) in &mut self.table {
            if visitor.has_key(key.bytes()) {
                let records = rows.drain(..).map(|row| row.count).sum::<u64>();
                moves.forget_row(key, records as i64);
            }
        }
        for shard in visitor.shards(shards).map(Shard) {
            let table = self.stopped_shard(shard);
            if let Some(left) = visitor.removed_from(&table) {
                moves.forget_open(shard, (table.open_records() - left.open_records()) as i64);
                if !self.breaks(Sabotage::ForgottenStaysOpen) {
                    self.snapshots[shard.0 as usize].1 = snapshot::encode(&left);
                }
            }
        }
        let (mut blanked, mut cut) = (0, 0);
        for (place, mut letter) in std::mem::take(&mut self.dead_letters) {
            let key = decode_again(letter.payload.as_deref()).ok().map(|(key, _)| key);
            if let Some(key) = key.filter(|key| visitor.has_key(key.bytes())) {
                moves.forget_letter(self.counted_in(&letter, &key), &key, 1);
                self.dropped.remove(&place);
                continue;
            }
            if is_cut(&letter) {
                if mentions(&letter, visitor) {
                    letter.payload = None;
                    blanked += 1;
                } else {
                    cut += 1;
                }
            }
            self.dead_letters.insert(place, letter);
        }
        let ends = self.last_bindings().into_iter().map(|(at, binding)| (at, binding.end));
        let forgotten = Forgotten { visitor: visitor.clone(), before: ends.collect() };
        let records = moves.deltas().iter().map(|(_, delta)| delta.forgotten).sum::<i64>();
        if records + cut > 0 && !self.breaks(Sabotage::ForgottenOffsetsNotNoted) {
            self.noted.push(forgotten.clone());
        }
        self.forgotten.push(forgotten);
        self.blanked += blanked;
        self.requests.push((epoch, Request::Forget(visitor.clone())));
        self.count(epoch, &moves);
        self.check();
        self.audit();
        let open = moves.deltas().iter().map(|(_, delta)| -delta.open).sum::<i64>();
        Some((records.unsigned_abs(), open.unsigned_abs()))
    }

    /// Processes the dead letters of some reasons again, if the job has stopped cleanly. Returns how
    /// many of them are in sessions now.
    pub fn redrive(&mut self, reasons: &[Reason], rules: RecordRules, now_ms: u64) -> Option<u64> {
        let epoch = self.stopped_at()?;
        self.take_fence();
        let latest = rules.latest(now_ms);
        let watermark = self.epochs[&epoch].watermark;
        let bindings = self.last_bindings();
        let drained = bindings.values().all(|binding| binding.status == Status::Ended);
        let close_before = if drained { EventTime::FOREVER } else { watermark };
        let last = LastEpoch { watermark, close_before, late: rules.late };
        let mut moves = Moves::new(self.progress.len() as u32);
        let (mut closed, mut merged) = (Vec::new(), 0);
        for (shard, letters) in self.good_letters(reasons, latest) {
            let mut table = self.stopped_shard(shard);
            let times = if self.breaks(Sabotage::RedrivenMergedTwice) { 2 } else { 1 };
            let events = letters.iter().flat_map(|(_, key, span)| vec![(key, *span); times]);
            let again = again(&mut table, last, events, []);
            self.snapshots[shard.0 as usize].1 = snapshot::encode(&table);
            let records: u64 = again.closed.iter().map(|closed| closed.span.count).sum();
            // A broken rule counts each event once: the sessions are wrong, not the counts.
            let times = times as u64;
            moves.merge(shard, (again.open / times) as i64, (records / times) as i64);
            let is_dropped = part_of(&again.dropped);
            for (place, key, _) in letters.iter().filter(|good| !is_dropped(&good.1, good.2)) {
                let letter = &self.dead_letters[place];
                moves.redrive_letter(self.counted_in(letter, key), 1);
                self.read_again += u64::from(is_cut(letter));
                if !self.breaks(Sabotage::RedrivenLetterStays) {
                    self.dead_letters.remove(place);
                }
                self.dropped.remove(place);
                self.redriven.entry(*place).or_insert(epoch);
                merged += 1;
            }
            closed.extend(again.closed);
        }
        self.write_rows(&closed);
        let request = Request::Redrive { reasons: reasons.to_vec(), late: rules.late, latest };
        self.requests.push((epoch, request));
        self.count(epoch, &moves);
        self.check();
        self.audit();
        Some(merged)
    }

    /// The dead letters of some reasons that are events now, by the shard of their key.
    fn good_letters(
        &self,
        reasons: &[Reason],
        latest: EventTime,
    ) -> BTreeMap<Shard, Vec<(Place, Key, Span)>> {
        let mut good: BTreeMap<Shard, Vec<(Place, Key, Span)>> = BTreeMap::new();
        for (place, letter) in &self.dead_letters {
            if reasons.contains(&letter.reason)
                && let Some((key, time)) = self.event_of(*place, letter)
                && time <= latest
            {
                let shard = Shard::of(stable_hash(key.bytes()), self.progress.len() as u32);
                good.entry(shard).or_default().push((*place, key, Span::event(time)));
            }
        }
        good
    }

    /// The event of a dead letter, if it is one now. A payload that was cut is read again, unless
    /// its visitor was forgotten; one that was removed is not.
    fn event_of(&self, place: Place, letter: &DeadLetter) -> Option<(Key, EventTime)> {
        let kept = letter.payload.as_ref();
        if kept.is_none() && letter.payload_bytes > 0 {
            return None;
        }
        if !is_cut(letter) || self.breaks(Sabotage::CutLettersNotReadAgain) {
            return decode_again(letter.payload.as_deref()).ok();
        }
        let topic = self.topic.lock().expect("one at a time");
        let entries = &topic.logs[place.0.number as usize].entries;
        let entry = entries.iter().find(|entry| entry.offset == place.1)?;
        let whole = entry.payload.as_deref()?;
        assert!(whole.starts_with(kept.map_or(&[][..], |kept| kept)), "{letter:?}");
        let (key, time) = decode_again(Some(whole)).ok()?;
        let forgotten = self.noted.iter().any(|noted| noted.has(&key, place));
        let is_merged = !forgotten || self.breaks(Sabotage::ForgottenLettersMerged);
        is_merged.then_some((key, time))
    }

    fn stopped_shard(&self, shard: Shard) -> SessionTable {
        let (bytes, shards) = (&self.snapshots[shard.0 as usize].1, self.progress.len() as u32);
        snapshot::decode_of(bytes, gap(), shard, shards).expect("as it was written")
    }

    /// The shard that counts a dead letter, which is the one that the job has sent it to.
    fn counted_in(&self, letter: &DeadLetter, key: &Key) -> Shard {
        let position = Some(("t", letter.partition.number, letter.offset));
        let by_key = letter.reason == Reason::Late;
        let shard = counted_in(by_key, position, key, self.progress.len() as u32);
        assert_eq!(shard, letter.shard, "another shard counts the dead letter {letter:?}");
        shard
    }

    /// Changes the counts of the shards and of the epoch at which the job has stopped.
    fn count(&mut self, epoch: Epoch, moves: &Moves) {
        let add = |count: &mut u64, more: i64| {
            *count = count.checked_add_signed(more).expect("no count falls below zero");
        };
        let totals = self.epochs.get_mut(&epoch).expect("it has stopped there");
        for (shard, delta) in moves.deltas() {
            let progress = &mut self.progress[shard.0 as usize];
            for (shard, all, more) in [
                (&mut progress.closed, &mut totals.closed, delta.closed),
                (&mut progress.open, &mut totals.open, delta.open),
                (&mut progress.dead, &mut totals.dead, delta.dead),
            ] {
                add(shard, more);
                add(all, more);
            }
            add(&mut self.forgotten_records[shard.0 as usize], delta.forgotten);
        }
        // Older totals would no longer add up.
        self.epochs = self.epochs.split_off(&epoch);
    }

    fn last_bindings(&self) -> BTreeMap<Partition, Binding> {
        self.bindings.iter().map(|((_, partition), binding)| (*partition, *binding)).collect()
    }

    /// Whether an event was read before its visitor was forgotten.
    pub(super) fn is_forgotten(&self, name: &str, place: Place) -> bool {
        !self.forgotten.is_empty() && {
            let key = key(name);
            self.forgotten.iter().any(|forgotten| forgotten.has(&key, place))
        }
    }

    /// An audit. If the job has stopped cleanly, rows and open sessions together are the batch
    /// answer, and all counts are right.
    pub fn audit(&self) {
        self.check_forgotten();
        if self.stopped_at().is_none() {
            return;
        }
        let (mut found, mut open) = (self.table.clone(), 0);
        for shard in (0..self.progress.len() as u32).map(Shard) {
            let table = self.stopped_shard(shard);
            open += table.open_records();
            for session in table.open() {
                let key = Key::from_encoded(session.key);
                found.entry(key).or_default().push(session.span);
            }
        }
        for spans in found.values_mut() {
            *spans = merge_touching(std::mem::take(spans), gap());
        }
        assert_eq!(sessions_of(&found), self.answer(), "an audit finds other sessions");
        let counted = |of: fn(&ShardProgress) -> u64| self.progress.iter().map(of).sum::<u64>();
        assert_eq!(open, counted(|p| p.open), "an audit finds other open sessions");
        assert_eq!(self.dead(), counted(|p| p.dead), "an audit finds other dead letters");
    }

    /// As many records of each shard's keys must be forgotten as are counted.
    fn check_forgotten(&self) {
        let topic = self.topic.lock().expect("one at a time");
        let mut found = vec![0; self.progress.len()];
        for (partition, last) in self.last_bindings() {
            let read = topic.logs[partition.number as usize].entries.iter();
            for entry in read.take_while(|entry| entry.offset < last.end) {
                let place = (partition, entry.offset);
                if self.dead_letters.contains_key(&place) {
                    continue; // Nobody could tell whose it was.
                }
                if let Ok((key, _)) = decode_again(entry.payload.as_deref())
                    && self.noted.iter().any(|noted| noted.has(&key, place))
                {
                    let hash = stable_hash(key.bytes());
                    found[Shard::of(hash, self.progress.len() as u32).0 as usize] += 1;
                }
            }
        }
        assert_eq!(found, self.forgotten_records, "an audit finds other records forgotten");
    }
}

/// Whether only the beginning of the payload was kept, or nothing.
fn is_cut(letter: &DeadLetter) -> bool {
    letter.payload.as_ref().map_or(0, |kept| kept.len() as u64) < letter.payload_bytes
}

/// Whether the part of a payload that was kept says whose it is.
fn mentions(letter: &DeadLetter, visitor: &Visitor) -> bool {
    let kept = String::from_utf8_lossy(letter.payload.as_deref().unwrap_or_default());
    let has = |text: &String| kept.contains(&format!("\"{text}\""));
    has(&visitor.ip) && visitor.host.as_ref().is_none_or(has)
}

/// What a job and its commands should do with events that are not in sessions: by what is bound and
/// what was requested, and nothing else.
#[derive(Default)]
pub(super) struct Model<'a> {
    /// The sessions that are open.
    pub open: BTreeMap<&'a str, Vec<Span>>,
    /// The events that are dead letters, because they came too late or from the future.
    pub letters: BTreeMap<Place, (Reason, &'a str, EventTime)>,
    pub redriven: BTreeMap<Place, Epoch>,
    /// Whether payloads are cut, so that the dead letters of a forgotten visitor stay, and which
    /// those are.
    pub cuts: bool,
    pub lost: BTreeSet<Place>,
}

impl<'a> Model<'a> {
    /// An event becomes a dead letter.
    pub fn letter(&mut self, place: Place, reason: Reason, name: &'a str, time: EventTime) {
        self.letters.insert(place, (reason, name, time));
    }

    /// After everything of this epoch has happened, somebody asks for something.
    pub fn request(
        &mut self,
        request: &Request,
        epoch: Epoch,
        (watermark, close_before): (EventTime, EventTime),
    ) {
        match request {
            Request::Forget(visitor) => {
                let is_own = |name: &str| visitor.has_key(key(name).bytes());
                self.open.retain(|name, _| !is_own(name));
                let own =
                    |(place, letter): (&Place, &(_, &str, _))| is_own(letter.1).then_some(*place);
                match self.cuts {
                    true => self.lost.extend(self.letters.iter().filter_map(own)),
                    false => self.letters.retain(|_, (_, name, _)| !is_own(name)),
                }
            }
            Request::Redrive { reasons, late, latest } => {
                let is_good = |letter: &(Reason, &str, EventTime)| {
                    reasons.contains(&letter.0) && letter.2 <= *latest
                };
                let (taken, left): (BTreeMap<_, _>, BTreeMap<_, _>) = self
                    .letters
                    .iter()
                    .partition(|(place, letter)| is_good(letter) && !self.lost.contains(place));
                self.letters = left;
                for (_, name, time) in taken.values() {
                    self.open.entry(name).or_default().push(Span::event(*time));
                }
                let ended = |span: &Span, before| gap().end_after(span.last) < before;
                for (name, spans) in &mut self.open {
                    *spans = merge_touching(std::mem::take(spans), gap());
                    let dropped =
                        spans.extract_if(.., |span| *late == Late::Drop && ended(span, watermark));
                    for span in dropped {
                        for (place, letter) in &taken {
                            if letter.1 == *name && span.first <= letter.2 && letter.2 <= span.last
                            {
                                self.letters.insert(*place, *letter);
                            }
                        }
                    }
                    spans.retain(|span| !ended(span, close_before));
                }
                for (place, _) in taken {
                    if !self.letters.contains_key(&place) {
                        self.redriven.insert(place, epoch);
                    }
                }
            }
        }
    }
}
