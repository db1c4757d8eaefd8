//! Disorder: yields page views in the order in which they arrive.
//!
//! Every view is held back for up to `disorder_ms` of event time, and arrives when that time is
//! over. So when a view arrives, it is at most `disorder_ms` older than the newest before it, and
//! no view arrives before it happened. Memory is bounded by the views of that much time.

use crate::commands::produce::generate::calendar::Calendar;
use crate::commands::produce::generate::random::Random;
use crate::commands::produce::generate::visits::{PageView, Visits};

const NS_PER_MS: u64 = 1_000_000;

/// The views of [`Visits`], held back.
pub struct Arrivals {
    visits: Visits,
    random: Random,
    disorder_ns: u64,
    /// The next view in event-time order. Nothing later may arrive before it has been queued.
    upcoming: PageView,
    /// Delayed views, by the time of their arrival.
    waiting: Calendar<PageView>,
}

impl Arrivals {
    /// The views of `visits`, each delayed by 0 ..= `disorder_ms`.
    ///
    /// `rate` is the number of views in a second of event time.
    pub fn new(mut visits: Visits, disorder_ms: u64, rate: f64, random: Random) -> Self {
        let upcoming = visits.next_view();
        let disorder_ns = disorder_ms.saturating_mul(NS_PER_MS);
        let waiting = Calendar::new(disorder_ns, (rate * disorder_ms as f64 / 2_000.0) as u64);
        Arrivals { visits, random, disorder_ns, upcoming, waiting }
    }

    /// The next view to arrive.
    pub fn next_arrival(&mut self) -> PageView {
        if self.disorder_ns == 0 {
            return std::mem::replace(&mut self.upcoming, self.visits.next_view());
        }
        loop {
            if let Some((_, view)) = self.waiting.pop_until(self.upcoming.at_ns) {
                return view;
            }
            let view = std::mem::replace(&mut self.upcoming, self.visits.next_view());
            let delay_ns = self.random.below(self.disorder_ns.saturating_add(1));
            self.waiting.push(view.at_ns.saturating_add(delay_ns), view);
        }
    }

    /// Where the views come from.
    pub fn visits(&self) -> &Visits {
        &self.visits
    }

    /// How many views are held back: the memory in use depends on it.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::produce::generate::Recipe;

    #[test]
    fn every_view_arrives_once_and_no_later_than_the_disorder_allows() {
        let recipe = Recipe { rate: 50.0, ..Recipe::default() };
        let visits = || Visits::new(&recipe, Random::new(1, 0));
        for disorder_ms in [0, 1, 5_000, 600_000] {
            let mut arrivals = Arrivals::new(visits(), disorder_ms, 50.0, Random::new(1, 1));
            let mut arrived: Vec<PageView> = (0..60_000).map(|_| arrivals.next_arrival()).collect();
            let mut newest_ns = 0;
            for view in &arrived {
                newest_ns = newest_ns.max(view.at_ns);
                assert!(newest_ns - view.at_ns <= disorder_ms * NS_PER_MS);
            }
            arrived.sort_unstable();
            let complete_ns = newest_ns - disorder_ms * NS_PER_MS;
            let mut visits = visits();
            let want = std::iter::repeat_with(|| visits.next_view());
            let complete = arrived.iter().take_while(|view| view.at_ns < complete_ns);
            assert!(complete.clone().count() > 20_000);
            assert!(complete.copied().eq(want.take_while(|view| view.at_ns < complete_ns)));
        }
    }
}
