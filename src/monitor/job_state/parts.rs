//! The partitions as they are shown, and which of them holds the others back.

use crate::monitor::sample::{PartSample, PartState};

/// A partition holds the others back if its promise is this much older than that of the next.
const HOLDS_BACK_MS: i64 = 10_000;

/// Records that have been unread for longer than this are a backlog.
const BACKLOG_LAG_MS: u64 = 3_000;

/// A partition as it is shown.
pub struct PartRow {
    pub id: String,
    pub holds_back: bool,
    pub since_ms: u64,
    pub rate: Option<f64>,
    pub sample: PartSample,
}

/// The partition that holds the watermark back: the one with the oldest promise, if the others are
/// well ahead of it, or if no broker answers for it.
pub fn holder<'a>(
    all: &[&'a PartSample],
    at_ms: u64,
    out_of_orderness_ms: i64,
) -> Option<&'a PartSample> {
    let mut active: Vec<&PartSample> =
        all.iter().copied().filter(|part| part.state.is_active()).collect();
    active.sort_by_key(|part| part.promise_ms.unwrap_or(i64::MIN));
    let first = *active.first()?;
    let far = HOLDS_BACK_MS.max(out_of_orderness_ms);
    let older_than =
        |promise: i64| first.promise_ms.is_none_or(|own| promise.saturating_sub(own) > far);
    match active.get(1) {
        Some(next) => next.promise_ms.is_some_and(older_than).then_some(first),
        None => {
            let now = at_ms as i64 - out_of_orderness_ms;
            // At a start the end of a partition is not known yet; an open transaction is.
            let known = first.promise_ms.is_some() || first.state == PartState::HeldUp;
            (hangs(first) && known && older_than(now)).then_some(first)
        }
    }
}

/// Whether nobody can say when the partition moves on. Even a process that knows only its own
/// partitions can tell that.
pub fn hangs(part: &PartSample) -> bool {
    matches!(part.state, PartState::Waiting | PartState::HeldUp)
}

/// Whether the partition is behind the others only because its records have yet to be read.
pub fn is_backlog(part: &PartSample, rate: f64) -> bool {
    part.waiting.is_some_and(|waiting| waiting > 0)
        && part.lag_ms.is_some_and(|ms| ms > BACKLOG_LAG_MS)
        && rate > 0.0
}

/// An explanation of a partition's state, if it needs one.
pub fn state_text(part: &PartSample) -> Option<String> {
    match part.state {
        PartState::Waiting => {
            Some("nobody knows where it ends (no answer from the broker, or no leader)".to_owned())
        }
        PartState::HeldUp => Some(format!(
            "an open transaction holds back offsets {} up to {}",
            part.offset,
            part.held_to.unwrap_or(part.offset)
        )),
        PartState::Paused => Some("it waits for slower partitions (--max-drift)".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: i32, promise_ms: Option<i64>, state: PartState) -> PartSample {
        PartSample { topic: "t".to_owned(), number, promise_ms, state, ..PartSample::default() }
    }

    fn holds(parts: &[PartSample]) -> Option<i32> {
        let all: Vec<&PartSample> = parts.iter().collect();
        holder(&all, 1_000_000, 15_000).map(|part| part.number)
    }

    #[test]
    fn who_is_well_behind_all_other_active_partitions_holds_them_back() {
        use PartState::{HeldUp, Idle, Reading, Waiting};
        let ahead = || part(1, Some(900_000), Reading);
        assert_eq!(holds(&[part(0, Some(800_000), Reading), ahead()]), Some(0));
        assert_eq!(holds(&[part(0, Some(890_000), Reading), ahead()]), None);
        assert_eq!(holds(&[part(0, Some(800_000), Idle), ahead()]), None);
        assert_eq!(holds(&[part(0, None, Reading), ahead()]), Some(0));
        assert_eq!(holds(&[part(0, None, Reading)]), None);
        assert_eq!(holds(&[part(0, None, Waiting)]), None);
        assert_eq!(holds(&[part(0, None, HeldUp)]), Some(0));
        assert_eq!(holds(&[part(0, None, Reading), part(1, None, Reading)]), None);
        assert_eq!(holds(&[part(0, Some(800_000), Reading), part(1, Some(1), Idle)]), None);
        assert_eq!(holds(&[part(0, Some(800_000), Waiting), part(1, Some(1), Idle)]), Some(0));
    }

    #[test]
    fn a_partition_that_is_being_read_is_a_backlog() {
        let with =
            |waiting, lag_ms| PartSample { waiting, lag_ms, ..part(0, None, PartState::Reading) };
        assert!(is_backlog(&with(Some(400_000), Some(60_000)), 9_000.0));
        assert!(!is_backlog(&with(Some(400_000), Some(60_000)), 0.0), "it cannot be read");
        assert!(!is_backlog(&with(Some(3), Some(40)), 9.0), "what is old are its events");
        assert!(!is_backlog(&with(Some(0), Some(0)), 9.0));
        assert!(!is_backlog(&with(None, None), 0.0));
    }
}
