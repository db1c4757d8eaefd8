//! The log: short lines on a terminal, full ones elsewhere. Filters by RUST_LOG, but shows errors
//! in any case. With `--log-format json`, each line is an object.

use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use env_logger::fmt::Formatter;
use indicatif_log_bridge::LogWrapper;
use log::kv::{self, VisitSource};
use log::{Level, LevelFilter, Record, warn};
use serde_json::{Map, Value};

use crate::ui::{bars, can_redraw};

const DEFAULT: &str = "info";
/// The sources of log lines that RUST_LOG may name.
const SOURCES: [&str; 7] =
    ["sessionizer", "librdkafka", "rdkafka", "tokio_postgres", "postgres", "timely", "rustls"];

static JSON: AtomicBool = AtomicBool::new(false);

/// Whether RUST_LOG is set.
static ASKED: AtomicBool = AtomicBool::new(false);

/// The job whose log this is.
static JOB: OnceLock<String> = OnceLock::new();

/// Names the job: from now on it is in each line of a log in JSON.
pub fn set_job(job: &str) {
    // A process runs one job.
    let _ = JOB.set(job.to_owned());
}

/// Logs errors alone from now on, unless RUST_LOG asks for more: the command itself says what it
/// finds.
pub fn quiet() {
    if !ASKED.load(Relaxed) {
        log::set_max_level(LevelFilter::Error);
    }
}

/// Whether each line of the log is a JSON object.
pub fn is_json() -> bool {
    JSON.load(Relaxed)
}

/// Starts logging to standard error in this format; `asked` is the value of RUST_LOG. An unknown
/// format is an error, and the log is text.
pub fn start(format: &str, asked: Option<String>) -> Result<(), String> {
    let known = match format.trim() {
        "text" => Ok(false),
        "json" => Ok(true),
        _ => Err(format!("is {format:?}: it can be text or json")),
    };
    JSON.store(known == Ok(true), Relaxed);
    let asked = asked.unwrap_or_default();
    ASKED.store(!asked.trim().is_empty(), Relaxed);
    let understood = understood(&asked);
    let filters = if asked.trim().is_empty() || !understood { DEFAULT } else { asked.as_str() };
    let terminal = can_redraw(&std::io::stderr());
    let mut builder = env_logger::Builder::new();
    // Errors are shown whatever RUST_LOG names, unless it says `off`.
    builder.filter_level(LevelFilter::Error);
    // librdkafka reports everything twice, and we log what matters ourselves.
    builder.filter_module("librdkafka", LevelFilter::Warn);
    builder.filter_module("rdkafka", LevelFilter::Error);
    builder.filter_module("tokio_postgres", LevelFilter::Warn);
    builder.parse_filters(filters);
    builder.format_target(false).format_timestamp_millis();
    if is_json() {
        builder.format(object);
    } else if terminal {
        builder.format(short);
    } else {
        builder.format(full);
    }
    let logger = builder.build();
    let level = logger.filter();
    let started = match terminal {
        true => LogWrapper::new(bars::bars().clone(), logger).try_init(),
        false => log::set_boxed_logger(Box::new(logger)),
    };
    started.expect("logging is started once");
    log::set_max_level(level);
    if !understood {
        warn!(
            "RUST_LOG: {asked:?} is not understood, so {DEFAULT} is used: write error, warn, info, \
             debug, trace or off, or module=level"
        );
    }
    known.map(|_| ())
}

/// One object in one line: time, level, target, job and message, and the key-values.
fn object(out: &mut Formatter, record: &Record<'_>) -> std::io::Result<()> {
    let mut fields = Map::new();
    // The fields of the line itself come last, so that no key-value can replace them.
    let _ = record.key_values().visit(&mut LogFields(&mut fields));
    if let Some(job) = JOB.get() {
        fields.insert("job".to_owned(), job.as_str().into());
    }
    fields.insert("time".to_owned(), out.timestamp_millis().to_string().into());
    fields.insert("level".to_owned(), record.level().as_str().to_ascii_lowercase().into());
    fields.insert("target".to_owned(), record.target().into());
    fields.insert("message".to_owned(), record.args().to_string().into());
    writeln!(out, "{}", Value::Object(fields))
}

/// Collects the key-values of a line.
struct LogFields<'a>(&'a mut Map<String, Value>);

impl<'kvs> VisitSource<'kvs> for LogFields<'_> {
    fn visit_pair(
        &mut self,
        key: log::kv::Key<'kvs>,
        value: log::kv::Value<'kvs>,
    ) -> Result<(), log::kv::Error> {
        let number = value.to_u64().map(Value::from).or_else(|| value.to_i64().map(Value::from));
        let plain = number.or_else(|| value.to_bool().map(Value::from));
        let plain = plain.or_else(|| value.to_f64().map(Value::from));
        let shown = plain.unwrap_or_else(|| value.to_string().into());
        self.0.insert(key.as_str().to_owned(), shown);
        Ok(())
    }
}

/// `[2026-11-26T10:11:12.345Z INFO ] the message`. Continuation lines are indented, so that a line
/// that begins with a bracket begins an entry.
fn full(out: &mut Formatter, record: &Record<'_>) -> std::io::Result<()> {
    let message = record.args().to_string().replace('\n', "\n    ");
    write!(out, "[{} {:<5}] {message}", out.timestamp_millis(), record.level())?;
    pairs(out, record)?;
    writeln!(out)
}

/// `10:11:12 the message`. Levels other than `info` are named.
fn short(out: &mut Formatter, record: &Record<'_>) -> std::io::Result<()> {
    let time = out.timestamp_seconds().to_string();
    let time = time.get(11..19).unwrap_or(&time);
    let (level, message) = (record.level(), record.args());
    let name = match level {
        Level::Info => return writeln!(out, "{time} {message}"),
        Level::Error => "error:",
        Level::Warn => "warning:",
        Level::Debug => "debug:",
        Level::Trace => "trace:",
    };
    let style = out.default_level_style(level);
    write!(out, "{time} {style}{name}{style:#} {message}")?;
    pairs(out, record)?;
    writeln!(out)
}

/// Appends the key-values, but only at `debug` and `trace`. The other messages are sentences that
/// already name them.
fn pairs(out: &mut Formatter, record: &Record<'_>) -> std::io::Result<()> {
    if record.level() >= Level::Debug {
        let _ = record.key_values().visit(&mut Pairs(out));
    }
    Ok(())
}

/// Appends ` key=value` to a line.
struct Pairs<'a>(&'a mut Formatter);

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        write!(self.0, " {key}={value}").map_err(kv::Error::boxed)
    }
}

/// Whether every part of RUST_LOG is a level, a source of log lines, or `source=level`.
fn understood(asked: &str) -> bool {
    let level = |text: &str| text.trim().parse::<LevelFilter>().is_ok();
    let source = |text: &str| {
        let root = text.trim().split("::").next().unwrap_or_default();
        SOURCES.contains(&root)
    };
    asked.split(',').filter(|part| !part.trim().is_empty()).all(|part| match part.split_once('=') {
        Some((name, of)) => source(name) && level(of),
        None => level(part) || source(part),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_our_sources_are_understood_and_nothing_else() {
        for asked in ["", "debug", "OFF", "info,librdkafka=trace", "sessionizer::kafka=debug"] {
            assert!(understood(asked), "{asked}");
        }
        for asked in ["garbage", "debgu", "info,x", "sessionizer=loud", "warn,nobody=debug", "1"] {
            assert!(!understood(asked), "{asked}");
        }
    }
}
