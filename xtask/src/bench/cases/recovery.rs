//! How long a restart takes.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::bench::Bench;
use crate::bench::live::Job;
use crate::bench::measure::{COUNT, SECONDS, Unit};
use crate::bench::produce::Recipe;
use crate::failure::Result;
use crate::process::Process;
use crate::screen::say;

const TOPIC: &str = "recovery";
const BACKLOG: u64 = 1_500_000;
const OPTIONS: [&str; 4] = ["-w", "2", "--gap", "2h"];

/// A name for the table, and what was measured.
type Figures = (&'static str, Unit, Vec<f64>);

pub fn run(bench: &mut Bench) -> Result<()> {
    // Twenty seconds of a site with two million visitors at once, one page view every twenty
    // seconds: half have viewed a page. No session ends within two hours.
    let recipe = Recipe::new().with("--historical", "1m").with("--density", 100_000);
    bench.fill(TOPIC, &recipe.with("--number", BACKLOG).with("--visitors", 100_000_000))?;
    let worst_s = kill_unsaved(bench)?;

    let mut job = bench.start("recovery", TOPIC, &OPTIONS)?;
    job.wait_for_records(BACKLOG)?;
    // Live events from here on. The same few visitors come again and again, so the number of open
    // sessions does not change.
    let mut command = bench.servers.command(&bench.program);
    command.env("KAFKA_TOPIC", TOPIC);
    command.args(["produce", "--rate", "2000", "--visitors", "10000"]);
    let log = bench.servers.file("produce.log");
    let mut producer = Process::start("the producer", command, &log)?;
    say("a minute, so that every shard has been saved");
    thread::sleep(Duration::from_secs(65));
    let mut figures: Vec<Figures> = kill(bench, &mut job)?.into();
    figures.push(("the same, 1500000 records unsaved", SECONDS, worst_s));
    figures.extend(stop(bench, &mut job)?);
    let open = job.loaded()?.sessions;
    job.kill()?;
    producer.signal(Signal::TERM);
    producer.finish(Duration::from_secs(60))?;
    bench.drop_topic(TOPIC)?;
    bench.results.add("open sessions", COUNT, &[open]);
    for (what, unit, values) in figures {
        bench.results.add(what, unit, &values);
    }
    Ok(())
}

fn kill_unsaved(bench: &Bench) -> Result<Vec<f64>> {
    say("killed right after the backlog was read: all of it is replayed");
    let mut seconds = Vec::new();
    for turn in 1..=bench.runs {
        let mut job = bench.start(&format!("worst-{turn}"), TOPIC, &OPTIONS)?;
        job.wait_for_records(BACKLOG)?;
        seconds.push(kill_and_start(bench, &mut job)?);
        job.kill()?;
    }
    Ok(seconds)
}

fn kill(bench: &mut Bench, job: &mut Job) -> Result<[Figures; 3]> {
    let (mut seconds, mut load_s, mut epochs) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 1..=bench.runs {
        let took_s = kill_and_start(bench, job)?;
        let loaded = job.loaded()?;
        say(format!("kill -9, {turn} of {}: {took_s:.3} s to the first commit", bench.runs));
        seconds.push(took_s);
        load_s.push(loaded.seconds);
        epochs.push(loaded.epochs);
        // At a random point of the snapshot interval.
        thread::sleep(Duration::from_millis(bench.rng.between(3_000, 14_000)));
    }
    Ok([
        ("kill -9 to the first commit", SECONDS, seconds),
        ("... of it, loading the open sessions", SECONDS, load_s),
        ("... epochs that were replayed", COUNT, epochs),
    ])
}

fn stop(bench: &Bench, job: &mut Job) -> Result<[Figures; 3]> {
    let (mut stop_s, mut start_s, mut load_s) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 1..=bench.runs {
        let began = Instant::now();
        job.stop()?;
        let stopped_s = began.elapsed().as_secs_f64();
        let epoch = job.newest_epoch()?;
        let began = Instant::now();
        *job = bench.start_after(epoch, &job.name, TOPIC, &OPTIONS)?;
        let started_s = began.elapsed().as_secs_f64();
        let runs = bench.runs;
        say(format!(
            "clean stop, {turn} of {runs}: {stopped_s:.3} s; start to the first commit: \
             {started_s:.3} s"
        ));
        stop_s.push(stopped_s);
        start_s.push(started_s);
        load_s.push(job.loaded()?.seconds);
        thread::sleep(Duration::from_secs(3));
    }
    Ok([
        ("clean stop", SECONDS, stop_s),
        ("start to the first commit", SECONDS, start_s),
        ("... of it, loading the open sessions", SECONDS, load_s),
    ])
}

/// Kills the job and starts it again at once. Returns the seconds to the first commit.
fn kill_and_start(bench: &Bench, job: &mut Job) -> Result<f64> {
    let began = Instant::now();
    job.kill()?;
    let epoch = job.newest_epoch()?;
    *job = bench.start_after(epoch, &job.name, TOPIC, &OPTIONS)?;
    Ok(began.elapsed().as_secs_f64())
}
