//! Generated traffic: the same recipe gives the same bytes, for ever and on every machine.
//!
//! ```text
//!   visits.rs          arrivals.rs        here                       web.rs, odd.rs, bad.rs
//!   who looks at  -->  held back for  --> good, straggler or bad --> JSON, plain, odd or spoiled
//!   which page when    disorder_ms
//! ```
//!
//! One page view is one record, whatever happens to it: ratios change what a record says, never how
//! many records there are or how fast time passes. Visits, disorder and fate draw from separate
//! random streams, so that the same people look at the same pages with and without bad records.
//! Memory is bounded by the visits that run at once and the views held back, however many events
//! and visitors there are. This module knows neither Kafka nor the clock.

mod arrivals;
mod bad;
mod calendar;
mod fields;
mod odd;
pub mod random;
mod recipe;
#[cfg(test)]
mod tests;
mod visits;
mod web;

use arrivals::Arrivals;
pub use bad::BadKind;
use odd::OddKind;
use random::Random;
pub use recipe::{MAX_HOST_BYTES, Recipe};
use visits::{PageView, Visits};

const NS_PER_MS: u64 = 1_000_000;

/// One message for the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedRecord {
    /// The visitor's address, so that a visitor's events share a partition.
    pub key: Option<String>,
    /// The event as JSON, or the payload of a bad record; `None` is a tombstone.
    pub payload: Option<Vec<u8>>,
    /// The event time in the payload, in milliseconds since 1970, if it can be read.
    pub event_time_ms: Option<i64>,
    /// What is wrong with it; `None` is a good event.
    pub bad: Option<BadKind>,
}

/// Generates the records of a recipe, in order of arrival.
pub struct Generator {
    recipe: Recipe,
    arrivals: Arrivals,
    /// Decides what becomes of a view.
    fate: Random,
    made: u64,
    made_bad: usize,
    made_odd: usize,
    /// The latest time of a view so far.
    newest_ns: u64,
}

impl Generator {
    /// A generator at the start of `recipe`.
    ///
    /// # Errors
    /// Those of [`Recipe::check`].
    pub fn new(recipe: Recipe) -> Result<Self, String> {
        recipe.check()?;
        let [visits, disorder, fate] = [0, 1, 2].map(|stream| Random::new(recipe.seed, stream));
        let visits = Visits::new(&recipe, visits);
        let disorder_ms = recipe.disorder_ms.unsigned_abs();
        let arrivals = Arrivals::new(visits, disorder_ms, recipe.rate, disorder);
        Ok(Generator { recipe, arrivals, fate, made: 0, made_bad: 0, made_odd: 0, newest_ns: 0 })
    }

    /// Makes the record of a view that has just arrived.
    fn record(&mut self, mut view: PageView) -> GeneratedRecord {
        let unit = self.fate.unit();
        let bad = unit < self.recipe.bad;
        let mut event_time_ms = self.recipe.start_ms + (view.at_ns / NS_PER_MS) as i64;
        if !bad {
            if unit < self.recipe.bad + self.recipe.late {
                (view, event_time_ms) = self.straggler(view);
            }
            self.newest_ns = self.newest_ns.max(view.at_ns);
        }
        let ip = web::ip(view.visitor);
        let host = &self.recipe.hosts[usize::from(view.host)];
        let event = web::event(&view, host, &ip, event_time_ms);
        if bad {
            let kind = BadKind::ALL[self.made_bad % BadKind::ALL.len()];
            self.made_bad += 1;
            let (payload, event_time_ms) = bad::spoil(&event, kind, &mut self.fate);
            return GeneratedRecord { key: Some(ip), payload, event_time_ms, bad: Some(kind) };
        }
        let payload = if self.fate.chance(self.recipe.odd) {
            let kind = OddKind::ALL[self.made_odd % OddKind::ALL.len()];
            self.made_odd += 1;
            odd::dress(&event, kind, &mut self.fate)
        } else {
            event.to_json()
        };
        GeneratedRecord {
            key: Some(ip),
            payload: Some(payload),
            event_time_ms: Some(event_time_ms),
            bad: None,
        }
    }

    /// Replaces `view` by an event of somebody who visited some time ago. Returns it with its time.
    fn straggler(&mut self, view: PageView) -> (PageView, i64) {
        let Recipe { disorder_ms, late_by_ms, start_ms, .. } = self.recipe;
        let more_ms = self.fate.below((late_by_ms - disorder_ms).unsigned_abs()) as i64;
        let age_ms = disorder_ms + 1 + more_ms;
        let age_ns = age_ms.unsigned_abs().saturating_mul(NS_PER_MS);
        let (visitor, host) = self.arrivals.visits().visitor_then(age_ns, &mut self.fate);
        let newest_ms = start_ms + (self.newest_ns / NS_PER_MS) as i64;
        let at_ns = self.newest_ns.saturating_sub(age_ns);
        (PageView { at_ns, visitor, host, came_from: None, ..view }, newest_ms - age_ms)
    }
}

impl Iterator for Generator {
    type Item = GeneratedRecord;

    fn next(&mut self) -> Option<GeneratedRecord> {
        if self.recipe.number.is_some_and(|number| self.made >= number) {
            return None;
        }
        self.made += 1;
        let view = self.arrivals.next_arrival();
        Some(self.record(view))
    }
}
