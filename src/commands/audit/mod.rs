//! `sessionizer audit`: reads the topic again, computes the batch answer, and compares the table
//! with it, row by row.
//!
//! It may run beside the job: everything in Postgres is read at one moment, each shard at the epoch
//! it had reached by then, and the topic is read up to the offsets bound by that epoch. The
//! recorded totals are compared with both: what they say about a shard must match the table and the
//! topic.

mod report;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;
use log::info;
use sessionizer_core::binding::Offset;
use sessionizer_core::event;
use sessionizer_core::event::{Event, Reason};
use sessionizer_core::fault::Fault;
use sessionizer_core::key::{Key, Shard, stable_hash};
use sessionizer_core::plan::ShardProgress;
use sessionizer_core::session::batch::{BatchOracle, RowVerdict};

use self::report::Difference;
pub use self::report::Report;
use crate::cli::AuditArgs;
use crate::config;
use crate::config::{Environment, Problems, whole};
use crate::dataflow::ports::LedgerError;
use crate::dataflow::run_state::RunState;
use crate::kafka::{Admin, KafkaConfig, Range, scan};
use crate::ledger::{LedgerConfig, Moment};
use crate::ui::bars::{bars, style};
use crate::ui::text;

/// How many differences of each kind are shown by default.
const MAX_SHOWN: usize = 20;

/// Compares and prints the report. The fault says that the table is not the batch answer.
pub fn audit(args: &AuditArgs, env: &Environment, run_state: &Arc<RunState>) -> Result<(), Fault> {
    let (kafka, ledger, show) = read(args, env)?;
    let report = check(&kafka, &ledger, show, run_state)?;
    printed(report.print(&mut io::stdout().lock()))?;
    let sentence = report.verdict()?;
    printed(writeln(&sentence))
}

/// Compares the table of a job with the topic. The fault says why that is impossible;
/// [`Report::verdict`] says whether the table is right.
pub fn verify(
    kafka: &KafkaConfig,
    ledger: &LedgerConfig,
    run_state: &RunState,
) -> Result<Report, Fault> {
    check(kafka, ledger, MAX_SHOWN, run_state)
}

fn check(
    kafka: &KafkaConfig,
    ledger: &LedgerConfig,
    show: usize,
    run_state: &RunState,
) -> Result<Report, Fault> {
    let mut moment = Moment::read(ledger).map_err(give_up)?;
    let ranges = ranges(&moment);
    check_available(kafka, &ranges, run_state)?;
    let records: i64 = ranges.iter().map(|range| range.end.since(range.start)).sum();
    info!(
        "reading up to {} of {} again",
        text::plural(records, "record"),
        text::plural(ranges.len(), "partition")
    );
    let (mut answer, topic) = batch_answer(kafka, &moment, &ranges, run_state)?;
    info!(
        "{} make {}; reading the table",
        text::plural(topic.records, "record"),
        text::plural(answer.len(), "session")
    );
    let mut report = compare(&mut moment, &mut answer, &topic, show, run_state)?;
    report.next_start = match moment.check_next_start() {
        Ok(()) => None,
        Err(LedgerError::Fatal(fault)) => Some(fault),
        Err(error) => return Err(give_up(error)),
    };
    Ok(report)
}

fn writeln(line: &str) -> io::Result<()> {
    use io::Write;
    writeln!(io::stdout().lock(), "{line}")
}

/// A reader of the output may stop early (`audit | head`). That does not change the verdict.
fn printed(result: io::Result<()>) -> Result<(), Fault> {
    match result {
        Err(why) if why.kind() != io::ErrorKind::BrokenPipe => Err(Fault::Environment(format!(
            "the report cannot be written to standard output: {why}"
        ))),
        _ => Ok(()),
    }
}

fn give_up(error: LedgerError) -> Fault {
    match error {
        LedgerError::Fatal(fault) => fault,
        LedgerError::Retry(why) => Fault::Environment(format!("Postgres cannot be read: {why}")),
    }
}

fn read(args: &AuditArgs, env: &Environment) -> Result<(KafkaConfig, LedgerConfig, usize), Fault> {
    let mut problems = Problems::new(env);
    let kafka = config::read_kafka(&mut problems, &args.kafka_config, true, env);
    let ledger = config::read_ledger_of(&mut problems, args.job.as_deref(), env);
    let show = whole(&args.show, 0, 1_000_000).map_err(|what| problems.add("--show", what));
    match (kafka, ledger, show) {
        (Some(kafka), Some(ledger), Ok(show)) if problems.is_empty() => {
            Ok((kafka, ledger, show as usize))
        }
        _ => Err(problems.fault()),
    }
}

/// The offsets from where the job began to where the furthest shard is, by partition.
fn ranges(moment: &Moment) -> Vec<Range> {
    let Some((_, (_, bindings))) = moment.epochs.last_key_value() else { return Vec::new() };
    let range = |b: &crate::ledger::NamedBinding| Range {
        topic: b.topic.clone(),
        partition: b.partition,
        start: b.start,
        end: b.end,
    };
    bindings.iter().map(range).filter(|range| range.end > range.start).collect()
}

fn check_available(
    kafka: &KafkaConfig,
    ranges: &[Range],
    run_state: &RunState,
) -> Result<(), Fault> {
    let cluster = Admin::new(kafka)?;
    cluster.topics(Duration::from_secs(60), || run_state.ending())?;
    for range in ranges {
        let (oldest, end) = cluster.offsets(&range.topic, range.partition)?;
        if oldest > range.start || end < range.end {
            return Err(Fault::Config(format!(
                "{}[{}]: the job has read offsets {} to {}, Kafka has {oldest} to {end}: records \
                 that are gone cannot be audited",
                range.topic, range.partition, range.start, range.end
            )));
        }
    }
    Ok(())
}

/// The part of the topic's content that counts.
#[derive(Default)]
struct Topic {
    /// Records that were read, including those that do not count.
    records: u64,
    /// By shard.
    events: Vec<u64>,
    /// By shard: records that are not events.
    dead: Vec<u64>,
}

/// The sessions of every event bound by the epoch that its shard has reached.
fn batch_answer(
    kafka: &KafkaConfig,
    moment: &Moment,
    ranges: &[Range],
    run_state: &RunState,
) -> Result<(BatchOracle, Topic), Fault> {
    let bar = match std::io::stderr().is_terminal() {
        true => bars()
            .add(ProgressBar::new(ranges.iter().map(|r| r.end.since(r.start) as u64).sum()))
            .with_style(style("{bar:24} {percent}% of {human_len} records, {rate}, {eta} to go")),
        false => ProgressBar::hidden(),
    };
    // By range and shard: the offset after the last record that counts.
    let ends: Vec<Vec<Offset>> = ranges.iter().map(|range| ends_by_shard(moment, range)).collect();
    let refused: Vec<_> = ranges
        .iter()
        .map(|range| moment.refused.get(&(range.topic.clone(), range.partition)))
        .collect();
    let latest: Vec<_> = ranges
        .iter()
        .map(|range| moment.latest.get(&(range.topic.clone(), range.partition)))
        .collect();
    let shards = moment.shards.len() as u32;
    let mut answer = BatchOracle::new(moment.gap);
    let none = vec![0; moment.shards.len()];
    let mut topic = Topic { records: 0, events: none.clone(), dead: none };
    let give_up = || run_state.ending();
    scan(kafka, ranges, give_up, |at, record| {
        topic.records += 1;
        if topic.records.is_multiple_of(4_096) {
            bar.set_position(topic.records);
        }
        let range = &ranges[at];
        let event = event::decode(record.payload).ok();
        let refused = refused[at].and_then(|offsets| offsets.get(&record.offset)).copied();
        let refused = refused.or_else(|| {
            let passed_by_all = ends[at].iter().all(|end| record.offset < *end);
            let time = event.as_ref().filter(|_| !passed_by_all)?.time;
            let (_, latest) = latest[at]?.iter().find(|(end, _)| record.offset < *end)?;
            (time > *latest).then_some(Reason::Future)
        });
        let key = event.as_ref().map(Event::key);
        let of_key = key.as_ref().map(|key| Shard::of(stable_hash(key.bytes()), shards));
        // A dead letter counts in the shard of its offset, unless it is an event that came too
        // late.
        let shard = of_key.filter(|_| refused != Some(Reason::Future)).unwrap_or_else(|| {
            Shard::of_record(&range.topic, range.partition, record.offset, shards)
        });
        let shard = shard.0 as usize;
        if record.offset < ends[at][shard] {
            match event.zip(key).filter(|_| refused.is_none()) {
                Some((event, key)) => {
                    topic.events[shard] += 1;
                    answer.add(key, event.time);
                }
                None => topic.dead[shard] += 1,
            }
        }
        !run_state.ending()
    })?;
    bar.finish_and_clear();
    if run_state.ending() {
        return Err(stopped());
    }
    Ok((answer, topic))
}

fn stopped() -> Fault {
    Fault::Environment("the audit was stopped before its end".to_owned())
}

fn ends_by_shard(moment: &Moment, range: &Range) -> Vec<Offset> {
    let end = |epoch| {
        let (_, bindings) = &moment.epochs[epoch];
        let of =
            bindings.iter().find(|b| (&b.topic, b.partition) == (&range.topic, range.partition));
        of.map_or(range.start, |binding| binding.end)
    };
    moment.shards.iter().map(|shard| end(&shard.epoch)).collect()
}

fn compare(
    moment: &mut Moment,
    answer: &mut BatchOracle,
    topic: &Topic,
    show: usize,
    run_state: &RunState,
) -> Result<Report, Fault> {
    let shards = moment.shards.len() as u32;
    let gap = moment.gap;
    let watermarks: Vec<_> =
        moment.shards.iter().map(|shard| moment.epochs[&shard.epoch].0).collect();
    let shard_of = |key: &Key| Shard::of(stable_hash(key.bytes()), shards).0 as usize;
    let mut report = Report { events: topic.events.iter().sum(), ..Report::of(moment) };
    let found_rows = moment.found_rows;
    let mut closed = vec![0; moment.shards.len()];
    let mut refused = vec![0; moment.shards.len()];
    for (key, span) in std::mem::take(&mut moment.refused_rows) {
        refused[shard_of(&key)] += span.count;
        if !answer.refuse(&key, span) {
            report.wrong_count += 1;
            report.shown.push((Difference::Wrong, key, span));
        }
    }
    report.refused = answer.refused();
    moment
        .rows(|key, row| {
            let shard = shard_of(&key);
            let watermark = watermarks[shard];
            closed[shard] += row.count;
            match answer.check(&key, row, |span| gap.end_after(span.last) < watermark) {
                RowVerdict::Right => report.right += 1,
                RowVerdict::PartOfOpen => report.part_of_open += 1,
                // Rows from before the job are not of its events, or not only of its events.
                RowVerdict::Wrong if found_rows && answer.joins(&key, row) => report.joined += 1,
                RowVerdict::Wrong if found_rows => report.before += 1,
                RowVerdict::Wrong => {
                    report.wrong_count += 1;
                    if report.shown.len() < show {
                        report.shown.push((Difference::Wrong, key, row));
                    }
                }
            }
            !run_state.ending()
        })
        .map_err(give_up)?;
    if run_state.ending() {
        return Err(stopped());
    }
    for (key, span) in answer.missing() {
        if gap.end_after(span.last) >= watermarks[shard_of(key)] {
            report.open += 1;
            continue;
        }
        report.missing_count += 1;
        if report.shown.len() < 2 * show {
            report.shown.push((Difference::Missing, key.clone(), span));
        }
    }
    for (at, totals) in moment.shards.iter().enumerate() {
        // Rows from before the job count events that the job does not know.
        let closed = if found_rows { totals.closed } else { closed[at] };
        let open = topic.events[at].saturating_sub(closed + refused[at]);
        let found = ShardProgress { closed, open, dead: topic.dead[at] + refused[at], ..*totals };
        if found != *totals {
            report.totals.push((Shard(at as u32), *totals, found));
        }
    }
    Ok(report)
}
