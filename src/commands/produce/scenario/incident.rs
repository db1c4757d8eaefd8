//! What happens to ordinary traffic: each scenario changes the visits of a host, and states what a
//! detector should find.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use sessionizer_core::anomaly::{Kind, network};

use super::clean::People;
use super::{DAY_MS, HOUR_MS, MINUTE_MS, Request, Skew, Visit, VisitorAddress};
use crate::commands::produce::generate::random::{Random, mix};

/// What can happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scenario {
    /// One address sends 200 to 10,000 events within minutes.
    Flood,
    /// One address comes 15 to 40 times in a day, and looks at 5 to 60 pages each time.
    Crawler,
    /// One address looks at one page every 6 to 15 minutes, for 4 to 12 hours.
    Slow,
    /// 20 to 60 addresses of one network come one to three times each.
    Distributed,
    /// A feed reader asks every half hour or hour, for a day.
    Reader,
    /// One visit of 7 to 20 hours.
    Marathon,
    /// Three to eight times as many visits as usual, for 15 to 40 minutes.
    Surge,
    /// No visits at all, or one in twenty, for 20 to 60 minutes.
    Outage,
    /// As many visits again, and up to twice as many, that end after their first event, for 30 to
    /// 60 minutes.
    Singles,
    /// The clock of those who write to a partition is 10 to 180 minutes ahead, for 3 to 8 hours.
    Skew,
}

/// What happened: the ground truth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    pub scenario: Scenario,
    /// The kind of anomaly that should be found, and others that may be found as well.
    pub kinds: Vec<Kind>,
    pub host: String,
    /// An address, a network or a partition; empty for the host as a whole.
    pub subject: String,
    pub from_ms: i64,
    pub to_ms: i64,
    /// How large it was: in events, visits, minutes, or percent of the usual visits.
    pub size: u64,
}

/// Where it happens.
pub struct IncidentSite<'a> {
    pub request: &'a Request,
    pub host: u16,
    pub name: &'a str,
    /// How many of the same scenario have happened to this host before.
    pub number: u64,
}

/// Adds the visits of an incident.
struct VisitAdder<'a> {
    visits: &'a mut Vec<Visit>,
    random: &'a mut Random,
    host: u16,
    visitor: VisitorAddress,
    from_ms: i64,
    to_ms: i64,
}

/// How large an incident was, and when it ended.
type Extent = (u64, i64);

impl VisitAdder<'_> {
    /// Adds a visit, and returns the time of its last event.
    fn add(&mut self, first_ms: i64, events: u64, pause_ms: i64) -> i64 {
        let span_ms = (events as i64 - 1) * pause_ms;
        let VisitAdder { host, visitor, .. } = *self;
        self.visits.push(Visit { first_ms, span_ms, events, host, visitor });
        first_ms + span_ms
    }

    fn length_ms(&self) -> i64 {
        self.to_ms - self.from_ms
    }

    fn flood(&mut self) -> Extent {
        // From 200 to 10,000, small ones more often.
        let u = self.random.unit();
        let events = (200.0 * (1.0 + 6.0 * u * u * u) * (1.0 + 6.0 * u)) as u64;
        let pause_ms = (self.length_ms() / events as i64).max(1);
        (events, self.add(self.from_ms, events, pause_ms))
    }

    fn crawler(&mut self) -> Extent {
        let mut visits = 0;
        let mut at_ms = self.from_ms;
        while at_ms < self.to_ms {
            let events = 5 + self.random.below(56);
            let pause_ms = 1_000 + self.random.below(2_000) as i64;
            let last_ms = self.add(at_ms, events, pause_ms);
            at_ms = last_ms + 6 * MINUTE_MS + self.random.below(12 * 60_000) as i64;
            visits += 1;
        }
        (visits, self.to_ms)
    }

    fn slow(&mut self) -> Extent {
        let mut visits = 0;
        let mut at_ms = self.from_ms;
        while at_ms < self.to_ms {
            self.add(at_ms, 1, 0);
            at_ms += 6 * MINUTE_MS + self.random.below(9 * 60_000) as i64;
            visits += 1;
        }
        (visits, self.to_ms)
    }

    fn reader(&mut self) -> Extent {
        let every_ms = self.random.pick(&[30, 60]) * MINUTE_MS;
        let times = self.length_ms() / every_ms;
        for time in 0..times {
            let at_ms = self.from_ms + time * every_ms + self.random.below(20_000) as i64;
            self.add(at_ms, 1, 0);
        }
        (times as u64, self.to_ms)
    }

    fn marathon(&mut self) -> Extent {
        let pause_ms = 30_000 + self.random.below(170_000) as i64;
        let events = (self.length_ms() / pause_ms) as u64;
        (events, self.add(self.from_ms, events, pause_ms))
    }

    /// Adds visits of addresses of the network that the visitor is in.
    fn distributed(&mut self) -> Extent {
        let network = self.visitor.0 & 0xffff_ff00;
        let addresses = 20 + self.random.below(41);
        let mut visits = 0;
        for address in 0..addresses {
            self.visitor = VisitorAddress(network | (1 + address));
            for _ in 0..=self.random.below(3) {
                let at_ms = self.from_ms + self.random.below(self.length_ms() as u64) as i64;
                let events = 1 + self.random.below(10);
                self.add(at_ms, events, 2_000);
                visits += 1;
            }
        }
        (visits, self.to_ms)
    }
}

/// A partition whose clock is ahead. Its host is empty, as that of the anomaly is.
pub fn skew(request: &Request, number: u64) -> (Skew, Incident) {
    let scenario = Scenario::Skew;
    let mut random = Random::new(mix(request.seed), 1_000 + 100 * scenario as u64 + number);
    let length_ms = scenario.length_ms(&mut random);
    let site = IncidentSite { request, host: 0, name: "", number };
    let from_ms = scenario.begin_ms(&site, length_ms, &mut random);
    let to_ms = from_ms + length_ms;
    let partition = random.below(u64::from(request.partitions)) as u32;
    let minutes = 10 + random.below(171);
    let skew = Skew { partition, from_ms, to_ms, ahead_ms: minutes as i64 * MINUTE_MS };
    let subject = format!("{}/{partition}", request.topic);
    let (host, kinds) = (String::new(), scenario.kinds());
    (skew, Incident { scenario, kinds, host, subject, from_ms, to_ms, size: minutes })
}

impl Scenario {
    pub fn name(self) -> String {
        self.to_possible_value().expect("none is hidden").get_name().to_owned()
    }

    /// Changes the visits of a host.
    pub fn happen(self, site: &IncidentSite<'_>, visits: &mut Vec<Visit>) -> Incident {
        let IncidentSite { request, host, name, number } = *site;
        let stream = 1_000 + 100 * self as u64 + number;
        let mut random = Random::new(mix(request.seed ^ mix(u64::from(host))), stream);
        let length_ms = self.length_ms(&mut random);
        let from_ms = self.begin_ms(site, length_ms, &mut random);
        let to_ms = from_ms + length_ms;
        let visitor = VisitorAddress(u64::from(random.bits() as u32 | 1));
        let address = visitor.address();
        let subject = match self {
            Scenario::Distributed => network(&address).expect("an address"),
            Scenario::Surge | Scenario::Outage | Scenario::Singles => String::new(),
            _ => address,
        };
        let random = &mut random;
        let mut adder = VisitAdder { visits, random, host, visitor, from_ms, to_ms };
        let (size, to_ms) = match self {
            Scenario::Flood => adder.flood(),
            Scenario::Crawler => adder.crawler(),
            Scenario::Slow => adder.slow(),
            Scenario::Reader => adder.reader(),
            Scenario::Marathon => adder.marathon(),
            Scenario::Distributed => adder.distributed(),
            Scenario::Surge | Scenario::Outage | Scenario::Singles => {
                (self.crowd(site, (from_ms, to_ms), visits, random), to_ms)
            }
            Scenario::Skew => unreachable!("it happens to a partition, not to a host"),
        };
        let kinds = self.kinds();
        Incident { scenario: self, kinds, host: name.to_owned(), subject, from_ms, to_ms, size }
    }

    /// When it begins: not on the first day if there are more, and early enough to be over by the
    /// end of its day. Incidents of one scenario share out the day if it is long enough, so that
    /// they do not overlap.
    fn begin_ms(self, site: &IncidentSite<'_>, length_ms: i64, random: &mut Random) -> i64 {
        let IncidentSite { request, number, .. } = *site;
        let first_day = u64::from(request.days > 1);
        let day = first_day + random.below(request.days - first_day);
        let day_ms = request.start_ms + day as i64 * DAY_MS + MINUTE_MS;
        let whole_ms = DAY_MS - 2 * MINUTE_MS;
        let part_ms = whole_ms / request.incidents.max(1) as i64;
        let (start_ms, room_ms) = match length_ms + 2 * HOUR_MS <= part_ms {
            true => (number as i64 * part_ms, part_ms - 2 * HOUR_MS),
            false => (0, whole_ms),
        };
        day_ms + start_ms + random.below((room_ms - length_ms).max(1) as u64) as i64
    }

    /// Changes the visits of a whole host. Returns how many there are, in percent of the usual
    /// ones.
    fn crowd(
        self,
        site: &IncidentSite<'_>,
        (from_ms, to_ms): (i64, i64),
        visits: &mut Vec<Visit>,
        random: &mut Random,
    ) -> u64 {
        let people = People::of(site.request, site.host);
        let is_within = |visit: &&Visit| (from_ms..to_ms).contains(&visit.first_ms);
        let usual = visits.iter().filter(is_within).count();
        let more = |visits: &mut Vec<Visit>, random: &mut Random, percent, singles: bool| {
            for _ in 0..usual as u64 * percent / 100 {
                let at_ms = from_ms + random.below((to_ms - from_ms) as u64) as i64;
                let visit = people.visit(at_ms, random);
                visits.push(match singles {
                    true => {
                        let visitor = VisitorAddress(u64::from(random.bits() as u32));
                        Visit { events: 1, span_ms: 0, visitor, ..visit }
                    }
                    false => visit,
                });
            }
        };
        match self {
            Scenario::Surge => {
                let percent = 200 + random.below(501);
                more(visits, random, percent, false);
                100 + percent
            }
            Scenario::Singles => {
                let percent = 100 + random.below(101);
                more(visits, random, percent, true);
                100 + percent
            }
            _ => {
                let left = random.below(2) * 5;
                visits.retain_mut(|visit| {
                    if (from_ms..to_ms).contains(&visit.first_ms) {
                        return random.below(100) < left;
                    }
                    // Visits in progress when it begins are cut short.
                    let last_ms = visit.first_ms + visit.span_ms;
                    if visit.first_ms < from_ms && last_ms >= from_ms {
                        let part_ms = from_ms - visit.first_ms;
                        let pauses = visit.events.saturating_sub(1);
                        let left = part_ms as u64 * pauses / visit.span_ms.max(1) as u64;
                        let pause_ms = visit.span_ms / pauses.max(1) as i64;
                        visit.events = left + 1;
                        visit.span_ms = left as i64 * pause_ms;
                    }
                    true
                });
                left
            }
        }
    }

    /// The kind that should be found, and others that may be.
    fn kinds(self) -> Vec<Kind> {
        match self {
            Scenario::Flood => vec![Kind::Burst],
            Scenario::Crawler => vec![Kind::Repeat, Kind::Burst],
            Scenario::Slow | Scenario::Reader => vec![Kind::Repeat],
            Scenario::Distributed => vec![Kind::Network],
            Scenario::Marathon => vec![Kind::Marathon, Kind::Burst],
            Scenario::Surge => vec![Kind::Surge, Kind::Fall],
            // After an outage, everybody comes back.
            Scenario::Outage => vec![Kind::Fall, Kind::Surge],
            Scenario::Singles => vec![Kind::Singles, Kind::Surge, Kind::Fall],
            Scenario::Skew => vec![Kind::Clock],
        }
    }

    fn length_ms(self, random: &mut Random) -> i64 {
        let mut minutes = |least: u64, most: u64| {
            (least as i64) * MINUTE_MS + random.below((most - least) * 60_000 + 1) as i64
        };
        match self {
            Scenario::Flood => minutes(1, 10),
            Scenario::Crawler => minutes(4 * 60, 10 * 60),
            Scenario::Slow => minutes(4 * 60, 12 * 60),
            Scenario::Distributed => minutes(2 * 60, 6 * 60),
            Scenario::Reader => DAY_MS - HOUR_MS,
            Scenario::Marathon => minutes(7 * 60, 20 * 60),
            Scenario::Surge => minutes(15, 40),
            Scenario::Outage => minutes(20, 60),
            Scenario::Singles => minutes(30, 60),
            Scenario::Skew => minutes(3 * 60, 8 * 60),
        }
    }
}
