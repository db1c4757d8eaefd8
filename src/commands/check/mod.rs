//! `sessionizer check`: everything that a start depends on, without starting.
//!
//! It asks what a start asks, with the same functions, and writes nothing: it takes no fence and
//! creates no topic, group, schema or table. Kafka and Postgres are checked at the same time, each
//! on its own thread, so that a server that does not answer does not hide the state of the other.

mod codes;
mod data;
mod kafka;
mod plan;
mod postgres;
mod report;
mod settings;

use std::io::{IsTerminal, Write, stderr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use sessionizer_core::fault::Fault;

use self::codes::{Code, Section};
use self::plan::Known;
use self::report::{Finding, Report, Style};
use self::settings::Settings;
use crate::cli::CheckArgs;
use crate::commands::output::print;
use crate::config::{Environment, Problems, duration_ms, list};
use crate::dataflow::run_state::RunState;
use crate::job::clock::now_ms;
use crate::ui::can_redraw;
use crate::ui::logging;
use crate::ui::text::duration;

/// How long `--wait` pauses between two checks, and how soon it notices that it must stop.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long the check of a server may report nothing, beyond a multiple of `--timeout`: a pooler
/// that has no room for a second connection keeps it waiting for five seconds, a broker for ten.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(12);
/// The default of `--max-future`, used if another setting is wrong.
const MAX_FUTURE_MS: i64 = 300_000;

/// What was asked for.
struct Wanted {
    sections: Vec<Section>,
    /// Whether `--only` names the events.
    data_requested: bool,
    connect: bool,
    wait: Duration,
    timeout: Duration,
}

/// Checks, prints the report, and returns the exit code.
pub fn check(args: &CheckArgs, env: &Environment, run_state: &Arc<RunState>) -> Result<u8, Fault> {
    let wanted = read(args, env)?;
    // The report covers what the clients would log.
    logging::quiet();
    let style = appearance();
    let began = Instant::now();
    let streams = wanted.wait.is_zero() && !args.json;
    let mut progress = Progress::default();
    let (report, job) = loop {
        let mut before = None;
        let mut show = |finding: &Finding| {
            if streams {
                print(&style.finding(finding, before.replace(finding.code.section())))?;
            }
            Ok(())
        };
        let (report, job) = once(args, env, &wanted, &mut show)?;
        let hopeless = report.findings.iter().any(|f| f.has_failed() && f.code <= Code::S04);
        let over = began.elapsed() >= wanted.wait || run_state.stopping();
        if report.exit_code() == 0 || hopeless || over {
            break (report, job);
        }
        progress.show(&report, began.elapsed(), wanted.wait);
        let until =
            Instant::now() + RETRY_INTERVAL.min(wanted.wait.saturating_sub(began.elapsed()));
        while Instant::now() < until && !run_state.stopping() {
            thread::sleep(POLL_INTERVAL);
        }
    };
    progress.end();
    if args.json {
        let document = report.json(now_ms(), job.as_deref());
        print(&format!("{document:#}\n"))?;
    } else {
        if !streams {
            let mut before = None;
            for finding in &report.findings {
                print(&style.finding(finding, before.replace(finding.code.section())))?;
            }
        }
        print(&format!("\n{}\n", report.summary()))?;
    }
    Ok(report.exit_code())
}

/// Reads the flags of the check itself.
fn read(args: &CheckArgs, env: &Environment) -> Result<Wanted, Fault> {
    // What is wrong with the settings of the job belongs in the report.
    let nothing = Environment::default();
    let mut problems = Problems::new(&nothing);
    let names: Vec<&str> = Section::ALL.iter().map(|section| section.name()).collect();
    let mut sections = Vec::new();
    let only = problems.take(&env.origin("--only"), list(&args.only));
    for name in only.unwrap_or_default() {
        match Section::ALL.iter().find(|section| section.name() == name) {
            Some(section) => sections.push(*section),
            None => {
                let what = format!("has {name:?}: it can be {}", names.join(", "));
                problems.add(&env.origin("--only"), what);
            }
        }
    }
    if args.no_connect && !sections.is_empty() && !sections.contains(&Section::Settings) {
        let what = "checks the settings alone, and --only does not name them";
        problems.add(&env.origin("--no-connect"), what);
    }
    let data_requested = sections.contains(&Section::Data);
    if sections.is_empty() {
        sections = Section::ALL.to_vec();
    }
    const HOUR: u64 = 3_600_000;
    let wait = problems.take(&env.origin("--wait"), duration_ms(&args.wait, 0, 24 * HOUR));
    let timeout = problems.take(&env.origin("--timeout"), duration_ms(&args.timeout, 100, HOUR));
    match (wait, timeout) {
        (Some(wait), Some(timeout)) if problems.is_empty() => Ok(Wanted {
            sections,
            data_requested,
            connect: !args.no_connect,
            wait: Duration::from_millis(wait),
            timeout: Duration::from_millis(timeout),
        }),
        _ => Err(problems.fault()),
    }
}

/// Checks everything once. `show` gets each finding as soon as it is known. Also returns the name
/// of the job.
fn once(
    args: &CheckArgs,
    env: &Environment,
    wanted: &Wanted,
    show: &mut dyn FnMut(&Finding) -> Result<(), Fault>,
) -> Result<(Report, Option<String>), Fault> {
    let mut report = Report::default();
    let mut failed_to_show = None;
    let mut take = |finding: Finding| {
        // A failure elsewhere is shown as well: it may be why a wanted part was not checked.
        let section = finding.code.section();
        if wanted.sections.contains(&section) || finding.has_failed() {
            if let Err(fault) = show(&finding) {
                failed_to_show.get_or_insert(fault);
            }
            report.findings.push(finding);
        }
    };
    let (settings, found) = settings::check(&args.run, env);
    let job = settings.ledger.as_ref().map(|ledger| ledger.job.clone());
    let everything = wanted.sections.contains(&Section::Settings) || needs(wanted, Section::Plan);
    let reads = (needs(wanted, Section::Kafka), needs(wanted, Section::Postgres));
    let can = (settings.kafka.is_some(), settings.ledger.is_some());
    // `--only kafka` does not ask for the settings of Postgres.
    let concerns = everything || (reads.0 && !can.0) || (reads.1 && !can.1);
    found.into_iter().filter(|f| concerns || !f.has_failed()).for_each(&mut take);
    let mut partitions = Vec::new();
    let mut plan = serde_json::Value::Null;
    if wanted.connect {
        let (on_kafka, on_postgres) = begin(&settings, wanted);
        let limit = 2 * wanted.timeout + SILENCE_TIMEOUT;
        let kafka = on_kafka.and_then(|work| follow(work, limit, Code::K01, "Kafka", &mut take));
        let postgres =
            on_postgres.and_then(|work| follow(work, limit, Code::P01, "Postgres", &mut take));
        let (kafka, postgres) = (kafka.flatten(), postgres.flatten());
        partitions = kafka.as_ref().map_or(Vec::new(), |facts| facts.partitions.clone());
        if needs(wanted, Section::Plan) {
            let known = Known { config: settings.config, kafka, postgres };
            let work = start("plan", move |report| plan::check(&known, report));
            let found = follow(work, 2 * limit, Code::L01, "Kafka", &mut take);
            plan = found.unwrap_or_default();
        }
    }
    match failed_to_show {
        Some(fault) => Err(fault),
        None => Ok((Report { partitions, plan, ..report }, job)),
    }
}

/// Whether a part has to be checked, for its own sake or because another part depends on it.
fn needs(wanted: &Wanted, section: Section) -> bool {
    let has = |section| wanted.sections.contains(&section);
    match section {
        Section::Kafka => has(Section::Kafka) || has(Section::Data) || has(Section::Plan),
        Section::Postgres => has(Section::Postgres) || has(Section::Plan),
        other => has(other),
    }
}

type Looks = (Option<Work<Option<kafka::Facts>>>, Option<Work<Option<postgres::Facts>>>);

/// Starts to check both servers.
fn begin(settings: &Settings, wanted: &Wanted) -> Looks {
    let config = settings.config.as_ref();
    let kafka = settings.kafka.clone().filter(|_| needs(wanted, Section::Kafka)).map(|kafka| {
        let options = kafka::CheckOptions {
            sections: wanted.sections.clone(),
            data_requested: wanted.data_requested,
            timeout: wanted.timeout,
            max_future_ms: config.map_or(MAX_FUTURE_MS, |config| config.rules.max_future_ms),
        };
        start("kafka", move |report| kafka::check(&kafka, &options, report))
    });
    let timeout = wanted.timeout;
    let writers = config.map_or(1, |config| config.writers);
    let wants_it = needs(wanted, Section::Postgres);
    let postgres = settings.ledger.clone().filter(|_| wants_it).map(|ledger| {
        start("postgres", move |report| postgres::check(&ledger, writers, timeout, report))
    });
    (kafka, postgres)
}

/// A check that runs on its own thread.
struct Work<T>(Receiver<Message<T>>);

enum Message<T> {
    Found(Finding),
    Done(T),
}

fn start<T: Send + 'static>(
    name: &str,
    work: impl FnOnce(&mut dyn FnMut(Finding)) -> T + Send + 'static,
) -> Work<T> {
    let (sender, receiver): (Sender<Message<T>>, _) = channel();
    let run = move || {
        // After too long a silence, nobody receives this any more.
        let done = work(&mut |finding| drop(sender.send(Message::Found(finding))));
        drop(sender.send(Message::Done(done)));
    };
    let thread = thread::Builder::new().name(format!("check-{name}"));
    thread.spawn(run).expect("a thread can be started");
    Work(receiver)
}

/// Receives the findings of a check until it is done, or has reported nothing for `limit`.
fn follow<T>(
    work: Work<T>,
    limit: Duration,
    code: Code,
    who: &str,
    take: &mut dyn FnMut(Finding),
) -> Option<T> {
    loop {
        match work.0.recv_timeout(limit) {
            Ok(Message::Found(finding)) => take(finding),
            Ok(Message::Done(done)) => return Some(done),
            Err(_) => {
                let text = format!(
                    "{who} accepts the connection but has not answered for {}",
                    duration(limit)
                );
                let remedy = "is it overloaded, locked, or is there a proxy in between?";
                take(Finding::failed(code, 1, text, remedy));
                return None;
            }
        }
    }
}

/// Shows on standard error what `--wait` is waiting for.
#[derive(Default)]
struct Progress {
    last: String,
    is_open: bool,
}

impl Progress {
    fn show(&mut self, report: &Report, waited: Duration, wait: Duration) {
        let failed = report.findings.iter().filter(|finding| finding.has_failed());
        let codes: Vec<String> = failed.clone().map(|finding| finding.code.id()).collect();
        let first = failed.clone().next().map_or("", |finding| &finding.text);
        let codes = codes.join(", ");
        let mut line = format!("{} of {}: {codes} {first}", duration(waited), duration(wait));
        if can_redraw(&std::io::stderr()) {
            let width = width(&std::io::stderr());
            if let Some((at, _)) = line.char_indices().nth(width - 1) {
                line.truncate(at);
            }
            let _ = write!(stderr(), "\r{line}\x1b[K");
            self.is_open = true;
        } else if codes != self.last {
            // As for the log: who cannot read it loses nothing else.
            let _ = writeln!(stderr(), "{line}");
        }
        self.last = codes;
    }

    fn end(&self) {
        if self.is_open {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

fn width(stream: &impl std::os::fd::AsFd) -> usize {
    let size = terminal_size::terminal_size_of(stream);
    size.map_or(80, |(width, _)| usize::from(width.0)).max(40)
}

/// How lines look on standard output.
fn appearance() -> Style {
    let terminal = std::io::stdout().is_terminal();
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default();
    let locale = locale.to_uppercase().replace('-', "");
    Style {
        width: width(&std::io::stdout()).min(110),
        signs: terminal && locale.contains("UTF8"),
        colours: can_redraw(&std::io::stdout()) && set("NO_COLOR").is_none(),
    }
}
