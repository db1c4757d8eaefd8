//! Ordinary traffic: a daily curve whose level drifts, visits with a long tail, people who come
//! back, and networks that many people share.
//!
//! It is what detectors must not take for anomalies, so it is not made easy for them: regulars come
//! up to sixteen times a day, a few people leave a page open for hours, and offices and carriers
//! send dozens of visits from one network. It uses only operations whose results IEEE 754 defines
//! to the last bit.

use super::{DAY_MS, HOUR_MS, MAX_PAUSE_MS, Request, Visit, VisitorAddress};
use crate::commands::produce::generate::random::{Random, mix};

/// How busy the hours of a day are; between them, the level is interpolated linearly.
const CURVE: [f64; 24] = [
    0.45, 0.35, 0.28, 0.25, 0.25, 0.30, 0.45, 0.70, 0.95, 1.10, 1.20, 1.25, 1.25, 1.25, 1.30, 1.30,
    1.30, 1.35, 1.45, 1.55, 1.50, 1.30, 0.95, 0.65,
];
const CURVE_MAX: f64 = 1.55;
/// By how much the level of an hour differs from its usual one, at most.
const DRIFT: f64 = 0.15;
/// The share of visits with a single event.
const SINGLE: f64 = 0.45;
/// The most events in a person's visit.
const MAX_EVENTS: u64 = 1_000;
/// The share of visits by people who come back, and by people in shared networks.
const REGULAR: f64 = 0.35;
const SHARED: f64 = 0.10;
/// Classes of shared networks: the visits a day of each network, and the share of the class in all
/// visits from shared networks.
const NETWORKS: [(u64, f64); 5] = [(5, 0.3), (10, 0.3), (20, 0.2), (40, 0.15), (80, 0.05)];

/// How long the tails are: of the events of a visit, and of the visits of a visitor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tail {
    /// Pareto's exponent is 8/3; regulars come up to four times a day.
    Light,
    /// 8/5; regulars come up to sixteen times a day.
    Heavy,
}

impl Tail {
    /// Both.
    pub const ALL: [Tail; 2] = [Tail::Light, Tail::Heavy];

    pub fn name(self) -> &'static str {
        match self {
            Tail::Light => "light",
            Tail::Heavy => "heavy",
        }
    }

    /// Classes of regulars: the visits a day of each visitor, and the share of the class in all
    /// visits by regulars.
    fn regulars(self) -> &'static [(u64, f64)] {
        match self {
            Tail::Light => &[(1, 0.5), (2, 0.3), (3, 0.15), (4, 0.05)],
            Tail::Heavy => &[(1, 0.4), (2, 0.3), (4, 0.15), (8, 0.1), (16, 0.05)],
        }
    }

    /// One visit in this many is a page left open.
    fn left_open(self) -> u64 {
        match self {
            Tail::Light => 20_000,
            Tail::Heavy => 2_000,
        }
    }

    /// `u` to the power of minus one over the exponent.
    fn stretch(self, u: f64) -> f64 {
        let fourth = u.sqrt().sqrt();
        let eighth = fourth.sqrt();
        1.0 / match self {
            Tail::Light => fourth * eighth,
            Tail::Heavy => u.sqrt() * eighth,
        }
    }
}

/// The people who visit a host.
pub struct People<'a> {
    request: &'a Request,
    host: u16,
}

/// Adds the ordinary visits of a host, in no particular order.
pub fn visits(request: &Request, host: u16, visits: &mut Vec<Visit>) {
    let people = People { request, host };
    for day in 0..request.days {
        let mut random = Random::new(mix(request.seed ^ mix(day)), 100 + u64::from(host));
        let level: Vec<f64> =
            CURVE.iter().map(|level| level * (1.0 - DRIFT + 2.0 * DRIFT * random.unit())).collect();
        let most = CURVE_MAX * (1.0 + DRIFT);
        let mean = CURVE.iter().sum::<f64>() / 24.0;
        let candidates = (request.visits as f64 * most / mean) as u64;
        for _ in 0..candidates {
            let at_ms = random.below(DAY_MS as u64) as i64;
            let hour = (at_ms / HOUR_MS) as usize;
            let part = (at_ms % HOUR_MS) as f64 / HOUR_MS as f64;
            let now = level[hour] * (1.0 - part) + level[(hour + 1) % 24] * part;
            if random.chance(now / most) {
                let first_ms = request.start_ms + day as i64 * DAY_MS + at_ms;
                visits.push(people.visit(first_ms, &mut random));
            }
        }
    }
}

impl<'a> People<'a> {
    pub fn of(request: &'a Request, host: u16) -> Self {
        People { request, host }
    }

    /// An ordinary visit.
    pub fn visit(&self, first_ms: i64, random: &mut Random) -> Visit {
        let visitor = self.visitor(random);
        let tail = self.request.tail;
        let (events, span_ms) = if random.below(tail.left_open()) == 0 {
            let span_ms = HOUR_MS + random.below(8 * HOUR_MS as u64) as i64;
            let pause_ms = 60_000 + random.below(140_000) as i64;
            ((span_ms / pause_ms) as u64 + 1, span_ms)
        } else if random.chance(SINGLE) {
            (1, 0)
        } else {
            let u = (random.unit() + 1e-9).min(1.0);
            let events = ((2.0 * tail.stretch(u)) as u64).clamp(2, MAX_EVENTS);
            // Nobody looks at pages for more than five hours on end.
            let pauses = events as i64 - 1;
            let pause_ms = (2_000 + random.spread(25_000.0) as i64).min(5 * HOUR_MS / pauses);
            (events, pauses * pause_ms.min(MAX_PAUSE_MS))
        };
        Visit { first_ms, span_ms, events, host: self.host, visitor }
    }

    fn visitor(&self, random: &mut Random) -> VisitorAddress {
        let visits = self.request.visits;
        let unit = random.unit();
        if unit < REGULAR {
            let (class, number) = pick(self.request.tail.regulars(), visits, REGULAR, random);
            return anybody(mix(class << 40 ^ number ^ u64::from(self.host) << 56));
        }
        if unit < REGULAR + SHARED {
            let (class, number) = pick(&NETWORKS, visits, SHARED, random);
            let network = mix(class << 48 ^ number ^ u64::from(self.host) << 56 ^ 0x5ad) as u32;
            return VisitorAddress(u64::from(network & 0xffff_ff00 | random.below(250) as u32));
        }
        anybody(random.bits())
    }
}

/// A visitor with an arbitrary address: one in eight has IPv6.
fn anybody(bits: u64) -> VisitorAddress {
    match bits.is_multiple_of(8) {
        true => VisitorAddress(bits | 1 << 63),
        false => VisitorAddress(bits >> 32),
    }
}

/// One of a class of visitors or networks that each make this many visits a day.
fn pick(classes: &[(u64, f64)], visits: u64, share: f64, random: &mut Random) -> (u64, u64) {
    let mut unit = random.unit();
    let last = classes.len() - 1;
    let class = classes[..last].iter().position(|(_, share)| {
        unit -= share;
        unit < 0.0
    });
    let class = class.unwrap_or(last);
    let (a_day, part) = classes[class];
    let members = (visits as f64 * share * part / a_day as f64) as u64;
    (class as u64, random.below(members.max(1)))
}
