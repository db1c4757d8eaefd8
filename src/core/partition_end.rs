//! What is known about the end of a partition, and as of when. Pure: no broker, and no clock of its
//! own.
//!
//! Whether a partition is silent decides which sessions close, so it has to be known, not guessed.
//! A broker says that there are no records at an offset or after it. By the time somebody acts on
//! that, it may be out of date: the process slept, the broker went silent, a connection broke. So
//! everything a broker says counts *as of* the latest moment at which it is certain to have been
//! true. An answer counts as of the moment its question was asked. The end of a partition counts as
//! of the moment the queue of fetched records was last empty, because it was fetched after that. A
//! statement stops counting when its connection fails, and also after a while. Times are
//! milliseconds of one clock that only goes forward.

use crate::binding::Offset;

/// The position in a partition, and what is known about the records after it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionEnd {
    position: Offset,
    /// For how long a broker's statement counts, in milliseconds.
    lifetime_ms: u64,
    /// When the queue of fetched records was last empty.
    emptied_ms: u64,
    /// Whether the end has come since the last record.
    ended: bool,
    /// The offset at which the partition ended, and as of when.
    known: Option<(Offset, u64)>,
    /// The end of the log, with records that nobody can read yet, and since when it has been beyond
    /// the position.
    log_end: Option<(Offset, u64)>,
}

impl PartitionEnd {
    /// Starts reading at `position`, now.
    pub fn new(position: Offset, lifetime_ms: u64, now_ms: u64) -> Self {
        PartitionEnd {
            position,
            lifetime_ms,
            emptied_ms: now_ms,
            ended: false,
            known: None,
            log_end: None,
        }
    }

    /// The offset of the next record to read.
    pub fn position(&self) -> Offset {
        self.position
    }

    /// Notes that a record was read.
    pub fn record(&mut self, offset: Offset) {
        self.position = offset.next();
        self.ended = false;
    }

    /// Notes that the end of the partition was taken from the queue. Transaction markers may lie
    /// between the last record and `offset`, so the position moves past them.
    pub fn end(&mut self, offset: Offset) {
        self.position = self.position.max(offset);
        self.ended = true;
        self.learn(offset, self.emptied_ms);
    }

    /// Notes that the queue of fetched records is empty: whatever comes out of it later is fetched
    /// later.
    pub fn emptied(&mut self, now_ms: u64) {
        self.emptied_ms = now_ms;
    }

    /// Notes a broker's answer to the question, asked at `asked_ms`, where the partition ends.
    pub fn answer(&mut self, end: Offset, asked_ms: u64) {
        self.learn(end, asked_ms);
    }

    /// Notes where the log ended at some moment up to `now_ms`, records included that nobody can
    /// read yet.
    pub fn log_ended(&mut self, end: Offset, now_ms: u64) {
        let since_ms = match self.log_end {
            Some((before, since_ms)) if before > self.position => since_ms,
            _ => now_ms,
        };
        self.log_end = Some((end, since_ms));
    }

    /// Where the log ends, if records after the position are known to be held back, because they
    /// belong to an open transaction or come after its beginning: the log went on when a broker was
    /// last asked, and even so nothing could be read at the position.
    pub fn held_back_to(&self, now_ms: u64, doubted_ms: Option<u64>) -> Option<Offset> {
        self.quiet_ms_ago(now_ms, doubted_ms)?;
        let (end, since_ms) = self.log_end?;
        let (_, as_of_ms) = self.known?;
        (end > self.position && as_of_ms > since_ms).then_some(end)
    }

    /// Keeps the latest statement.
    fn learn(&mut self, end: Offset, as_of_ms: u64) {
        if self.known.is_none_or(|(_, known_ms)| as_of_ms >= known_ms) {
            self.known = Some((end, as_of_ms));
        }
    }

    /// Whether the end has come since the last record. It says nothing about the present.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// How long ago, at most, there were no records at or after the position; `None` if that is not
    /// known. Statements made up to `last_failure_ms`, when a connection last failed, do not count.
    pub fn quiet_ms_ago(&self, now_ms: u64, last_failure_ms: Option<u64>) -> Option<u64> {
        let (end, as_of_ms) = self.known?;
        let certain =
            end <= self.position && last_failure_ms.is_none_or(|failure| as_of_ms > failure);
        let ago = now_ms.saturating_sub(as_of_ms);
        (certain && ago <= self.lifetime_ms).then_some(ago)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::shared::rng::Rng;

    const LIFETIME_MS: u64 = 1_000;

    /// A position, reached at time 0.
    fn at(position: i64) -> PartitionEnd {
        PartitionEnd::new(Offset::new(position), LIFETIME_MS, 0)
    }

    fn offset(offset: i64) -> Offset {
        Offset::new(offset)
    }

    #[test]
    fn an_end_counts_as_of_when_the_queue_was_last_empty() {
        let mut end = at(5);
        end.emptied(100);
        // It stayed in the queue while the process slept.
        end.end(offset(5));
        assert_eq!(end.quiet_ms_ago(700, None), Some(600));
        assert_eq!(end.quiet_ms_ago(90_000, None), None, "a minute later nobody knows");
        end.emptied(90_000);
        assert_eq!(end.quiet_ms_ago(90_000, None), None, "an empty queue is not an end");
    }

    #[test]
    fn an_answer_counts_as_of_its_question() {
        let mut end = at(5);
        end.answer(offset(7), 100);
        assert_eq!(end.quiet_ms_ago(110, None), None, "there are two records after the position");
        end.record(offset(5));
        end.record(offset(6));
        assert_eq!(end.quiet_ms_ago(200, None), Some(100));
        end.answer(offset(9), 150);
        assert_eq!(end.quiet_ms_ago(200, None), None, "and now two others");
        end.answer(offset(7), 120);
        assert_eq!(end.quiet_ms_ago(200, None), None, "the older answer comes later");
    }

    #[test]
    fn records_are_held_back_only_if_a_later_answer_still_denies_them() {
        let mut end = at(5);
        end.answer(offset(5), 100);
        end.log_ended(offset(9), 110);
        assert_eq!(end.held_back_to(120, None), None, "they may have come after the answer");
        end.answer(offset(5), 110);
        assert_eq!(end.held_back_to(120, None), None, "or within the same millisecond");
        end.answer(offset(5), 130);
        assert_eq!(end.held_back_to(140, None), Some(offset(9)));
        end.log_ended(offset(12), 150);
        assert_eq!(end.held_back_to(160, None), Some(offset(12)), "still held back");
        assert_eq!(end.held_back_to(130 + LIFETIME_MS + 1, None), None, "out of date");
        (5..12).for_each(|at| end.record(offset(at)));
        end.answer(offset(12), 200);
        assert_eq!(end.held_back_to(210, None), None, "all is read");
        end.log_ended(offset(15), 220);
        assert_eq!(end.held_back_to(230, None), None, "the answer is older");
    }

    #[test]
    fn a_report_from_before_a_failure_does_not_count() {
        let mut end = at(5);
        end.answer(offset(5), 100);
        assert_eq!(end.quiet_ms_ago(150, Some(99)), Some(50));
        assert_eq!(end.quiet_ms_ago(150, Some(100)), None);
        end.answer(offset(5), 140);
        assert_eq!(end.quiet_ms_ago(150, Some(100)), Some(10));
    }

    #[test]
    fn markers_after_the_last_record_are_passed() {
        let mut end = at(5);
        end.record(offset(5));
        assert!(!end.has_ended());
        end.end(offset(8));
        assert_eq!((end.position(), end.has_ended()), (offset(8), true));
        end.end(offset(7));
        assert_eq!(end.position(), offset(8), "a replica may lag");
        end.record(offset(8));
        assert!(!end.has_ended());
    }

    /// A partition that grows, a queue between it and its reader, answers in transit, and a process
    /// that sleeps: whatever happens, every claim was true at its time.
    #[test]
    fn what_is_claimed_was_so() {
        let mut claims = 0;
        for seed in 1..400_u64 {
            let mut rng = Rng::new(seed);
            // The end of the partition at each millisecond.
            let mut ends = vec![3];
            let mut queue: VecDeque<(i64, bool)> = VecDeque::new();
            let (mut fetched, mut is_reported) = (3, false);
            let mut asked: Vec<(u64, i64)> = Vec::new();
            let mut end = at(3);
            for _ in 0..200 {
                let slept = if rng.one_in(20) { rng.below(2_000) } else { rng.below(3) };
                for _ in 0..slept {
                    let grows = if rng.one_in(40) { 1 + rng.below(3) as i64 } else { 0 };
                    ends.push(ends[ends.len() - 1] + grows);
                }
                let now_ms = ends.len() as u64 - 1;
                let last = ends[now_ms as usize];
                match rng.below(5) {
                    // The broker answers a fetch.
                    0 if fetched < last => {
                        queue.extend((fetched..last).map(|at| (at, false)));
                        (fetched, is_reported) = (last, false);
                    }
                    0 if !is_reported => {
                        queue.push_back((last, true));
                        is_reported = true;
                    }
                    1 => asked.push((now_ms, last)),
                    2 if !asked.is_empty() => {
                        let (asked_ms, last) =
                            asked.swap_remove(rng.below(asked.len() as u64) as usize);
                        end.answer(offset(last), asked_ms);
                    }
                    3 => match queue.pop_front() {
                        Some((at, true)) => end.end(offset(at)),
                        Some((at, false)) => end.record(offset(at)),
                        None => end.emptied(now_ms),
                    },
                    _ => {}
                }
                if let Some(ago) = end.quiet_ms_ago(now_ms, None) {
                    claims += 1;
                    let there = ends[(now_ms - ago) as usize];
                    assert!(
                        offset(there) <= end.position(),
                        "seed {seed}: {ago} ms ago it was {there}"
                    );
                }
            }
        }
        assert!(claims > 1_000, "{claims}");
    }
}
