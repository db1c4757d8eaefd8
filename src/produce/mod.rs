//! `sessionizer produce`: writes events to a topic, from an access log or generated.

pub mod access_log;
pub mod event;
pub mod generate;
pub mod pace;

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use log::{info, warn};

use crate::cli::ProduceArgs;
use crate::config::{self, Problems, duration_ms, number, whole};
use crate::control::{Control, Fault};
use crate::event::parse_rfc3339;
use crate::kafka::{Foreign, KafkaConfig, Publisher, create_topic, foreign_records};
use crate::progress::{bars, style};
use crate::run::now_ms;
use crate::text::{self, count, plural};
use access_log::{Lines, ReadError, parse_line, reader};
use generate::{Generator, Recipe};
use pace::Pace;

/// How many lines of an access log that do not parse are shown; the others are only counted.
const LINES_SHOWN: u64 = 10;

/// What to write, valid.
struct Order {
    kafka: KafkaConfig,
    partitions: i32,
    compression: String,
    keyed: bool,
    /// Whether records of others in the topic are no reason to stop.
    append: bool,
    /// Records a second; 0 is as fast as possible.
    rate: f64,
    number: Option<u64>,
    source: Source,
}

enum Source {
    AccessLog { path: String, host: String },
    Generated(Box<Recipe>),
}

/// One record on its way.
struct Outgoing {
    key: Option<String>,
    payload: Option<Vec<u8>>,
}

/// Writes until the number is reached, the log ends, or somebody asks to stop.
pub fn produce(args: &ProduceArgs, control: &Arc<Control>) -> Result<(), Fault> {
    let order = read(args)?;
    let topic = &order.kafka.topics[0];
    if order.kafka.topics.len() > 1 {
        warn!("KAFKA_TOPIC names several topics: writing to the first, {topic}");
    }
    if create_topic(&order.kafka, order.partitions)? {
        info!("created the topic {topic}, {}", plural(order.partitions, "partition"));
    } else if !order.append {
        refuse_foreign(&order.kafka)?;
    }
    let publisher = Publisher::new(&order.kafka, &order.compression)?;
    let writer = Writer::new(&order, publisher, control);
    match &order.source {
        Source::AccessLog { path, host } => writer.access_log(path, host),
        Source::Generated(recipe) => {
            let generator = Generator::new((**recipe).clone()).map_err(Fault::Config)?;
            let records =
                generator.map(|record| Outgoing { key: record.key, payload: record.payload });
            writer.write(records.map(Ok))
        }
    }
}

/// Made-up events in a topic of real ones could not be taken out again.
fn refuse_foreign(kafka: &KafkaConfig) -> Result<(), Fault> {
    let Some(Foreign { partition, records }) = foreign_records(kafka)? else { return Ok(()) };
    let topic = &kafka.topics[0];
    Err(Fault::Config(format!(
        "the topic {topic} holds {}, and `sessionizer produce` has not written those of \
         {topic}[{partition}]: name another topic (KAFKA_TOPIC), or write to this one all the same \
         with --append",
        plural(records, "record")
    )))
}

fn read(args: &ProduceArgs) -> Result<Order, Fault> {
    let mut problems = Problems::default();
    let kafka = config::read_kafka(&mut problems, &args.kafka_config, false, &config::environment);
    let mut note = |name: &str, result: Result<f64, String>| match result {
        Ok(value) => value,
        Err(what) => {
            problems.add(name, what);
            0.0
        }
    };
    let whole_in = |text: &str, least, most| whole(text, least, most).map(|n| n as f64);
    let most = 1e15 as u64;
    let rate = args.rate.as_ref().map(|rate| note("--rate", number(rate, 0.0, 1e9)));
    let limit = args.number.as_ref().map(|n| note("--number", whole_in(n, 0, most)) as u64);
    let density = note("--density", number(&args.density, 0.001, 1e6));
    let visitors = note("--visitors", whole_in(&args.visitors, 1, u64::from(u32::MAX))) as u64;
    let year_ms = 366 * 86_400_000;
    let ms = |text: &str| duration_ms(text, 0, year_ms).map(|ms| ms as f64);
    let disorder_ms = note("--disorder", ms(&args.disorder)) as i64;
    let late_by_ms = note("--late-by", ms(&args.late_by)) as i64;
    let bad = note("--bad", number(&args.bad, 0.0, 1.0));
    let odd = note("--odd", number(&args.odd, 0.0, 1.0));
    let late = note("--late", number(&args.late, 0.0, 1.0));
    let hot = note("--hot", number(&args.hot, 0.0, 1.0));
    let seed = note("--seed", whole_in(&args.seed, 0, most)) as u64;
    let partitions = note("--partitions", whole_in(&args.partitions, 1, 100_000)) as i32;
    let historical = args.historical.as_ref().map(|text| match point_in_time(text) {
        Ok(ms) => ms,
        Err(what) => {
            problems.add("--historical", what);
            0
        }
    });
    let codecs = ["none", "gzip", "snappy", "lz4", "zstd"];
    if !codecs.contains(&args.compression.as_str()) {
        problems.add("--compression", format!("can be {}", codecs.join(", ")));
    }
    let source = match &args.access_log {
        Some(path) => {
            if args.host.len() != 1 {
                problems.add("--host", "an access log has no host: say which one it is of");
            }
            let host = args.host.first().cloned().unwrap_or_default();
            Source::AccessLog { path: path.clone(), host }
        }
        None => {
            let live_rate = rate.unwrap_or(100.0);
            if historical.is_none() && live_rate <= 0.0 {
                problems.add("--rate", "live events need a rate; --historical can go without");
            }
            let defaults = Recipe::default();
            let recipe = Recipe {
                number: limit,
                visitors,
                hosts: if args.host.is_empty() { defaults.hosts } else { args.host.clone() },
                disorder_ms,
                bad,
                odd,
                late,
                late_by_ms,
                hot,
                seed,
                rate: if historical.is_some() { density } else { live_rate.max(0.001) },
                // Events arrive around their time; those that arrive early must not be of the future.
                start_ms: historical.unwrap_or_else(|| now_ms() as i64 - disorder_ms),
                ..Recipe::default()
            };
            if let Err(what) = recipe.check() {
                problems.add("produce", what);
            }
            Source::Generated(Box::new(recipe))
        }
    };
    let paced = matches!(source, Source::Generated(_)) && historical.is_none();
    let order = kafka.map(|kafka| Order {
        kafka,
        partitions,
        compression: args.compression.clone(),
        keyed: !args.no_key,
        append: args.append,
        rate: rate.unwrap_or(if paced { 100.0 } else { 0.0 }),
        number: limit,
        source,
    });
    order.filter(|_| problems.is_empty()).ok_or_else(|| problems.fault())
}

/// A time, or how long ago.
fn point_in_time(text: &str) -> Result<i64, String> {
    if let Some(ms) = parse_rfc3339(text.as_bytes()) {
        return Ok(ms);
    }
    let ago = duration_ms(text, 0, 100 * 366 * 86_400_000).map_err(|_| {
        format!("is {text:?}: write a time like 2026-01-31T12:00:00Z, or how long ago, like 30d")
    })?;
    Ok(now_ms() as i64 - ago as i64)
}

/// Sends records at their pace and shows how far it is.
struct Writer<'a> {
    order: &'a Order,
    publisher: Publisher,
    control: &'a Control,
    bar: ProgressBar,
}

impl<'a> Writer<'a> {
    fn new(order: &'a Order, publisher: Publisher, control: &'a Control) -> Self {
        let bar = match (std::io::stderr().is_terminal(), order.number) {
            (false, _) => ProgressBar::hidden(),
            (true, Some(number)) => bars().add(ProgressBar::new(number)).with_style(style(
                "{bar:24} {percent}% of {human_len} records, {rate}, {eta} to go",
            )),
            (true, None) => bars()
                .add(ProgressBar::new_spinner())
                .with_style(style("{spinner} {human_pos} records, {rate}")),
        };
        Writer { order, publisher, control, bar }
    }

    fn access_log(&self, path: &str, host: &str) -> Result<(), Fault> {
        let unreadable = |why: &dyn std::fmt::Display| Fault::World(format!("{path}: {why}"));
        let lines = Lines::new(reader(Path::new(path)).map_err(|why| unreadable(&why))?);
        let mut skipped = 0;
        let mut skip = |number: u64, why: &dyn std::fmt::Display| {
            skipped += 1;
            match skipped {
                ..=LINES_SHOWN => warn!("{path}: line {} is skipped: {why}", count(number)),
                n if n == LINES_SHOWN + 1 => {
                    warn!("{path}: further lines that are skipped are only counted")
                }
                _ => {}
            }
        };
        let records = lines.filter_map(|(number, line)| match line {
            Ok(line) => match parse_line(&line, host) {
                Ok(event) => Some(Ok(Outgoing {
                    key: Some(event.ip.to_string()),
                    payload: Some(event.to_json()),
                })),
                Err(why) => {
                    skip(number, &why);
                    None
                }
            },
            Err(why @ ReadError::TooLong) => {
                skip(number, &why);
                None
            }
            Err(ReadError::Io(why)) => Some(Err(unreadable(&format!("line {number}: {why}")))),
        });
        let limit = self.order.number.unwrap_or(u64::MAX);
        let result = self.write(records.take(usize::try_from(limit).unwrap_or(usize::MAX)));
        if skipped > 0 {
            warn!("{path}: skipped {} that did not parse", plural(skipped, "line"));
        }
        result
    }

    fn write(&self, records: impl Iterator<Item = Result<Outgoing, Fault>>) -> Result<(), Fault> {
        let began = Instant::now();
        let mut pace = (self.order.rate > 0.0).then(|| Pace::new(self.order.rate));
        let mut due = 0;
        let mut sent = 0u64;
        let mut ended = Ok(());
        for record in records {
            while let Some(pace) = &mut pace
                && due == 0
                && !self.control.stopping()
            {
                due = pace.due(began.elapsed());
                if due == 0 {
                    std::thread::sleep(pace.wait().min(Duration::from_millis(50)));
                }
            }
            if self.control.stopping() {
                break;
            }
            due = due.saturating_sub(1);
            let record = match record {
                Ok(record) => record,
                Err(fault) => {
                    ended = Err(fault);
                    break;
                }
            };
            let key = record.key.as_deref().filter(|_| self.order.keyed);
            self.publisher.send(key, record.payload.as_deref())?;
            sent += 1;
            if sent.is_multiple_of(1_000) || pace.is_some() {
                self.bar.set_position(sent);
            }
        }
        self.publisher.flush()?;
        self.bar.finish_and_clear();
        info!(
            "wrote {} to the topic {} in {}",
            plural(self.publisher.delivered(), "record"),
            self.order.kafka.topics[0],
            text::duration(began.elapsed())
        );
        ended
    }
}
