//! The thresholds, as functions of histograms and counts, and the settings that they depend on.
//!
//! A percentile alone would flag a fixed share of everything, so a threshold is the largest of a
//! floor, a multiple of the 95th percentile and a multiple of a *rank* (the tenth largest). The
//! multiple `cap_factor` of the percentile caps it: a flood must not hide the next one by raising
//! the ranks.

use serde::{Deserialize, Serialize};

use crate::statistics::Histogram;

/// When a value stands out from a histogram.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Outlier {
    /// Nothing up to this value stands out.
    pub min: u64,
    /// Nothing up to this many times the 95th percentile stands out.
    pub q95_factor: f64,
    /// Nothing up to this many times the value at `rank` from the top stands out.
    pub rank_factor: f64,
    pub rank: u64,
    /// Beyond this many times the 95th percentile, and beyond `min`, everything stands out.
    pub cap_factor: Option<f64>,
}

/// A threshold, and what it was computed from.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Limit {
    /// Values above this stand out.
    pub above: u64,
    /// The highest value in the bin of the 95th percentile.
    pub q95: u64,
    /// The lowest value in the bin of `rank` from the top.
    pub ranked: u64,
    pub rank: u64,
    /// How many values there were.
    pub count: u64,
}

impl Outlier {
    /// The threshold for values like those of `history`; `None` if it is empty.
    ///
    /// The percentile and the value at the rank are known only by bin. The highest values of these
    /// bins count, so that what shares a bin with them never stands out.
    pub fn limit(&self, history: &Histogram) -> Option<Limit> {
        let count = u64::try_from(history.count()).ok()?;
        let q95 = history.quantile(95)?.highest();
        // With fewer values than the rank, the smallest.
        let ranked = history.largest(self.rank.min(count))?;
        let times = |factor: f64, value: u64| (factor * value as f64) as u64;
        let by_rank = times(self.rank_factor, ranked.highest());
        let high = self.min.max(times(self.q95_factor, q95)).max(by_rank);
        let cap = self.cap_factor.map_or(u64::MAX, |factor| self.min.max(times(factor, q95)));
        let rank = self.rank.min(count);
        Some(Limit { above: high.min(cap), q95, ranked: ranked.lowest(), rank, count })
    }
}

/// All thresholds.
#[derive(Clone, PartialEq, Debug)]
pub struct Thresholds {
    /// A host with fewer sessions in its history is still being learned: nothing stands out.
    pub learn: u64,
    /// By events.
    pub burst: Outlier,
    /// Bursts by pace: how many times as fast as 95 % of the large sessions, and as the one at
    /// `burst_pace_rank` from the top.
    pub burst_pace_factor: f64,
    /// A session that is slower is no burst, however many events it has: a page that was left open.
    pub burst_pace_min: u64,
    pub burst_pace_rank: u64,
    /// By milliseconds.
    pub marathon: Outlier,
    /// By sessions a day of a visitor.
    pub repeat: Outlier,
    /// By sessions a day of a network.
    pub network: Outlier,
    /// A network with fewer addresses is not judged.
    pub network_addresses: u64,
    /// A visitor must come more than this many times as often as on the day before: one that comes
    /// equally often every day does not stand out. Zero turns this off.
    pub repeat_growth: f64,
    /// A visitor that could be judged on the day before must come more often than then by this many
    /// standard deviations of a Poisson count. Zero turns this off.
    pub repeat_z: f64,
    /// The same for a network.
    pub network_growth: f64,
    /// A network must come more often than on the day before by this many standard deviations.
    pub network_z: f64,
    /// Surge and fall: the least difference, in standard deviations of a Poisson count.
    pub surge_z: f64,
    /// Surge and fall: the least ratio.
    pub surge_factor: f64,
    /// Surge and fall: the least number of sessions in the larger of the two.
    pub surge_min: u64,
    /// Fall: if five minutes have fewer than `surge_min`, the least number of sessions in fifteen.
    pub fall_min: u64,
    /// Singles: the least difference, in standard deviations.
    pub singles_z: f64,
    /// Singles: the least difference, in percentage points.
    pub singles_points: u64,
    /// Singles: the least number of sessions.
    pub singles_min: u64,
    /// Clocks: how many times the out-of-orderness a partition may be off.
    pub clock_factor: f64,
    /// Clocks: how far a partition may be off in any case, in milliseconds.
    pub clock_min_ms: u64,
    /// Clocks: for how many epochs in a row a partition must be off.
    pub clock_epochs: u64,
    /// Clocks: the least number of active partitions. With two, it is unknown which one is off.
    pub clock_partitions: u64,
}

impl Default for Thresholds {
    /// Chosen on seeds 1 to 10 of the evaluation; docs/ANOMALIES.md reports what they find on
    /// others.
    fn default() -> Self {
        Thresholds {
            learn: 200,
            burst: Outlier {
                min: 40,
                q95_factor: 4.0,
                rank_factor: 8.0,
                rank: 5,
                cap_factor: Some(150.0),
            },
            burst_pace_factor: 1.5,
            burst_pace_min: 2,
            burst_pace_rank: 25,
            marathon: Outlier {
                min: 10 * 3_600_000,
                q95_factor: 0.0,
                rank_factor: 1.25,
                rank: 10,
                cap_factor: None,
            },
            repeat: Outlier {
                min: 12,
                q95_factor: 3.0,
                rank_factor: 1.15,
                rank: 25,
                cap_factor: Some(20.0),
            },
            network: Outlier {
                min: 12,
                q95_factor: 3.0,
                rank_factor: 1.0,
                rank: 25,
                cap_factor: Some(20.0),
            },
            network_addresses: 5,
            repeat_growth: 0.0,
            repeat_z: 5.0,
            network_growth: 2.0,
            network_z: 5.0,
            surge_z: 6.0,
            surge_factor: 2.0,
            surge_min: 30,
            fall_min: 20,
            singles_z: 5.0,
            singles_points: 20,
            singles_min: 100,
            clock_factor: 3.0,
            clock_min_ms: 60_000,
            clock_epochs: 3,
            clock_partitions: 3,
        }
    }
}

/// The names of the settings, each with its unit or meaning.
pub const SETTINGS: [(&str, &str); 38] = [
    ("learn", "sessions of history before a host is judged"),
    ("burst.min", "events"),
    ("burst.q95_factor", "times the 95th percentile"),
    ("burst.rank_factor", "times the value at the rank"),
    ("burst.rank", "from the top"),
    ("burst.cap_factor", "times the 95th percentile, at most"),
    ("burst.pace_min", "events a minute"),
    ("burst.pace_factor", "times the 95th percentile of the pace, and the pace at the rank"),
    ("burst.pace_rank", "from the top"),
    ("marathon.min", "seconds"),
    ("marathon.rank_factor", "times the value at the rank"),
    ("marathon.rank", "from the top"),
    ("repeat.min", "sessions a day"),
    ("repeat.q95_factor", "times the 95th percentile"),
    ("repeat.rank_factor", "times the value at the rank"),
    ("repeat.rank", "from the top"),
    ("repeat.cap_factor", "times the 95th percentile, at most"),
    ("repeat.growth", "times the sessions of the day before"),
    ("repeat.z", "standard deviations above the day before"),
    ("network.min", "sessions a day"),
    ("network.q95_factor", "times the 95th percentile"),
    ("network.rank_factor", "times the value at the rank"),
    ("network.rank", "from the top"),
    ("network.cap_factor", "times the 95th percentile, at most"),
    ("network.addresses", "addresses"),
    ("network.growth", "times the sessions of the day before"),
    ("network.z", "standard deviations above the day before"),
    ("surge.z", "standard deviations"),
    ("surge.factor", "times the median"),
    ("surge.min", "sessions in five minutes"),
    ("fall.min", "sessions in a quarter of an hour"),
    ("singles.z", "standard deviations"),
    ("singles.points", "percentage points"),
    ("singles.min", "sessions in a quarter of an hour"),
    ("clock.factor", "times the out-of-orderness"),
    ("clock.min", "seconds"),
    ("clock.epochs", "epochs in a row"),
    ("clock.partitions", "active partitions, at least"),
];

impl Thresholds {
    /// Changes the setting `name`.
    ///
    /// # Errors
    /// If there is no such setting, or the value is out of its range.
    pub fn set(&mut self, name: &str, value: f64) -> Result<(), String> {
        if !SETTINGS.iter().any(|(known, _)| *known == name) {
            let names: Vec<&str> = SETTINGS.iter().map(|(name, _)| *name).collect();
            return Err(format!("{name:?} is none of {}", names.join(", ")));
        }
        if !(0.0..=1e12).contains(&value) {
            return Err(format!("{name}: {value} is not between 0 and 1e12"));
        }
        let (kind, what) = name.split_once('.').unwrap_or((name, ""));
        let outlier = match kind {
            "burst" if !what.starts_with("pace") => Some(&mut self.burst),
            "marathon" => Some(&mut self.marathon),
            "repeat" if !["growth", "z"].contains(&what) => Some(&mut self.repeat),
            "network" if !["growth", "z", "addresses"].contains(&what) => Some(&mut self.network),
            _ => None,
        };
        let whole = value as u64;
        if let Some(outlier) = outlier {
            match what {
                "min" if kind == "marathon" => outlier.min = (value * 1_000.0) as u64,
                "min" => outlier.min = whole,
                "q95_factor" => outlier.q95_factor = value,
                "rank_factor" => outlier.rank_factor = value,
                "rank" if whole == 0 => return Err(format!("{name}: a rank is at least 1")),
                "rank" => outlier.rank = whole,
                _ => outlier.cap_factor = Some(value),
            }
            return Ok(());
        }
        match name {
            "learn" => self.learn = whole.max(1),
            "burst.pace_min" => self.burst_pace_min = whole,
            "burst.pace_factor" => self.burst_pace_factor = value,
            "burst.pace_rank" if whole == 0 => return Err(format!("{name}: a rank is at least 1")),
            "burst.pace_rank" => self.burst_pace_rank = whole,
            "network.addresses" => self.network_addresses = whole,
            "network.growth" => self.network_growth = value,
            "network.z" => self.network_z = value,
            "repeat.growth" => self.repeat_growth = value,
            "repeat.z" => self.repeat_z = value,
            "surge.z" => self.surge_z = value,
            "surge.factor" if value < 1.0 => return Err(format!("{name}: is at least 1")),
            "surge.factor" => self.surge_factor = value,
            "surge.min" => self.surge_min = whole.max(1),
            "fall.min" => self.fall_min = whole.max(1),
            "singles.z" => self.singles_z = value,
            "singles.points" => self.singles_points = whole,
            "singles.min" => self.singles_min = whole.max(1),
            "clock.factor" => self.clock_factor = value,
            "clock.min" => self.clock_min_ms = (value * 1_000.0) as u64,
            "clock.epochs" => self.clock_epochs = whole.max(1),
            _ => self.clock_partitions = whole.max(3),
        }
        Ok(())
    }

    /// The limit of the pace, given the paces of the sessions with more than `burst.min` events. A
    /// pace is not above the number of events, so what is faster has more than `burst.min` of them.
    pub fn pace_limit(&self, paces: &Histogram) -> Limit {
        let rule = Outlier {
            min: self.burst.min,
            // Few sessions are as large on a small host: then the percentile is the fastest.
            q95_factor: self.burst_pace_factor,
            rank_factor: self.burst_pace_factor,
            rank: self.burst_pace_rank,
            cap_factor: None,
        };
        rule.limit(paces).unwrap_or(Limit { above: rule.min, ..Limit::default() })
    }

    /// The least number of sessions in five minutes that is a surge, if the median of the hour
    /// before was `twice_median / 2`.
    pub fn surge_from(&self, twice_median: u64) -> u64 {
        let median = twice_median as f64 / 2.0;
        // Anscombe: the root of a Poisson count has a standard deviation of a half.
        let root = (median + 0.375).sqrt() + self.surge_z / 2.0;
        let beyond = (root * root - 0.375).floor() as u64 + 1;
        beyond.max((self.surge_factor * median).ceil() as u64).max(self.surge_min)
    }

    /// The largest number of sessions that is a fall from a median of `twice_median / 2`; `None` if
    /// that is below `min`: too few to judge.
    pub fn fall_to(&self, twice_median: u64, min: u64) -> Option<u64> {
        let median = twice_median as f64 / 2.0;
        let root = (median + 0.375).sqrt() - self.surge_z / 2.0;
        if twice_median < 2 * min || root <= 0.0 {
            return None;
        }
        let below = (root * root - 0.375).ceil() - 1.0;
        let most = below.min((median / self.surge_factor).floor());
        (most >= 0.0).then_some(most as u64)
    }

    /// Whether `now` is above `before` by more than `z` standard deviations, if both are Poisson
    /// counts. Always, if `z` is zero.
    pub fn is_more(now: u64, before: u64, z: f64) -> bool {
        let root = |n: u64| (n as f64 + 0.375).sqrt();
        z == 0.0 || 2.0 * (root(now) - root(before)) > z
    }

    /// The least number of one-event sessions out of `sessions` that is more than usual, if
    /// `usual_singles` out of `usual` had one event; `None` if there is no such number, or there
    /// are too few sessions to judge.
    pub fn singles_from(&self, sessions: u64, usual_singles: u64, usual: u64) -> Option<u64> {
        if sessions < self.singles_min {
            return None;
        }
        // Add one session of either sort, so that no share is 0 or 1.
        let share = (usual_singles as f64 + 1.0) / (usual as f64 + 2.0);
        let n = sessions as f64;
        let spread = (share * (1.0 - share) / n).sqrt();
        let beyond = ((share + self.singles_z * spread) * n).floor() as u64 + 1;
        let points = ((share + self.singles_points as f64 / 100.0) * n).ceil() as u64;
        let from = beyond.max(points);
        (from <= sessions).then_some(from)
    }

    /// How far a partition's promise may be from that of the others, in milliseconds.
    pub fn clock_off_ms(&self, out_of_orderness_ms: u64, idle_timeout_ms: u64) -> u64 {
        let factor = (self.clock_factor * out_of_orderness_ms as f64) as u64;
        // A partition may be silent for the idle timeout before it counts as idle.
        factor.max(self.clock_min_ms).max(idle_timeout_ms + out_of_orderness_ms)
    }
}
