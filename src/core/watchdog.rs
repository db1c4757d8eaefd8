//! Detects that something that should move has stopped, and decides when to report it. Pure.

/// How long something may stand still before it is reported.
const FIRST_MS: u64 = 30_000;
/// When it is reported the second time, and the interval of the reports after that.
const LATER_MS: [u64; 2] = [60_000, 600_000];

/// Watches one thing that should move.
#[derive(Clone, Debug, Default)]
pub struct Watchdog<T> {
    /// Its position, and since when.
    place: Option<(T, u64)>,
    /// How often it has been reported.
    reports: u32,
}

impl<T: PartialEq + Copy> Watchdog<T> {
    /// Notes the current position; `None` if it need not move. If a report is due, returns for how
    /// many milliseconds it has not moved.
    pub fn look(&mut self, place: Option<T>, now_ms: u64) -> Option<u64> {
        let same = self.place.filter(|(before, _)| Some(*before) == place);
        let Some((_, since_ms)) = same else {
            self.place = place.map(|place| (place, now_ms));
            self.reports = 0;
            return None;
        };
        let stands_ms = now_ms.saturating_sub(since_ms);
        let [second, every] = LATER_MS;
        let due_ms = match self.reports {
            0 => FIRST_MS,
            1 => second,
            reports => every * u64::from(reports - 1),
        };
        (stands_ms >= due_ms).then(|| {
            self.reports += 1;
            stands_ms
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_still_is_reported_sparsely() {
        let mut dog = Watchdog::default();
        let reports: Vec<u64> = (0..1_900).filter_map(|s| dog.look(Some(7), s * 1_000)).collect();
        assert_eq!(reports, [30_000, 60_000, 600_000, 1_200_000, 1_800_000]);
    }

    #[test]
    fn what_moves_or_need_not_is_not_reported() {
        let mut dog = Watchdog::default();
        for second in 0..100 {
            assert_eq!(dog.look(Some(second / 29), second * 1_000), None);
        }
        assert_eq!(dog.look(None, 200_000), None);
        assert_eq!(dog.look(Some(3), 300_000), None, "it starts over");
        assert_eq!(dog.look(Some(3), 330_000), Some(30_000));
    }
}
