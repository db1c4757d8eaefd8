//! `sessionizer report`: runs the analysis in `queries/` and shows what it finds, as tables, JSON,
//! CSV, or a page. It only reads, and everything in a report comes from one snapshot.

mod chart;
mod data;
mod html;
mod parts;
mod tables;

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use chrono::NaiveDate;
use indicatif::ProgressBar;
use log::{debug, info};
use parts::{PARTS, Part};
use sessionizer_core::fault::Fault;

use crate::cli::ReportArgs;
use crate::commands::output::{self, give_up, print};
use crate::config;
use crate::config::{Environment, Problems, duration_ms, list, whole};
use crate::dataflow::ports::LedgerError;
use crate::dataflow::run_state::RunState;
use crate::ledger::LedgerConfig;
use crate::ledger::report::{QueryResult, ReportReader, SessionFilter};
use crate::monitor::mask::mask;
use crate::ui::bars::{bars, style};
use crate::ui::text;

/// The width of tables on a narrower terminal, or on none.
const WIDTH: u16 = 80;
/// How soon a stop is noticed.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// A query that takes longer than this is logged if no progress bar is shown.
const LONG: Duration = Duration::from_secs(5);

/// A part with its rows.
type Done = (Part, QueryResult);

/// What a report is about.
pub struct Head {
    pub job: String,
    pub table: String,
    pub as_of: String,
    pub filter: SessionFilter,
    pub addresses: bool,
}

/// The settings of a report.
struct Settings {
    ledger: LedgerConfig,
    filter: SessionFilter,
    parts: Vec<Part>,
    addresses: bool,
    rows: usize,
}

/// Runs the queries and shows their results.
pub fn report(
    args: &ReportArgs,
    env: &Environment,
    run_state: &Arc<RunState>,
) -> Result<(), Fault> {
    let settings = read(args, env)?;
    // Whether it can be written is known before the queries run.
    let page = args.html.as_deref().filter(|file| *file != "-");
    page.map(try_to_write).transpose()?;
    let (rows, addresses) = (settings.rows, settings.addresses);
    let (head, mut done) = ask_all(settings, run_state)?;
    if !addresses {
        done.iter_mut().for_each(|(part, answer)| mask_addresses(part, answer));
    }
    if let Some(file) = page {
        let written = output::replace(Path::new(file), html::page(&head, &done).as_bytes());
        return written.map_err(|why| Fault::environment(unwritable(file, &why)));
    }
    let text = match done.first() {
        Some((part, answer)) if args.csv => {
            debug!("{}: {} rows", part.name, answer.rows.len());
            data::csv(answer)
        }
        _ if args.html.is_some() => html::page(&head, &done),
        _ if args.json => format!("{:#}\n", data::json(&head, &done)),
        _ => tables::tables(&head, &done, rows, width()),
    };
    print(&text).map(drop)
}

/// Whether a file can be written. Leaves its content as it is, and does not open a pipe, whose reader
/// would see it end.
fn try_to_write(file: &str) -> Result<(), Fault> {
    let open = || OpenOptions::new().append(true).create(true).open(file).map(drop);
    let tried = match std::fs::metadata(file) {
        Ok(known) if known.is_file() || known.is_dir() => open(),
        Ok(_) => Ok(()),
        // It may be a link to a file that is not there yet.
        Err(_) => open().and_then(|()| {
            std::fs::remove_file(std::fs::canonicalize(file).as_deref().unwrap_or(file.as_ref()))
        }),
    };
    tried.map_err(|why| Fault::config(unwritable(file, &why)))
}

fn unwritable(file: &str, why: &std::io::Error) -> String {
    format!("--html: the file {file:?} cannot be written: {why}")
}

fn read(args: &ReportArgs, env: &Environment) -> Result<Settings, Fault> {
    let mut problems = Problems::new(env);
    let what = "the job whose table is analysed";
    let ledger = config::read_ledger_alone(&mut problems, args.job.name.as_deref(), what, env);
    let mut day = |name: &str, text: &Option<String>| {
        let Some(text) = text.as_deref().map(str::trim) else { return Some(None) };
        let day = NaiveDate::parse_from_str(text, "%Y-%m-%d");
        let day = day.map_err(|_| format!("is {text:?}: it must be a day like 2026-01-31"));
        problems.take(name, day).map(Some)
    };
    let (from, to) = (day("--from", &args.from), day("--to", &args.to));
    if let (Some(Some(from)), Some(Some(to))) = (from, to)
        && to < from
    {
        problems.add("--to", format!("is {to}, which is before --from ({from})"));
    }
    let hosts = problems.take("--host", list(&args.host));
    let parts = problems.take("--only", chosen(&args.only));
    let formats = [args.html.is_some(), args.json, args.csv].iter().filter(|is| **is).count();
    if formats > 1 {
        problems.add("--html, --json, --csv", "are several formats: choose one");
    }
    if args.csv && parts.as_ref().is_some_and(|parts| parts.len() != 1) {
        let name = "--only bounce_rate";
        problems.add("--csv", format!("is one table: choose it with --only, for example {name}"));
    }
    let timeout = problems.take("--timeout", duration_ms(&args.timeout, 1, 86_400_000));
    let rows = problems.take("--rows", whole(&args.rows, 1, 1_000_000));
    let settings = || {
        let shown = |day: Option<NaiveDate>| day.map(|day| day.to_string());
        Some(Settings {
            ledger: ledger?,
            filter: SessionFilter {
                from: shown(from?),
                to: shown(to?),
                hosts: hosts?.into_iter().map(str::to_owned).collect(),
                time_zone: args.time_zone.trim().to_owned(),
                timeout: Duration::from_millis(timeout?),
            },
            parts: parts?,
            addresses: args.addresses,
            rows: rows? as usize,
        })
    };
    settings().filter(|_| problems.is_empty()).ok_or_else(|| problems.fault())
}

/// The parts with these names; all if there are none.
fn chosen(names: &[String]) -> Result<Vec<Part>, String> {
    let names: Vec<&str> = names.iter().map(|name| name.trim().trim_end_matches(".sql")).collect();
    if let Some(unknown) = names.iter().find(|name| PARTS.iter().all(|part| part.name != **name)) {
        let known: Vec<&str> = PARTS.iter().map(|part| part.name).collect();
        return Err(format!("names {unknown:?}, which is none of {}", known.join(", ")));
    }
    let is_chosen = |part: &Part| names.is_empty() || names.contains(&part.name);
    Ok(PARTS.into_iter().filter(is_chosen).collect())
}

/// What the thread that runs the queries reports.
enum Message {
    Began(Head),
    Part(&'static str),
    Done(Vec<Done>),
    Failed(LedgerError),
}

/// Runs all queries on a separate thread, so that a stop does not have to wait for the server: once
/// this process has gone, the server cancels the query by itself.
fn ask_all(settings: Settings, run_state: &RunState) -> Result<(Head, Vec<Done>), Fault> {
    let all = settings.parts.len();
    let (sender, receiver) = channel();
    let asks = move || {
        let send = |message| _ = sender.send(message);
        match ask(settings, &send) {
            Ok(done) => send(Message::Done(done)),
            Err(why) => send(Message::Failed(why)),
        }
    };
    std::thread::Builder::new().name("report".to_owned()).spawn(asks).expect("a thread can start");
    let bar = bars().add(ProgressBar::new(all as u64));
    bar.set_style(style("{spinner} {msg} ({pos} of {len} done, {elapsed})"));
    bar.set_message("connecting");
    let (mut head, mut running) = (None, None::<(&str, Instant)>);
    let result = loop {
        bar.tick();
        match receiver.recv_timeout(POLL_INTERVAL) {
            Ok(Message::Began(of)) => head = Some(of),
            Ok(Message::Part(name)) => {
                finished(running.replace((name, Instant::now())), &bar);
                bar.set_message(name);
            }
            Ok(Message::Done(done)) => {
                finished(running.take(), &bar);
                break Ok((head.take().expect("it began"), done));
            }
            Ok(Message::Failed(error)) => {
                break Err(give_up(error, |why| format!("Postgres cannot be used: {why}")));
            }
            Err(RecvTimeoutError::Timeout) if run_state.stopping() => {
                let why = "the report was stopped before its end";
                break Err(Fault::environment(why));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => unreachable!("the thread reports how it ends"),
        }
    };
    bar.finish_and_clear();
    result
}

fn finished(part: Option<(&str, Instant)>, bar: &ProgressBar) {
    let Some((name, since)) = part else { return };
    bar.inc(1);
    if bar.is_hidden() && since.elapsed() > LONG {
        info!("{name} took {}", text::duration(since.elapsed()));
    }
}

fn ask(settings: Settings, send: &impl Fn(Message)) -> Result<Vec<Done>, LedgerError> {
    let Settings { ledger, filter, parts, addresses, .. } = settings;
    let mut reader = ReportReader::open(&ledger, &filter)?;
    let (table, as_of) = (reader.table.clone(), reader.as_of.clone());
    send(Message::Began(Head { job: ledger.job, table, as_of, filter, addresses }));
    let mut done = Vec::new();
    for part in parts {
        send(Message::Part(part.name));
        done.push((part, reader.ask(part.name, part.sql())?));
    }
    Ok(done)
}

fn mask_addresses(part: &Part, answer: &mut QueryResult) {
    let is_address = |(name, _): &(String, _)| Some(name.as_str()) == part.address;
    let Some(at) = answer.columns.iter().position(is_address) else { return };
    for cell in answer.rows.iter_mut().filter_map(|row| row[at].as_mut()) {
        *cell = mask(cell);
    }
}

impl Head {
    /// What the report is about, in one sentence.
    pub fn sentence(&self) -> String {
        let SessionFilter { from, to, hosts, time_zone, .. } = &self.filter;
        let range = match (from, to) {
            (None, None) => "All sessions".to_owned(),
            (Some(from), None) => format!("Sessions that began on {from} or later"),
            (None, Some(to)) => format!("Sessions that began on {to} or earlier"),
            (Some(from), Some(to)) if from == to => format!("Sessions that began on {from}"),
            (Some(from), Some(to)) => format!("Sessions that began from {from} to {to}"),
        };
        let hosts = match hosts.as_slice() {
            [] => String::new(),
            hosts => format!(" on {}", hosts.join(", ")),
        };
        let Head { job, table, as_of, .. } = self;
        format!(
            "{range}{hosts} in the table {table} of the job {job}, as of {as_of}; days and hours \
             in {time_zone}."
        )
    }
}

/// The width of the terminal, but at least [`WIDTH`].
fn width() -> u16 {
    let terminal = terminal_size::terminal_size_of(std::io::stdout());
    terminal.map_or(WIDTH, |(width, _)| width.0.max(WIDTH))
}
