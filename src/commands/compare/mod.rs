//! `sessionizer compare`: compares the table of the job with that of another program that reads the
//! same topic, such as the Flink job that it will replace.
//!
//! Both tables are read in one snapshot, visitor by visitor; `classes` classifies the differences.
//! Whether missing events may have been late is looked up in the topic: for a program whose
//! watermark follows the newest event of each partition, an event can be late only if its window
//! ends before the newest event that was read before it, less the delay of the watermark.

mod classes;
mod report;

use std::collections::HashMap;
use std::io::{self, Write};

use log::{info, warn};
use sessionizer_core::event;
use sessionizer_core::fault::Fault;
use sessionizer_core::key::Key;
use sessionizer_core::rfc3339::parse_rfc3339;
use sessionizer_core::session::Span;
use sessionizer_core::time::{EventTime, Gap};

use self::classes::{Common, Known, Stretch, WindowRow};
use self::report::Report;
use crate::cli::CompareArgs;
use crate::commands::output::{printed, unreadable};
use crate::commands::reread;
use crate::config;
use crate::config::{Environment, Problems, duration_ms, whole};
use crate::dataflow::run_state::RunState;
use crate::kafka::{KafkaConfig, Range};
use crate::ledger::{AuditSnapshot, Forgotten, LedgerConfig};
use crate::ui::text::plural;

const YEAR_MS: u64 = 31_536_000_000;

/// What is compared, and how.
struct Settings {
    /// None: the topic is not read.
    kafka: Option<KafkaConfig>,
    ledger: LedgerConfig,
    /// The ledger with the other table in place of the job's.
    other: LedgerConfig,
    since: Option<EventTime>,
    until: Option<EventTime>,
    out_of_orderness_ms: i64,
    show: usize,
}

/// Events of each visitor: when they were, and how many.
type Events = HashMap<Key, Vec<Span>>;

/// What the topic says about events that the tables may not both have.
struct TopicEvents {
    /// Those that may have been late for the other program.
    late: Events,
    /// Those that are dead letters of the job, although they can be decoded.
    dead: Events,
}

/// Compares the tables and prints the report. The fault says that something is unexplained, or why
/// nothing could be compared.
pub fn compare(args: &CompareArgs, env: &Environment, run_state: &RunState) -> Result<(), Fault> {
    let settings = read(args, env)?;
    let mut snapshot = AuditSnapshot::read(&settings.ledger).map_err(unreadable)?;
    // Before the topic is read, which may take long.
    snapshot.find_beside(&settings.other).map_err(unreadable)?;
    let topic = match &settings.kafka {
        Some(kafka) => Some(read_topic(kafka, &snapshot, settings.out_of_orderness_ms, run_state)?),
        None => None,
    };
    let report = compared(&mut snapshot, &settings, topic, run_state)?;
    let verdict = report.verdict();
    let mut out = io::stdout().lock();
    let written = match args.json {
        true => writeln!(out, "{}", report.json()),
        false => report.print(&mut out),
    };
    let written = match &verdict {
        Ok(sentence) if !args.json => written.and_then(|()| writeln!(out, "{sentence}")),
        _ => written,
    };
    printed(written)?;
    verdict.map(drop)
}

fn read(args: &CompareArgs, env: &Environment) -> Result<Settings, Fault> {
    let mut problems = Problems::new(env);
    let kafka = match args.no_topic {
        true => None,
        false => Some(config::read_kafka(&mut problems, &args.kafka.settings, true, env)),
    };
    let ledger = config::read_ledger_of(&mut problems, args.job.name.as_deref(), env);
    let against = match &args.against {
        Some(table) => problems.take("--against", config::read_table(table)),
        None => {
            if !problems.concern("--against") {
                problems.add("--against", "is not set: the table of the other program");
            }
            None
        }
    };
    let mut time = |flag, text: &Option<String>| {
        let text = text.as_deref()?;
        let time = parse_rfc3339(text.trim().as_bytes()).map(EventTime::from_millis);
        problems.take(
            flag,
            time.ok_or_else(|| format!("is {text:?}: it must be a time like 2026-01-31T12:00:00Z")),
        )
    };
    let (since, until) = (time("--since", &args.since), time("--until", &args.until));
    if let (Some(since), Some(until)) = (since, until)
        && until <= since
    {
        problems.add("--until", format!("is {until}, which is not after --since ({since})"));
    }
    let delay = duration_ms(&args.out_of_orderness, 0, YEAR_MS);
    let delay = problems.take("--out-of-orderness", delay);
    let show = problems.take("--show", whole(&args.show, 0, 1_000_000));
    let kafka_is_read = kafka.as_ref().is_none_or(Option::is_some);
    match (ledger, against, delay, show) {
        (Some(ledger), Some(against), Some(delay), Some(show))
            if kafka_is_read && problems.is_empty() =>
        {
            Ok(Settings {
                kafka: kafka.flatten(),
                other: LedgerConfig { table: against, ..ledger.clone() },
                ledger,
                since,
                until,
                out_of_orderness_ms: delay as i64,
                show: show as usize,
            })
        }
        _ => Err(problems.fault()),
    }
}

fn stopped() -> Fault {
    Fault::environment("the comparison was stopped before its end")
}

/// Reads what the job has read, and finds the events that may have been late, and dead letters.
fn read_topic(
    kafka: &KafkaConfig,
    snapshot: &AuditSnapshot,
    out_of_orderness_ms: i64,
    run_state: &RunState,
) -> Result<TopicEvents, Fault> {
    let ranges = available(kafka, snapshot, run_state)?;
    let records = reread::count(&ranges);
    info!("reading {} to see which events came late", plural(records, "record"));
    let letters = |range: &Range| snapshot.refused.get(&(range.topic.clone(), range.partition));
    let letters: Vec<_> = ranges.iter().map(letters).collect();
    let mut newest = vec![EventTime::NEVER; ranges.len()];
    let mut found = TopicEvents { late: Events::new(), dead: Events::new() };
    let read = reread::read(kafka, &ranges, run_state, |at, record| {
        let Ok(event) = event::decode(record.payload) else { return };
        let add = |to: &mut Events| {
            to.entry(event.key()).or_default().push(Span::event(event.time));
        };
        if may_be_late(event.time, newest[at], snapshot.gap, out_of_orderness_ms) {
            add(&mut found.late);
        }
        if letters[at].is_some_and(|letters| letters.contains_key(&record.offset)) {
            add(&mut found.dead);
        }
        newest[at] = newest[at].max(event.time);
    })?;
    read.map(|_| found).ok_or_else(stopped)
}

/// Whether the window of an event may have ended before the watermark, given the newest event that
/// its partition had before it.
fn may_be_late(time: EventTime, newest: EventTime, gap: Gap, out_of_orderness_ms: i64) -> bool {
    newest > EventTime::NEVER && gap.end_after(time) <= newest.plus(-out_of_orderness_ms)
}

/// The records that the job has read and Kafka still has.
fn available(
    kafka: &KafkaConfig,
    snapshot: &AuditSnapshot,
    run_state: &RunState,
) -> Result<Vec<Range>, Fault> {
    let bindings = snapshot.latest_bindings().iter().map(|binding| Range {
        topic: binding.topic.clone(),
        partition: binding.partition,
        start: binding.start,
        end: binding.end,
    });
    let read: Vec<Range> = bindings.collect();
    let mut ranges = Vec::new();
    for available in reread::available(kafka, &read, run_state)? {
        let Range { topic, partition, start, .. } = available.range;
        if available.oldest > *start {
            warn!(
                "{topic}[{partition}]: Kafka no longer has offsets {start} to {}, so which of them \
                 were late is not known, and differences that they explain count as unexplained: \
                 exclude them with --since, or use --no-topic",
                available.oldest
            );
        }
        ranges.push(available.part());
    }
    ranges.retain(|range| range.end > range.start);
    Ok(ranges)
}

/// Reads both tables twice: to find the period that they have in common, and to compare them.
fn compared(
    snapshot: &mut AuditSnapshot,
    settings: &Settings,
    topic: Option<TopicEvents>,
    run_state: &RunState,
) -> Result<Report, Fault> {
    let gap = snapshot.gap;
    let common = common(snapshot, settings, run_state)?;
    let topic_was_read = topic.is_some();
    let (late, mut dead) = match topic {
        Some(TopicEvents { late, dead }) => (Some(late), dead),
        None => (None, Events::new()),
    };
    for (key, row) in std::mem::take(&mut snapshot.refused_rows) {
        dead.entry(key).or_default().push(row);
    }
    let (ours, theirs) = (snapshot.table_name(), settings.other.table.clone());
    let mut comparison = Comparison {
        gap,
        late,
        dead,
        forgotten: std::mem::take(&mut snapshot.forgotten),
        show: settings.show,
        report: Report::new(ours, theirs, common, topic_was_read),
        current: None,
    };
    snapshot
        .rows_beside(&settings.other, |is_ours, key, span| {
            comparison.row(is_ours, key, window(gap, span));
            !run_state.ending()
        })
        .map_err(unreadable)?;
    if run_state.ending() {
        return Err(stopped());
    }
    Ok(comparison.finish())
}

fn window(gap: Gap, span: Span) -> WindowRow {
    WindowRow { start: span.first, end: gap.end_after(span.last), events: span.count }
}

/// The period that both tables have, unless the user has limited it. It is an error if there is
/// none.
fn common(
    snapshot: &mut AuditSnapshot,
    settings: &Settings,
    run_state: &RunState,
) -> Result<Common, Fault> {
    let gap = snapshot.gap;
    let mut bounds: [Option<(EventTime, EventTime)>; 2] = [None, None];
    snapshot
        .rows_beside(&settings.other, |is_ours, _, span| {
            let WindowRow { start, end, .. } = window(gap, span);
            let (first, last) = bounds[usize::from(!is_ours)].get_or_insert((start, end));
            (*first, *last) = (start.min(*first), end.max(*last));
            !run_state.ending()
        })
        .map_err(unreadable)?;
    let name = snapshot.table_name();
    let empty = |table: &str| Fault::environment(format!("the table {table} has no rows yet"));
    let [ours, theirs] = bounds;
    let ours = ours.ok_or_else(|| empty(&name))?;
    let theirs = theirs.ok_or_else(|| empty(&settings.other.table))?;
    let watermark = snapshot.shards.iter().map(|shard| snapshot.epochs[&shard.epoch].0).min();
    // What ends exactly at the watermark is still open.
    let closed = watermark.unwrap_or(EventTime::NEVER).plus(-1);
    let common = Common {
        from: settings.since.unwrap_or(ours.0.max(theirs.0)),
        to: settings.until.unwrap_or(closed.min(theirs.1)),
    };
    if common.to <= common.from {
        return Err(Fault::environment(format!(
            "the tables {name} and {} have no time in common to compare: it would begin at {}, the \
             first session that both can have, or --since, and end at {}, where both have closed \
             everything, or --until",
            settings.other.table, common.from, common.to
        )));
    }
    Ok(common)
}

/// The comparison of the rows of both tables, which come visitor by visitor.
struct Comparison {
    gap: Gap,
    /// `None`: nobody knows.
    late: Option<Events>,
    dead: Events,
    forgotten: Forgotten,
    /// How many differences of a class the report shows.
    show: usize,
    report: Report,
    /// The stretch that the next row may join.
    current: Option<(Key, Stretch)>,
}

impl Comparison {
    fn row(&mut self, is_ours: bool, key: Key, row: WindowRow) {
        let joins = self
            .current
            .as_mut()
            .is_some_and(|(of, stretch)| *of == key && stretch.add(is_ours, row));
        if !joins {
            let mut next = Stretch::default();
            next.add(is_ours, row);
            if let Some((key, stretch)) = self.current.replace((key, next)) {
                self.classify(&key, stretch);
            }
        }
    }

    fn classify(&mut self, key: &Key, stretch: Stretch) {
        let known = Known {
            // As many as there can be if nobody knows.
            late: self.late.as_ref().map_or(u64::MAX, |late| self.count(late, key, &stretch)),
            dead: match key.is_too_long() {
                true => u64::MAX,
                false => self.count(&self.dead, key, &stretch),
            },
            is_forgotten: self.forgotten.has_visitor(key),
        };
        let class = stretch.class(self.report.common(), known);
        self.report.add(key, stretch, class, self.show);
    }

    /// How many of these events are within a stretch.
    fn count(&self, events: &Events, key: &Key, stretch: &Stretch) -> u64 {
        let is_within = |span: &&Span| {
            stretch.start() <= Some(span.first)
                && Some(self.gap.end_after(span.last)) <= stretch.end()
        };
        let spans = events.get(key).into_iter().flatten();
        spans.filter(is_within).map(|span| span.count).sum()
    }

    fn finish(mut self) -> Report {
        if let Some((key, stretch)) = self.current.take() {
            self.classify(&key, stretch);
        }
        self.report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_may_be_late_once_its_window_ends_before_the_watermark() {
        let at = |seconds: i64| EventTime::from_millis(1_000 * seconds);
        let gap = Gap::from_millis(300_000).expect("a gap");
        for (newest, late) in [(1_314, false), (1_315, true), (1_316, true)] {
            assert_eq!(may_be_late(at(1_000), at(newest), gap, 15_000), late, "{newest}");
        }
        assert!(!may_be_late(at(1_000), EventTime::NEVER, gap, 15_000), "it is the first");
    }
}
