//! What was typed for `produce`, and what it means: which records to write where, and how fast.

use sessionizer_core::fault::Fault;
use sessionizer_core::rfc3339::parse_rfc3339;

use super::generate::{MAX_HOST_BYTES, Recipe};
use super::history::HistoryPlan;
use super::planned;
use super::planned::Planned;
use crate::cli::ProduceArgs;
use crate::config;
use crate::config::{Environment, Problems, duration_ms, list, name, number, whole};
use crate::job::clock::now_ms;
use crate::kafka::KafkaConfig;

const YEAR_MS: u64 = 366 * 86_400_000;
/// The largest whole number that may be given; any `f64` up to it is exact.
const MOST: u64 = 1_000_000_000_000_000;
const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
/// Records a second of live events, and of historical ones in event time, by default.
const RATE: f64 = 100.0;

/// The validated arguments: what to write.
pub(super) struct Order {
    pub kafka: KafkaConfig,
    pub partitions: i32,
    pub compression: String,
    pub keyed: bool,
    /// Whether to write even if the topic holds records of other producers.
    pub append: bool,
    /// Records a second; 0 means as fast as possible.
    pub rate: f64,
    pub number: Option<u64>,
    /// The history written to an empty topic before live events.
    pub history: Option<HistoryPlan>,
    pub source: Source,
}

pub(super) enum Source {
    AccessLog { path: String, host: String },
    Generated(Box<Recipe>),
    Planned(Planned),
}

/// Reads the arguments; the fault names everything that is wrong with them.
pub(super) fn read(args: &ProduceArgs, env: &Environment) -> Result<Order, Fault> {
    let mut problems = Problems::new(env);
    let kafka = config::read_kafka(&mut problems, &args.kafka.settings, false, env);
    let rate = args.rate.as_ref().and_then(|rate| problems.take("--rate", number(rate, 0.0, 1e9)));
    let hosts = problems.take("--host", hosts(&args.host)).unwrap_or_default();
    let mut arguments = Arguments { args, hosts, problems: &mut problems };
    let limit = args.number.as_ref().map(|n| arguments.valid("--number", whole(n, 0, MOST)));
    let density = args.density.as_ref();
    let density = density.map(|text| arguments.valid("--density", number(text, 0.001, 1e6)));
    let traffic = Recipe { number: limit, ..arguments.traffic() };
    let partitions = arguments.valid("--partitions", whole(&args.partitions, 1, 100_000)) as i32;
    let period = arguments.period(density);
    arguments.check_compression();
    arguments.check_period(&period);
    let source = arguments.source(traffic, &period, rate);
    let paced = matches!(source, Source::Generated(_)) && period.start_ms.is_none();
    let order = kafka.map(|kafka| Order {
        kafka,
        partitions,
        compression: args.compression.clone(),
        keyed: !args.no_key,
        append: args.append,
        rate: rate.unwrap_or(if paced { RATE } else { 0.0 }),
        number: limit,
        history: period.history(),
        source,
    });
    order.filter(|_| problems.is_empty()).ok_or_else(|| problems.fault())
}

/// The period that events are of.
struct Period {
    /// When historical events begin; live ones begin now.
    start_ms: Option<i64>,
    /// How much history live events have.
    history_ms: Option<i64>,
    /// Historical events a second of event time, if that was given.
    density: Option<f64>,
}

impl Period {
    fn density(&self) -> f64 {
        self.density.unwrap_or(RATE)
    }

    fn history(&self) -> Option<HistoryPlan> {
        let density = self.density();
        self.history_ms.map(|length_ms| HistoryPlan { length_ms, density })
    }
}

/// The arguments, and what is wrong with them.
struct Arguments<'a, 'b> {
    args: &'a ProduceArgs,
    /// The hosts that were named.
    hosts: Vec<String>,
    problems: &'a mut Problems<'b>,
}

impl Arguments<'_, '_> {
    /// The value; if there is none, notes why, and something stands in for it until all the other
    /// mistakes are known.
    fn valid<T: Default>(&mut self, name: &str, result: Result<T, String>) -> T {
        self.problems.take(name, result).unwrap_or_default()
    }

    /// The part of a recipe that does not depend on the period.
    fn traffic(&mut self) -> Recipe {
        let args = self.args;
        let ms = |text: &str| duration_ms(text, 0, YEAR_MS).map(|ms| ms as i64);
        let ratio = |text: &str| number(text, 0.0, 1.0);
        let hosts = &self.hosts;
        let hosts = if hosts.is_empty() { Recipe::default().hosts } else { hosts.clone() };
        Recipe {
            visitors: self.valid("--visitors", whole(&args.visitors, 1, u64::from(u32::MAX))),
            hosts,
            disorder_ms: self.valid("--disorder", ms(&args.disorder)),
            late_by_ms: self.valid("--late-by", ms(&args.late_by)),
            bad: self.valid("--bad", ratio(&args.bad)),
            odd: self.valid("--odd", ratio(&args.odd)),
            late: self.valid("--late", ratio(&args.late)),
            hot: self.valid("--hot", ratio(&args.hot)),
            seed: self.valid("--seed", whole(&args.seed, 0, MOST)),
            ..Recipe::default()
        }
    }

    fn period(&mut self, density: Option<f64>) -> Period {
        let args = self.args;
        let history_ms = args.history.as_ref().map(|text| {
            let ms = duration_ms(text, 0, YEAR_MS);
            self.valid("--history", ms) as i64
        });
        let start_ms = args.historical.as_ref();
        let start_ms = start_ms.map(|text| self.valid("--historical", point_in_time(text)));
        Period { start_ms, history_ms, density }
    }

    fn check_compression(&mut self) {
        if !CODECS.contains(&self.args.compression.as_str()) {
            self.problems.add("--compression", format!("can be {}", CODECS.join(", ")));
        }
    }

    /// Refuses a history of events that are not live, and a density of events that are not
    /// historical.
    fn check_period(&mut self, period: &Period) {
        let has_history = period.history_ms.is_some();
        let is_historical = period.start_ms.is_some();
        if has_history && (is_historical || self.args.access_log.is_some()) {
            let what = "is for live events: leave out --historical and --access-log";
            self.problems.add("--history", what);
        }
        if period.density.is_some() && !has_history && !is_historical {
            let what = "is for historical events: add --historical or --history";
            self.problems.add("--density", what);
        }
    }

    fn source(&mut self, traffic: Recipe, period: &Period, rate: Option<f64>) -> Source {
        let args = self.args;
        let now_ms = now_ms() as i64;
        let planned = planned::read(args, &self.hosts, period.start_ms, now_ms, self.problems);
        match (planned, &args.access_log) {
            (Some(planned), _) => Source::Planned(planned),
            (None, Some(path)) => self.access_log(path),
            (None, None) => Source::Generated(Box::new(self.recipe(traffic, period, rate))),
        }
    }

    fn access_log(&mut self, path: &str) -> Source {
        // If one of the names is wrong, that has been noted.
        let wrong = match self.args.host.len() {
            0 => Some("is missing: an access log has no host, so name the one it belongs to"),
            1 => None,
            _ => Some("names several hosts: name the one that the access log belongs to"),
        };
        wrong.into_iter().for_each(|what| self.problems.add("--host", what));
        let host = self.hosts.first().cloned().unwrap_or_default();
        Source::AccessLog { path: path.to_owned(), host }
    }

    /// The recipe of this traffic, live at this rate or historical.
    fn recipe(&mut self, traffic: Recipe, period: &Period, rate: Option<f64>) -> Recipe {
        let live_rate = rate.unwrap_or(RATE);
        if period.start_ms.is_none() && live_rate <= 0.0 {
            let what = "live events need a rate; --historical can go without";
            self.problems.add("--rate", what);
        }
        let (rate, start_ms) = match period.start_ms {
            Some(start_ms) => (period.density(), start_ms),
            // Events arrive around their time; those that arrive early must not be in the future.
            None => (live_rate.max(0.001), now_ms() as i64 - traffic.disorder_ms),
        };
        let recipe = Recipe { rate, start_ms, ..traffic };
        if let Err(what) = recipe.check() {
            self.problems.add("produce", what);
        } else if let Some(history) = period.history()
            && let Err(what) = history.recipe(&recipe, now_ms() as i64).check()
        {
            self.problems.add("--history", what);
        }
        recipe
    }
}

/// The hosts of the events.
fn hosts(named: &[String]) -> Result<Vec<String>, String> {
    list(named)?.into_iter().map(|host| name(host, MAX_HOST_BYTES)).collect()
}

/// Parses a time, or how long ago.
fn point_in_time(text: &str) -> Result<i64, String> {
    if let Some(ms) = parse_rfc3339(text.as_bytes()) {
        return Ok(ms);
    }
    let ago = duration_ms(text, 0, 100 * YEAR_MS).map_err(|_| {
        format!("is {text:?}: write a time like 2026-01-31T12:00:00Z, or how long ago, like 30d")
    })?;
    Ok(now_ms() as i64 - ago as i64)
}
