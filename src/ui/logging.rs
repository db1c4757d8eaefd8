//! The log: short lines on a terminal, full ones elsewhere. Filters by RUST_LOG, but shows errors
//! in any case.

use std::io::{IsTerminal, Write};

use env_logger::fmt::Formatter;
use indicatif_log_bridge::LogWrapper;
use log::kv::{self, VisitSource};
use log::{Level, LevelFilter, Record, warn};

use crate::ui::bars;

const DEFAULT: &str = "info";
/// The sources of log lines that RUST_LOG may name.
const SOURCES: [&str; 7] =
    ["sessionizer", "librdkafka", "rdkafka", "tokio_postgres", "postgres", "timely", "rustls"];

/// Starts logging to standard error.
pub fn start() {
    let asked = std::env::var("RUST_LOG").unwrap_or_default();
    let understood = understood(&asked);
    let filters = if asked.trim().is_empty() || !understood { DEFAULT } else { asked.as_str() };
    let terminal = std::io::stderr().is_terminal();
    let mut builder = env_logger::Builder::new();
    // Errors are shown whatever RUST_LOG names, unless it says `off`.
    builder.filter_level(LevelFilter::Error);
    // librdkafka reports everything twice, and we report what matters of it.
    builder.filter_module("librdkafka", LevelFilter::Warn);
    builder.filter_module("rdkafka", LevelFilter::Error);
    builder.filter_module("tokio_postgres", LevelFilter::Warn);
    builder.parse_filters(filters);
    builder.format_target(false).format_timestamp_millis();
    if terminal {
        builder.format(short);
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
}

/// `10:11:12 the message`. Other levels than `info` are named. What comes with a line is shown where
/// the message is not a sentence for people: from `debug` down.
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
    if level >= Level::Debug {
        let _ = record.key_values().visit(&mut Pairs(out));
    }
    writeln!(out)
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
