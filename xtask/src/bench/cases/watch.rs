//! The cost of the HTTP port: for ordinary clients, and under a flood of requests.
//!
//! The clients run on the same machine as the job and share its cores, as everything here does.

use std::thread;
use std::time::{Duration, Instant};

use crate::bench::Bench;
use crate::bench::backlog::Run;
use crate::bench::clients::{Clients, Seen, ask_once};
use crate::bench::measure::{
    BYTES_PER_S, COUNT, CPU_SECONDS, EVENTS_PER_S, PER_S, PERCENT, TENTHS_OF_MB,
};
use crate::bench::produce::Recipe;
use crate::bench::results::each;
use crate::failure::{Result, fail};
use crate::screen::say;
use crate::{ports, proc};

const EMPTY: &str = "watched";
const OFF: [&str; 2] = ["--http", "none"];
const IDLE_S: u64 = 30;
const PER_SECOND: u32 = 1_000;
const HELD: usize = 1_000;
/// By then, the job has closed every connection that has sent half a request.
const AFTERWARDS: Duration = Duration::from_secs(15);

pub fn run(bench: &mut Bench) -> Result<()> {
    backlog(bench)?;
    idle(bench)?;
    flood(bench)
}

/// A free port, and the address for `--http`.
fn port(bench: &mut Bench) -> (u16, String) {
    let port = ports::free(1, &mut bench.rng);
    (port, format!("127.0.0.1:{port}"))
}

/// A backlog without the port, and with a page and a scraper. Each comes first in every other turn.
fn backlog(bench: &mut Bench) -> Result<()> {
    let topic = bench.backlog()?;
    bench.warm(topic)?;
    let (mut off, mut watched, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 1..=bench.runs {
        for is_watched in [turn % 2 == 0, turn % 2 == 1] {
            if is_watched {
                watched.push(measure_watched(bench, topic, turn)?);
            } else {
                let label = format!("a backlog, without the port, {turn} of {}", bench.runs);
                off.push(bench.measure(topic, &label, &["-w", "2", OFF[0], OFF[1]])?);
            }
        }
        shares.push(measure_share(bench, &format!("share-{turn}"), topic)?);
    }
    let results = &mut bench.results;
    results.report("without the port", &off);
    results.report("watched", &watched);
    let rate = |runs: &[Run]| each(runs, Run::rate);
    results.ratio("watched: throughput / without the port", &rate(&watched), &rate(&off));
    let cpu = |runs: &[Run]| each(runs, |run| run.cpu_s);
    results.ratio("... CPU time / without the port", &cpu(&watched), &cpu(&off));
    results.add("... of it, the thread that serves", PERCENT, &shares);
    Ok(())
}

fn measure_watched(bench: &mut Bench, topic: &str, turn: usize) -> Result<Run> {
    let (port, address) = port(bench);
    let label = format!("a backlog, watched, {turn} of {}", bench.runs);
    let clients = Clients::watch(port);
    let run = bench.measure(topic, &label, &["-w", "2", "--http", &address])?;
    clients.end()?;
    Ok(run)
}

/// The share of a watched job's CPU time that its thread `monitor` takes in a backlog, in percent.
/// It does everything for the port but noting a commit's changes. Unlike a ratio of two runs, it can
/// be told from noise on a busy machine.
fn measure_share(bench: &mut Bench, name: &str, topic: &str) -> Result<f64> {
    let (port, address) = port(bench);
    let clients = Clients::watch(port);
    let mut job = bench.start_after(0, name, topic, &["-w", "2", "--http", &address])?;
    job.wait_for_records(bench.events)?;
    let Some(monitor_s) = proc::thread_cpu_seconds(job.process.pid(), "monitor") else {
        return fail("the job has no thread `monitor`");
    };
    let percent = 100.0 * monitor_s / job.process.cpu_seconds();
    clients.end()?;
    job.stop()?;
    bench.forget(name)?;
    say(format!("{name}: the thread that serves took {percent:.2} % of the CPU time"));
    Ok(percent)
}

/// What an idle job uses.
#[derive(Clone, Copy)]
struct Idle {
    percent: f64,
    memory_mb: f64,
}

fn idle(bench: &mut Bench) -> Result<()> {
    // The producer creates the topic, which stays empty.
    bench.fill(EMPTY, &Recipe::new().with("--number", 0))?;
    let (mut off, mut watched, mut pages) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 1..=bench.runs {
        let name = format!("idle-off-{turn}");
        off.push(measure_idle(bench, &name, &OFF, None)?.0);
        let (port, address) = port(bench);
        let name = format!("idle-watched-{turn}");
        let (idle, seen) = measure_idle(bench, &name, &["--http", &address], Some(port))?;
        watched.push(idle);
        pages.push(seen.map_or(0.0, |seen| seen.message_bytes / seen.seconds));
    }
    bench.drop_topic(EMPTY)?;
    let of = |all: &[Idle], figure: fn(&Idle) -> f64| all.iter().map(figure).collect::<Vec<f64>>();
    let results = &mut bench.results;
    for (name, all) in [("without the port", &off), ("watched", &watched)] {
        let share = of(all, |at| at.percent);
        results.add(format!("idle, {name}: share of a core"), PERCENT, &share);
        results.add("... resident memory", TENTHS_OF_MB, &of(all, |at| at.memory_mb));
    }
    let more = |figure: fn(&Idle) -> f64| differences(&of(&watched, figure), &of(&off, figure));
    results.add("idle, watched: more of a core", PERCENT, &more(|at| at.percent));
    results.add("... more memory", TENTHS_OF_MB, &more(|at| at.memory_mb));
    results.add("... what a page is sent", BYTES_PER_S, &pages);
    Ok(())
}

fn measure_idle(
    bench: &Bench,
    name: &str,
    options: &[&str],
    port: Option<u16>,
) -> Result<(Idle, Option<Seen>)> {
    let mut job = bench.start_after(0, name, EMPTY, options)?;
    let clients = port.map(Clients::watch);
    thread::sleep(Duration::from_secs(2));
    let before_s = job.process.cpu_seconds();
    thread::sleep(Duration::from_secs(IDLE_S));
    let percent = 100.0 * (job.process.cpu_seconds() - before_s) / IDLE_S as f64;
    let memory_mb = job.process.memory_mb("VmRSS")?;
    let seen = clients.map(Clients::end).transpose()?;
    job.stop()?;
    bench.forget(name)?;
    say(format!("{name}: {percent:.2} % of a core, {memory_mb:.1} MB"));
    Ok((Idle { percent, memory_mb }, seen))
}

/// A backlog read to its end by a job that keeps running.
#[derive(Clone, Copy, Default)]
struct Kept {
    rate: f64,
    /// Some time after the end of the backlog.
    memory_mb: f64,
    files: f64,
    clients_s: f64,
    seen: Seen,
}

/// A backlog with the port on, without clients and with a flood of them.
fn flood(bench: &mut Bench) -> Result<()> {
    let topic = bench.backlog()?;
    let (mut quiet, mut flooded) = (Vec::new(), Vec::new());
    for turn in 1..=bench.runs {
        quiet.push(measure_kept(bench, &format!("quiet-{turn}"), topic, false)?);
        flooded.push(measure_kept(bench, &format!("flooded-{turn}"), topic, true)?);
    }
    let of = |all: &[Kept], figure: fn(&Kept) -> f64| all.iter().map(figure).collect::<Vec<f64>>();
    let results = &mut bench.results;
    let rate = |all| of(all, |at| at.rate);
    results.add("no clients: throughput", EVENTS_PER_S, &rate(&quiet));
    results.add("flooded: throughput", EVENTS_PER_S, &rate(&flooded));
    results.ratio("flooded: throughput / no clients", &rate(&flooded), &rate(&quiet));
    let answers = of(&flooded, |at| at.seen.answers / at.seen.seconds);
    results.add("... answers", PER_S, &answers);
    let dropped = of(&flooded, |at| at.seen.dropped / at.seen.seconds);
    results.add("... requests cut short", PER_S, &dropped);
    let opened = of(&flooded, |at| at.seen.opened / at.seen.seconds);
    results.add("... half-open connections, opened", PER_S, &opened);
    results.add("... the same, open in the end", COUNT, &of(&flooded, |at| at.seen.held));
    results.add("... CPU time of the clients", CPU_SECONDS, &of(&flooded, |at| at.clients_s));
    results.add("no clients: memory afterwards", TENTHS_OF_MB, &of(&quiet, |at| at.memory_mb));
    results.add("flooded: memory afterwards", TENTHS_OF_MB, &of(&flooded, |at| at.memory_mb));
    let more = |figure: fn(&Kept) -> f64| differences(&of(&flooded, figure), &of(&quiet, figure));
    results.add("... more than without clients", TENTHS_OF_MB, &more(|at| at.memory_mb));
    results.add("no clients: open files afterwards", COUNT, &of(&quiet, |at| at.files));
    results.add("... more of them after the flood", COUNT, &more(|at| at.files));
    Ok(())
}

fn measure_kept(bench: &mut Bench, name: &str, topic: &str, flooded: bool) -> Result<Kept> {
    let (port, address) = port(bench);
    let clients_before_s = proc::cpu_seconds(std::process::id());
    let clients = flooded.then(|| Clients::flood(port, PER_SECOND, HELD));
    let mut job = bench.start_after(0, name, topic, &["-w", "2", "--http", &address])?;
    let (began, before) = (Instant::now(), job.records()?);
    job.wait_for_records(bench.events)?;
    let rate = (bench.events as f64 - before) / began.elapsed().as_secs_f64();
    let seen = clients.map(Clients::end).transpose()?.unwrap_or_default();
    let clients_s = proc::cpu_seconds(std::process::id()) - clients_before_s;
    // The first request for this opens another connection to PostgreSQL, which stays open.
    ask_once(port, "/status")?;
    thread::sleep(AFTERWARDS);
    let memory_mb = job.process.memory_mb("VmRSS")?;
    let files = proc::open_files(job.process.pid()) as f64;
    job.stop()?;
    bench.forget(name)?;
    say(format!(
        "{name}: {} events/s; {:.0} answers in {:.1} s; afterwards {memory_mb:.1} MB and {files} \
         open files",
        EVENTS_PER_S.show(rate),
        seen.answers,
        seen.seconds,
    ));
    Ok(Kept { rate, memory_mb, files, clients_s, seen })
}

/// The differences, turn by turn.
fn differences(these: &[f64], those: &[f64]) -> Vec<f64> {
    these.iter().zip(those).map(|(this, that)| this - that).collect()
}
