//! `sessionizer redrive`: processes dead letters again once their cause is fixed.
//!
//! It shows which of them are good events now, asks, and merges these as one more commit of the
//! stopped job. Payloads that were cut are reread from Kafka; everything else is in Postgres.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, IsTerminal};
use std::sync::Arc;

use comfy_table::{CellAlignment, Table, presets};
use log::info;
use sessionizer_core::binding::{Late, Offset, RecordRules};
use sessionizer_core::event::Reason;
use sessionizer_core::fault::Fault;

use crate::cli::RedriveArgs;
use crate::commands::output;
use crate::commands::output::say;
use crate::config;
use crate::config::{Environment, Problems, duration_ms, list};
use crate::dataflow::ports::LedgerError;
use crate::dataflow::run_state::RunState;
use crate::job::clock::now_ms;
use crate::kafka::{Admin, KafkaConfig, Range, scan};
use crate::ledger;
use crate::ledger::{
    Cut, Decoded, LedgerConfig, Position, ROW_REFUSED, ReasonCounts, Redrive, Redriven,
};
use crate::ui::text::{count, plural};

/// Offsets of a partition that are at most this far apart are read in one go.
const APART: i64 = 1_000;
const YEAR: u64 = 366 * 24 * 3_600_000;

/// Shows what would be merged, asks, and merges it.
pub fn redrive(
    args: &RedriveArgs,
    env: &Environment,
    run_state: &Arc<RunState>,
) -> Result<(), Fault> {
    let (kafka, config, reasons, rules) = read(args, env)?;
    let cut = ledger::cut_letters(&config, &reasons).map_err(not_begun)?;
    let found = read_again(&kafka, cut, run_state)?;
    let request = Redrive { reasons, rules, now_ms: now_ms(), found };
    let tried = ledger::redrive(&config, &request, None).map_err(not_begun)?;
    let good: u64 = tried.by_reason.values().map(|of| of.good).sum();
    if args.dry_run || !args.yes || good == 0 {
        say(&format!(
            "Dead letters of the job {},\nin {}:\n\n{}\n",
            config.job,
            tried.database,
            shown(&tried)
        ))?;
    }
    match good {
        0 => return say("None of them is an event now; nothing was changed.\n"),
        _ if args.dry_run => return say("Nothing was changed: this was a trial (--dry-run).\n"),
        _ if !args.yes => confirm(&config.job)?,
        _ => {}
    }
    let done = ledger::redrive(&config, &request, Some(run_state)).map_err(give_up)?;
    say(&format!(
        "Redriven in the job {},\nin {}:\n\n{}\n",
        config.job,
        done.database,
        shown(&done)
    ))?;
    say(&format!(
        "Merged: {} into rows, {} into open sessions.\n",
        plural(done.closed, "event"),
        count(done.open)
    ))
}

type Settings = (KafkaConfig, LedgerConfig, Vec<String>, RecordRules);

fn read(args: &RedriveArgs, env: &Environment) -> Result<Settings, Fault> {
    let mut problems = Problems::new(env);
    let kafka = config::read_kafka(&mut problems, &args.kafka.settings, true, env);
    let ledger = config::read_ledger_of(&mut problems, args.job.name.as_deref(), env);
    let known: Vec<&str> =
        Reason::ALL.iter().map(|reason| reason.name()).chain([ROW_REFUSED]).collect();
    let are_named = args.reason.iter().any(|reason| !reason.trim().is_empty());
    let reasons = if are_named { list(&args.reason) } else { Ok(Vec::new()) };
    let reasons = problems.take("--reason", reasons).unwrap_or_default();
    let mut reasons: Vec<String> = reasons.into_iter().map(str::to_owned).collect();
    if let Some(other) = reasons.iter().find(|reason| !known.contains(&reason.as_str())) {
        problems.add("--reason", format!("is {other:?}: it can be {}", known.join(", ")));
    }
    if reasons.is_empty() && !problems.concern("--reason") {
        problems.add("--reason", format!("names no reason: it can be {}", known.join(", ")));
    }
    reasons.sort();
    reasons.dedup();
    let late = Late::named(args.late.trim())
        .ok_or_else(|| format!("is {:?}: it can be merge or drop", args.late));
    let late = problems.take("--late", late);
    let max_future_ms = problems.take("--max-future", duration_ms(&args.max_future, 0, YEAR));
    let rules = late
        .zip(max_future_ms)
        .map(|(late, max_future_ms)| RecordRules { late, max_future_ms: max_future_ms as i64 });
    match (kafka, ledger, rules) {
        (Some(kafka), Some(ledger), Some(rules)) if problems.is_empty() => {
            Ok((kafka, ledger, reasons, rules))
        }
        _ => Err(problems.fault()),
    }
}

/// The fault that ends the command before it has merged anything.
fn not_begun(error: LedgerError) -> Fault {
    output::give_up(error, |why| format!("nothing was merged: Postgres cannot be used: {why}"))
}

fn give_up(error: LedgerError) -> Fault {
    output::give_up(error, |why| {
        format!(
            "either everything was merged or nothing (run it again, and nothing counts twice): \
             Postgres cannot be used: {why}"
        )
    })
}

/// The dead letters of a partition whose payload was cut, by offset.
type CutRecords = BTreeMap<Offset, Cut>;

/// Reads the payloads that were cut from Kafka again, and decodes them.
fn read_again(
    kafka: &KafkaConfig,
    cut: Vec<Cut>,
    run_state: &RunState,
) -> Result<HashMap<Position, Decoded>, Fault> {
    let mut found = HashMap::new();
    if cut.is_empty() {
        return Ok(found);
    }
    info!("reading {} again, whose payload was cut", plural(cut.len(), "record"));
    let admin = Admin::new(kafka)?;
    let mut partitions: BTreeMap<(String, i32), CutRecords> = BTreeMap::new();
    for cut in cut {
        let Position { topic, partition, offset } = cut.position.clone();
        partitions.entry((topic, partition)).or_default().insert(offset, cut);
    }
    // By partition: the runs of offsets that are read one after another.
    let mut runs: Vec<Vec<Range>> = Vec::new();
    for ((topic, partition), wanted) in &mut partitions {
        let known = known(&admin, topic, *partition, wanted);
        wanted.retain(|offset, cut| match known(*offset) {
            Ok(()) => true,
            Err(why) => {
                found.insert(cut.position.clone(), Err(why));
                false
            }
        });
        runs.push(ranges(topic, *partition, wanted));
    }
    let rounds = runs.iter().map(Vec::len).max().unwrap_or(0);
    for round in 0..rounds {
        let ranges: Vec<Range> = runs.iter().filter_map(|runs| runs.get(round)).cloned().collect();
        scan(
            kafka,
            &ranges,
            || run_state.ending(),
            |at, record| {
                let Range { topic, partition, .. } = &ranges[at];
                let wanted = &partitions[&(topic.clone(), *partition)];
                if let Some(cut) = wanted.get(&record.offset) {
                    found.insert(cut.position.clone(), checked(cut, record.payload));
                }
                !run_state.ending()
            },
        )?;
        if run_state.ending() {
            return Err(Fault::environment("stopped; nothing was changed"));
        }
    }
    for cut in partitions.into_values().flat_map(BTreeMap::into_values) {
        found.entry(cut.position).or_insert_with(|| Err(GONE.to_owned()));
    }
    Ok(found)
}

/// The ranges to read, in order, so that each record is in one of them.
fn ranges(topic: &str, partition: i32, wanted: &CutRecords) -> Vec<Range> {
    let offsets: Vec<Offset> = wanted.keys().copied().collect();
    let near = |before: &Offset, next: &Offset| next.since(*before) <= APART;
    let range = |run: &[Offset]| Range {
        topic: topic.to_owned(),
        partition,
        start: run[0],
        end: run[run.len() - 1].next(),
    };
    offsets.chunk_by(near).map(range).collect()
}

const GONE: &str = "its payload was cut, and Kafka no longer has the record";

/// Returns a function that says whether an offset can be read, or why not.
fn known(
    admin: &Admin,
    topic: &str,
    partition: i32,
    wanted: &CutRecords,
) -> impl Fn(Offset) -> Result<(), String> + use<> {
    let id = admin.topic_ids(&[topic.to_owned()]).pop().flatten();
    let other = |cut: &Cut| cut.recreated || id.zip(cut.topic_id).is_some_and(|(a, b)| a != b);
    let recreated = wanted.values().any(other);
    let there = if recreated { None } else { Some(admin.offsets(topic, partition)) };
    move |offset| match &there {
        None => Err("its payload was cut, and its topic was created again".to_owned()),
        Some(Err(why)) => Err(format!("its payload was cut: {why}")),
        Some(Ok((oldest, end))) if (*oldest..*end).contains(&offset) => Ok(()),
        Some(Ok(_)) => Err(GONE.to_owned()),
    }
}

/// Decodes a record that was reread, if it is the one whose payload was cut.
fn checked(cut: &Cut, payload: Option<&[u8]>) -> Decoded {
    let bytes = payload.unwrap_or_default();
    if bytes.len() as u64 != cut.payload_bytes || !bytes.starts_with(&cut.kept) {
        return Err("its payload was cut, and Kafka has another record in its place".to_owned());
    }
    ledger::decode_again(payload)
}

/// What became of the dead letters, as a table, and why some are still bad.
fn shown(done: &Redriven) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["reason", "dead letters", "records", "events now", "records"]);
    for (reason, of) in &done.by_reason {
        let ReasonCounts { letters, records, good, good_records, .. } = of;
        let numbers = [letters, records, good, good_records].map(|n| count(*n));
        table.add_row([reason.clone()].into_iter().chain(numbers));
    }
    for column in 1..5 {
        let column = table.column_mut(column).expect("it has five");
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut lines: Vec<String> =
        table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
    for (reason, of) in &done.by_reason {
        for (why, number) in &of.bad {
            lines.push(format!(" {} {reason}: {why}", count(*number)));
        }
    }
    lines.join("\n")
}

/// Asks for the job's name.
fn confirm(job: &str) -> Result<(), Fault> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Fault::config(
            "nothing was changed: there is no terminal to ask at. Add --yes to continue without \
             being asked"
                .to_owned(),
        ));
    }
    say(&format!("Type the job's name to merge these events ({job}): "))?;
    let mut typed = String::new();
    stdin
        .lock()
        .read_line(&mut typed)
        .map_err(|why| Fault::environment(format!("nothing was changed: no answer: {why}")))?;
    if typed.trim() == job.trim() {
        return Ok(());
    }
    Err(Fault::config("nothing was changed: that is not the job's name"))
}
