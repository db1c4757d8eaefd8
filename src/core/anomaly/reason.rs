//! The reason of an anomaly, as a sentence for people.

use super::{Anomaly, Evidence, Kind};

impl Anomaly {
    /// What was seen, and what is usual.
    pub fn reason(&self) -> String {
        let Anomaly { observed, expected, .. } = *self;
        match self.evidence {
            Evidence::Session { events, duration_ms, sessions, rank }
            | Evidence::Open { events, duration_ms, sessions, rank } => {
                let history = format!("of {} in the 24 h before", plural(sessions, "session"));
                let rank = if rank == 1 { "one".to_owned() } else { count(rank) };
                let length = span(duration_ms / 1_000);
                let length = match self.evidence {
                    Evidence::Open { .. } => format!("open for {length}"),
                    _ if self.kind == Kind::Marathon => format!("{length} long"),
                    _ => length,
                };
                match self.kind {
                    Kind::Marathon => format!(
                        "{length}, an event every {} on average; {history}, {rank} lasted {} or \
                         longer",
                        span(duration_ms / 1_000 / events.saturating_sub(1).max(1)),
                        span(expected)
                    ),
                    _ => format!(
                        "{} in {length}; {history}, {rank} had {} or more",
                        plural(events, "event"),
                        count(expected)
                    ),
                }
            }
            Evidence::Pace { events, duration_ms, sessions, rank } => {
                let events = plural(events, "event");
                let seen = format!(
                    "{events} in {}, {} a minute",
                    span(duration_ms / 1_000),
                    count(observed)
                );
                let history = match (sessions, rank) {
                    (0, _) => "there was no large session in the 24 h before".to_owned(),
                    (1, _) => format!(
                        "the one large session in the 24 h before had {} a minute",
                        count(expected)
                    ),
                    (_, rank) => format!(
                        "of {} large sessions in the 24 h before, {} had {} a minute or more",
                        count(sessions),
                        if rank == 1 { "one".to_owned() } else { count(rank) },
                        count(expected)
                    ),
                };
                format!("{seen}; {history}")
            }
            Evidence::Visitor { before, visitors } => format!(
                "{} in a day, {} the day before; 95 % of the {} of that day had at most {}",
                plural(observed, "session"),
                count(before),
                plural(visitors, "visitor"),
                count(expected)
            ),
            Evidence::Network { before, addresses, most, networks } => format!(
                "{} of one network, none with more than {}: {} together in a day, {} the day \
                 before; 95 % of the {} of that day had at most {}",
                plural(addresses, "address"),
                plural(most, "session"),
                count(observed),
                count(before),
                plural(networks, "network"),
                count(expected)
            ),
            Evidence::Bucket => format!(
                "{} in 5 min; the hour before had {} at the median",
                plural(observed, "session"),
                count(expected)
            ),
            Evidence::Quarter => format!(
                "{} in 15 min; the hour before had {} at the median",
                plural(observed, "session"),
                count(expected)
            ),
            Evidence::Singles { sessions } => format!(
                "{observed} % of {} had one event; usually {expected} %",
                plural(sessions, "session")
            ),
            Evidence::More => {
                let time = if self.kind.is_by_day() { "on this day" } else { "in this hour" };
                format!("and {} more {time}", count(observed))
            }
            Evidence::Clock { ahead: true } => format!(
                "{} is {} ahead of the other partitions; its sessions close too late",
                self.subject,
                span(observed)
            ),
            Evidence::Clock { ahead: false } => format!(
                "{} lags the other partitions by {}; all sessions close late",
                self.subject,
                span(observed)
            ),
        }
    }

    /// The unit of `observed`, `expected` and `threshold`.
    pub fn unit(&self) -> &'static str {
        match self.kind {
            _ if self.evidence == Evidence::More => "anomalies",
            Kind::Burst if matches!(self.evidence, Evidence::Pace { .. }) => "events a minute",
            Kind::Burst => "events",
            Kind::Marathon | Kind::Clock => "seconds",
            Kind::Repeat | Kind::Network | Kind::Surge | Kind::Fall => "sessions",
            Kind::Singles => "percent",
        }
    }
}

/// A number with separators: `1,234,567`.
fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn plural(n: u64, what: &str) -> String {
    match (n, what.ends_with('s')) {
        (1, _) => format!("1 {what}"),
        (n, true) => format!("{} {what}es", count(n)),
        (n, false) => format!("{} {what}s", count(n)),
    }
}

/// A duration in units that fit its size: `31 s`, `14 min`, `1 h 30 min`, `12 h`.
fn span(seconds: u64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        _ if seconds < 36_000 && !(seconds / 60).is_multiple_of(60) => {
            format!("{} h {} min", seconds / 3_600, seconds / 60 % 60)
        }
        _ => format!("{} h", seconds / 3_600),
    }
}
