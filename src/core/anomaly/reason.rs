//! The reason of an anomaly, as a sentence for people.

use super::{Anomaly, Evidence, Kind};

impl Anomaly {
    /// What was seen, and what is usual.
    pub fn reason(&self) -> String {
        let Anomaly { observed, expected, .. } = *self;
        match self.evidence {
            Evidence::Session { events, duration_ms, sessions, rank }
            | Evidence::Open { events, duration_ms, sessions, rank }
            | Evidence::Pace { events, duration_ms, sessions, rank } => {
                LargeSession { anomaly: self, events, duration_ms, sessions, rank }.reason()
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

/// A session that is large, long or fast, and the sessions that it is compared with: `rank` of them
/// had as much as is expected.
struct LargeSession<'a> {
    anomaly: &'a Anomaly,
    events: u64,
    duration_ms: u64,
    sessions: u64,
    rank: u64,
}

impl LargeSession<'_> {
    fn reason(&self) -> String {
        match (&self.anomaly.evidence, self.anomaly.kind) {
            (Evidence::Pace { .. }, _) => self.of_its_pace(),
            (_, Kind::Marathon) => self.of_its_duration(),
            _ => self.of_its_events(),
        }
    }

    fn of_its_events(&self) -> String {
        let length = match self.is_open() {
            true => format!("open for {}", self.length()),
            false => self.length(),
        };
        format!(
            "{} in {length}; {}, {} had {} or more",
            plural(self.events, "event"),
            self.history(),
            self.rank(),
            count(self.anomaly.expected)
        )
    }

    fn of_its_duration(&self) -> String {
        let length = match self.is_open() {
            true => format!("open for {}", self.length()),
            false => format!("{} long", self.length()),
        };
        format!(
            "{length}, an event every {} on average; {}, {} lasted {} or longer",
            span(self.duration_ms / 1_000 / self.events.saturating_sub(1).max(1)),
            self.history(),
            self.rank(),
            span(self.anomaly.expected)
        )
    }

    fn of_its_pace(&self) -> String {
        let Anomaly { observed, expected, .. } = *self.anomaly;
        let history = match self.sessions {
            0 => "there was no large session in the 24 h before".to_owned(),
            1 => {
                format!("the one large session in the 24 h before had {} a minute", count(expected))
            }
            sessions => format!(
                "of {} large sessions in the 24 h before, {} had {} a minute or more",
                count(sessions),
                self.rank(),
                count(expected)
            ),
        };
        let events = plural(self.events, "event");
        format!("{events} in {}, {} a minute; {history}", self.length(), count(observed))
    }

    fn is_open(&self) -> bool {
        matches!(self.anomaly.evidence, Evidence::Open { .. })
    }

    fn length(&self) -> String {
        span(self.duration_ms / 1_000)
    }

    fn history(&self) -> String {
        format!("of {} in the 24 h before", plural(self.sessions, "session"))
    }

    fn rank(&self) -> String {
        if self.rank == 1 { "one".to_owned() } else { count(self.rank) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_a_separator_for_each_thousand() {
        let numbers = [0, 999, 1_000, 12_345, 1_234_567].map(count);
        assert_eq!(numbers, ["0", "999", "1,000", "12,345", "1,234,567"]);
        let (one, more) = (plural(1, "session"), plural(1_000, "session"));
        assert_eq!(
            [one, more, plural(2, "address")],
            ["1 session", "1,000 sessions", "2 addresses"]
        );
    }

    #[test]
    fn a_duration_has_the_units_that_fit_its_size() {
        for (seconds, want) in [
            (119, "119 s"),
            (120, "2 min"),
            (7_199, "119 min"),
            (7_200, "2 h"),
            (7_260, "2 h 1 min"),
            (10_859, "3 h"),
            (35_999, "9 h 59 min"),
            (36_000, "10 h"),
            (37_800, "10 h"),
        ] {
            assert_eq!(span(seconds), want, "{seconds}");
        }
    }
}
