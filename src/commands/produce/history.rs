//! A history for an empty topic: generated events up to now, to be followed by live ones.
//!
//! With it, sessions close and rows appear as soon as a job reads the topic.

use crate::commands::produce::generate::{GeneratedRecord, Generator, Recipe};

/// How much history to write.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct HistoryPlan {
    pub length_ms: i64,
    /// Events a second of event time.
    pub density: f64,
}

impl HistoryPlan {
    /// The recipe of a history that ends at `now_ms`.
    pub fn recipe(&self, live: &Recipe, now_ms: i64) -> Recipe {
        Recipe {
            rate: self.density,
            start_ms: now_ms - live.disorder_ms - self.length_ms,
            ..live.clone()
        }
    }

    /// The records of the history, in order of arrival. It ends where live events begin by then, at
    /// the clock less `disorder_ms`. The clock is read for every record, because writing them takes
    /// time as well.
    ///
    /// # Errors
    /// Those of [`Recipe::check`].
    pub fn records(
        &self,
        live: &Recipe,
        now_ms: impl Fn() -> i64,
    ) -> Result<impl Iterator<Item = GeneratedRecord>, String> {
        let disorder_ms = live.disorder_ms;
        let generator = Generator::new(self.recipe(live, now_ms()))?;
        // The time of a bad record may be what is wrong with it.
        Ok(generator.take_while(move |record| {
            let time_ms = record.event_time_ms.filter(|_| record.bad.is_none());
            time_ms.is_none_or(|time_ms| time_ms <= now_ms() - disorder_ms)
        }))
    }
}

/// The live events at `now_ms`, after a history or without one. Events arrive around their time;
/// those that arrive early must not be in the future.
pub fn live(recipe: &Recipe, now_ms: i64) -> Recipe {
    Recipe { start_ms: now_ms - recipe.disorder_ms, ..recipe.clone() }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const START_MS: i64 = 1_700_000_000_000;

    fn times(records: impl Iterator<Item = GeneratedRecord>) -> Vec<i64> {
        let good = records.filter(|record| record.bad.is_none());
        good.map(|record| record.event_time_ms.expect("good events have a time")).collect()
    }

    #[test]
    fn the_past_ends_where_live_events_begin_although_the_clock_goes_on() {
        for (disorder_ms, bad) in [(0, 0.0), (5_000, 0.0), (5_000, 0.1)] {
            let recipe =
                Recipe { disorder_ms, bad, rate: 200.0, visitors: 1_000, ..Recipe::default() };
            let history = HistoryPlan { length_ms: 3_600_000, density: 20.0 };
            // A millisecond passes for every 50 records: 3.6 s for three quarters of 72,000.
            let asked = Cell::new(0_i64);
            let clock = || {
                asked.set(asked.get() + 1);
                START_MS + asked.get() / 50
            };
            let past = times(history.records(&recipe, &clock).expect("a good recipe"));
            let now_ms = clock();
            assert!(now_ms > START_MS + 1_000, "the clock did not go on");
            let made = past.len() as f64 / (72_000.0 * (1.0 - bad));
            assert!((0.9..1.1).contains(&made), "{} records", past.len());
            let first = past.iter().min().expect("records");
            assert!((first - (START_MS - disorder_ms - 3_600_000)).abs() < 1_000, "{first}");

            let future = live(&recipe, now_ms);
            let number = Some(2_000);
            let future = Generator::new(Recipe { number, ..future }).expect("a good recipe");
            let mut all = [past, times(future)].concat();
            assert!(all.iter().all(|time_ms| *time_ms <= now_ms + 12_000));
            // 20 a second and, at the end, some that were held back when the history ended.
            all.sort_unstable();
            let widest = all.windows(2).map(|pair| pair[1] - pair[0]).max().expect("pairs");
            assert!(widest < 2_000, "nothing for {widest} ms");
        }
    }

    #[test]
    fn the_past_is_as_disorderly_as_live_events() {
        let recipe = Recipe { disorder_ms: 3_000, rate: 10.0, ..Recipe::default() };
        let history = HistoryPlan { length_ms: 600_000, density: 50.0 };
        let past = times(history.records(&recipe, || START_MS).expect("a good recipe"));
        let mut newest = i64::MIN;
        let ages = past.iter().map(|time_ms| {
            newest = newest.max(*time_ms);
            newest - time_ms
        });
        let oldest = ages.max().expect("records");
        assert!((2_500..=3_000).contains(&oldest), "{oldest} ms behind");
    }
}
