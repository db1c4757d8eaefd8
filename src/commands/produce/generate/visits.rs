//! Who looks at which page when: the endless stream of page views, in event-time order.
//!
//! As many visits run at once as the rate needs. Each consists of a few views with pauses in
//! between; when it is over, another visitor's visit begins in its place. So memory is bounded by
//! the visits that run at once, and an event costs a few steps. Pauses stretch and shrink a little,
//! so that time never drifts away from the rate: view `n` is due around `n / rate`, however large
//! `n` is. This module knows nothing about JSON, disorder or bad records.

use crate::commands::produce::generate::Recipe;
use crate::commands::produce::generate::calendar::Calendar;
use crate::commands::produce::generate::random::{Random, mix};
use crate::commands::produce::generate::web::PAGES;

const NS_PER_S: f64 = 1e9;
const NS_PER_MS: u64 = 1_000_000;

/// Pauses on both sides of the usual session gap of five minutes, and exactly on it.
const BOUNDARY_PAUSES_MS: [u64; 3] = [299_999, 300_000, 300_001];
const BOUNDARY_MEAN_MS: f64 = 300_000.0;
/// How often a pause is one of those.
const BOUNDARY_RATIO: f64 = 1.0 / 512.0;
/// How often the next visitor is the one who has been away longest; otherwise it is anybody.
const TURN_RATIO: f64 = 0.75;
/// How often a visit goes to the visitor's favourite host.
const FAVOURITE_RATIO: f64 = 0.75;

/// One page view. Ordered by time, then by everything else, so that the order is total.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PageView {
    /// Nanoseconds of event time since the start.
    pub at_ns: u64,
    /// Index of the visitor.
    pub visitor: u64,
    /// Index of the host.
    pub host: u16,
    /// Index of the page.
    pub page: u16,
    /// Index of the previous page in this visit.
    pub came_from: Option<u16>,
}

/// A visit whose next view is due at its time in the calendar.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct RunningVisit {
    visitor: u64,
    continuation: Continuation,
    host: u16,
    last_page: Option<u16>,
}

/// What follows a visit's next view.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Continuation {
    /// This many further views of the same visit, then another visit.
    More(u16),
    /// The same, and then the next place is put into use.
    First(u16),
    /// Views without an end: the hot visitor.
    Endless,
}

/// The stream of page views.
pub struct Visits {
    random: Random,
    visitors: Visitors,
    hosts: u64,
    mean_views: u64,
    pause_ns: f64,
    break_ns: f64,
    /// The number of visits that run at once when all have begun.
    places: u64,
    /// How many have begun. They begin in the order of their first views, as these come due: a run
    /// shorter than a pause never sets up the rest.
    begun: u64,
    /// Mean time between two views of one place; `places` of them make the rate.
    place_period_ns: f64,
    /// Mean time between two views of the hot visitor.
    hot_period_ns: f64,
    /// Mean time between two views of anybody.
    period_ns: f64,
    /// How far time may be off the rate before pauses are twice as long.
    slack_ns: f64,
    made: u64,
    running: Calendar<RunningVisit>,
}

/// Whose turn it is to visit.
struct Visitors {
    /// Ordinary visitors are `first` .. `first + number`.
    first: u64,
    number: u64,
    turn: u64,
    turns_per_ns: f64,
    /// Turns that pass during a visit of mean length.
    turns_per_visit: u64,
}

impl Visits {
    /// The views of a recipe that has been checked.
    pub fn new(recipe: &Recipe, random: Random) -> Self {
        let hot_rate = recipe.rate * recipe.hot;
        let rate = recipe.rate - hot_rate;
        let pause_ms = recipe.pause_ms as f64;
        let mean_pause_ns =
            (pause_ms + BOUNDARY_RATIO * (BOUNDARY_MEAN_MS - pause_ms)) * NS_PER_MS as f64;
        let places = (rate * mean_pause_ns / NS_PER_S).ceil();
        // With at least rate × pause places, the break that brings a place down to its share of the
        // rate is at least a pause long.
        let place_period_ns = if rate > 0.0 { places * NS_PER_S / rate } else { 0.0 };
        let views = recipe.events_per_visit as f64;
        let break_ns = views * place_period_ns - (views - 1.0) * mean_pause_ns;
        let hot_period_ns = NS_PER_S / hot_rate;
        let mut visits = Visits {
            random,
            visitors: Visitors::new(recipe, rate * TURN_RATIO / views, mean_pause_ns * views),
            hosts: recipe.hosts.len() as u64,
            mean_views: recipe.events_per_visit,
            pause_ns: pause_ms * NS_PER_MS as f64,
            break_ns,
            places: places as u64,
            begun: 0,
            place_period_ns,
            hot_period_ns,
            period_ns: NS_PER_S / recipe.rate,
            slack_ns: 3.0 * if rate > 0.0 { break_ns.max(place_period_ns) } else { hot_period_ns },
            made: 0,
            running: Calendar::new((3.0 * place_period_ns) as u64, places as u64),
        };
        if hot_rate > 0.0 {
            let hot = RunningVisit {
                visitor: 0,
                continuation: Continuation::Endless,
                host: 0,
                last_page: None,
            };
            visits.running.push(0, hot);
        }
        visits.begin_place();
        visits
    }

    /// The next view; never before the one that was returned last.
    pub fn next_view(&mut self) -> PageView {
        let next = self.running.pop_until(u64::MAX);
        let (at_ns, visit) = next.expect("a visit is followed by another");
        let page = self.any_page();
        let stretch = self.stretch(at_ns);
        self.made += 1;
        let later = RunningVisit { last_page: Some(page), ..visit };
        let (pause_ns, follows) = match visit.continuation {
            Continuation::Endless => {
                (self.random.spread(self.hot_period_ns * stretch) as u64, later)
            }
            Continuation::First(left) | Continuation::More(left) if left > 0 => (
                self.any_pause_ns(stretch),
                RunningVisit { continuation: Continuation::More(left - 1), ..later },
            ),
            _ => (self.random.spread(self.break_ns * stretch) as u64, self.new_visit()),
        };
        self.running.push(at_ns.saturating_add(pause_ns), follows);
        if matches!(visit.continuation, Continuation::First(_)) {
            self.begin_place();
        }
        let RunningVisit { visitor, host, last_page: came_from, .. } = visit;
        PageView { at_ns, visitor, host, page, came_from }
    }

    /// Somebody whose turn came about `age_ns` ago and who then looked around, and the host they
    /// were probably on. A straggler of theirs has a session to land in.
    pub fn visitor_then(&self, age_ns: u64, random: &mut Random) -> (u64, u16) {
        let visitor = self.visitors.then(age_ns, random);
        (visitor, self.favourite_host(visitor))
    }

    /// How many visits run: the memory in use depends on it.
    #[cfg(test)]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Puts the next place into use, if there is one left. The visit there has been going on for a
    /// while, as all would if the stream had no start; otherwise breaks would come in waves.
    fn begin_place(&mut self) {
        if self.begun == self.places {
            return;
        }
        let share = (self.begun as f64 + self.random.unit()) / self.places as f64;
        let due_ns = begin_ns(share, self.place_period_ns);
        let visit = self.new_visit();
        let Continuation::More(left) = visit.continuation else {
            unreachable!("new visits are in that stage")
        };
        let left = self.random.below(u64::from(left) + 1) as u16;
        self.running
            .push(due_ns, RunningVisit { continuation: Continuation::First(left), ..visit });
        self.begun += 1;
    }

    /// By how much to lengthen pauses now: time is at `at_ns`, and should be where the rate
    /// puts the views made so far.
    fn stretch(&self, at_ns: u64) -> f64 {
        let behind_ns = self.made as f64 * self.period_ns - at_ns as f64;
        (1.0 + behind_ns / self.slack_ns).clamp(0.5, 2.0)
    }

    fn any_pause_ns(&mut self, stretch: f64) -> u64 {
        if self.random.chance(BOUNDARY_RATIO) {
            return self.random.pick(&BOUNDARY_PAUSES_MS) * NS_PER_MS;
        }
        self.random.spread(self.pause_ns * stretch) as u64
    }

    fn new_visit(&mut self) -> RunningVisit {
        let visitor = self.visitors.next_visitor(&mut self.random);
        let host = match self.random.chance(FAVOURITE_RATIO) {
            true => self.favourite_host(visitor),
            false => self.random.below(self.hosts) as u16,
        };
        // The fraction is rounded at random, so that the mean is exact.
        let more = self.random.spread((self.mean_views - 1) as f64) + self.random.unit();
        RunningVisit {
            visitor,
            continuation: Continuation::More(more as u16),
            host,
            last_page: None,
        }
    }

    fn favourite_host(&self, visitor: u64) -> u16 {
        (mix(visitor) % self.hosts) as u16
    }

    /// Pages are not equally popular: the first of the list is seen most.
    fn any_page(&mut self) -> u16 {
        self.random.spread(PAGES.len() as f64 / 3.0) as u16
    }
}

impl Visitors {
    fn new(recipe: &Recipe, turns_per_s: f64, visit_ns: f64) -> Self {
        // The hot visitor is not one of the others, unless there are no others.
        let first = u64::from(recipe.hot > 0.0 && recipe.visitors > 1);
        let turns_per_ns = turns_per_s / NS_PER_S;
        let turns_per_visit = (turns_per_ns * visit_ns) as u64;
        let number = recipe.visitors - first;
        Visitors { first, number, turn: 0, turns_per_ns, turns_per_visit }
    }

    fn next_visitor(&mut self, random: &mut Random) -> u64 {
        if !random.chance(TURN_RATIO) {
            return self.first + random.below(self.number);
        }
        self.turn += 1;
        self.first + (self.turn - 1) % self.number
    }

    fn then(&self, age_ns: u64, random: &mut Random) -> u64 {
        let since = (age_ns as f64 * self.turns_per_ns) as u64;
        let back = 1 + since + random.below(self.turns_per_visit);
        let turn = i128::from(self.turn) - i128::from(back);
        self.first + turn.rem_euclid(i128::from(self.number)) as u64
    }
}

/// When the first view of a place is due, if `share` of the places begin before it.
///
/// Pauses are 3 × mean × u² with a uniform u. If such a pause is found running, the rest of it is 3
/// × mean × w² where w has the distribution 3w² − 2w³. Places that begin this way make the rate
/// right from the first second on.
fn begin_ns(share: f64, period_ns: f64) -> u64 {
    let (mut w, mut step) = (0.0, 0.5);
    for _ in 0..32 {
        let next: f64 = w + step;
        let is_below = next * next * (3.0 - 2.0 * next) < share;
        w += step * f64::from(u8::from(is_below));
        step /= 2.0;
    }
    (3.0 * period_ns * w * w) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visits(recipe: &Recipe) -> Visits {
        Visits::new(recipe, Random::new(recipe.seed, 0))
    }

    #[test]
    fn views_come_in_the_order_of_their_time() {
        for (rate, hot) in [(0.01, 0.0), (50.0, 0.3), (10_000.0, 0.0), (100.0, 1.0)] {
            let mut visits = visits(&Recipe { rate, hot, ..Recipe::default() });
            let mut last_ns = 0;
            for _ in 0..20_000 {
                let view = visits.next_view();
                assert!(view.at_ns >= last_ns);
                last_ns = view.at_ns;
            }
        }
    }

    #[test]
    fn time_never_drifts_from_the_rate() {
        for (rate, hot, slack_s) in [(0.5, 0.0, 150.0), (5.0, 0.2, 30.0), (100.0, 0.0, 10.0)] {
            let mut visits = visits(&Recipe { rate, hot, ..Recipe::default() });
            for made in 0..200_000 {
                let off_s = visits.next_view().at_ns as f64 / NS_PER_S - f64::from(made) / rate;
                assert!(off_s.abs() < slack_s, "view {made} at {rate}/s is {off_s} s off");
            }
        }
    }

    #[test]
    fn a_visit_leads_from_page_to_page() {
        let mut visits = visits(&Recipe { rate: 0.04, visitors: 1, ..Recipe::default() });
        let mut last_page = None;
        let mut followed = 0;
        for _ in 0..1_000 {
            let view = visits.next_view();
            followed += u32::from(view.came_from.is_some() && view.came_from == last_page);
            assert!(view.came_from.is_none() || view.came_from == last_page);
            last_page = Some(view.page);
        }
        assert!(followed > 800, "only {followed}");
    }

    #[test]
    fn places_begin_one_after_the_other_and_within_three_periods() {
        let begins: Vec<u64> = (0..1_000).map(|i| begin_ns(f64::from(i) / 1e3, 1e9)).collect();
        assert!(begins.is_sorted());
        assert!(begins[0] == 0 && begins[1] < 1_100_000 && begins[999] < 3_000_000_000);
        let mean = begins.iter().sum::<u64>() as f64 / 1e12;
        assert!((mean - 0.9).abs() < 0.01, "{mean}");
    }
}
