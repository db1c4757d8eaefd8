//! What the live statistics cost: in memory, in a backlog, and with live events.

use std::thread;
use std::time::Duration;

use crate::bench::Bench;
use crate::bench::backlog::Run;
use crate::bench::measure::{EVENTS_PER_S, MB, MICROS, PERCENT, median};
use crate::bench::printed::Pairs;
use crate::bench::results::each;
use crate::failure::Result;
use crate::process::Process;
use crate::screen::say;

/// What is on, and the flags for it.
const WHICH: [(&str, &[&str]); 4] = [
    ("none", &["--statistics", "none"]),
    ("hosts", &["--statistics", "hosts", "--anomalies", "none"]),
    ("hosts and anomalies, the default", &["--statistics", "hosts"]),
    ("everything", &["--statistics", "visitors"]),
];
/// The same for the dataflow alone.
const IN_MEMORY: [&str; 4] = ["none", "hosts", "anomalies", "visitors"];
const LIVE_S: u64 = 60;
const RATE: u64 = 10_000;

pub fn run(bench: &mut Bench) -> Result<()> {
    in_memory(bench)?;
    backlog(bench)?;
    live(bench)
}

/// The dataflow alone, with as many events an hour as a backlog of a small site has, and with a
/// hundred times as many.
fn in_memory(bench: &mut Bench) -> Result<()> {
    let events = bench.events as f64;
    for (density, visitors) in [("100", "50000"), ("10000", "1000000")] {
        let mut each_us = IN_MEMORY.map(|_| Vec::new());
        let mut peaks = IN_MEMORY.map(|_| Vec::new());
        for turn in 1..=bench.runs {
            for (at, which) in IN_MEMORY.into_iter().enumerate() {
                let mut command = bench.servers.command(&bench.limits);
                command.args(["compute", "--events", &bench.events.to_string()]);
                command.args(["--density", density, "--visitors", visitors]);
                command.args(["--statistics", which]);
                let label = format!("in memory, {density}/s, {which}, {turn} of {}", bench.runs);
                let printed = Pairs::read(&bench.finish(&label, vec![command])?.output)?;
                let us = 1e6 * printed.number("cpu")? / events;
                say(format!("{label}: {us:.3} µs an event"));
                each_us[at].push(us);
                peaks[at].push(printed.number("peak_kib")? * 1_024.0 / 1e6);
            }
        }
        let results = &mut bench.results;
        for (at, which) in IN_MEMORY.into_iter().enumerate() {
            let name = format!("in memory, {density} events/s of event time, {which}");
            results.add(format!("{name}: CPU time of an event"), MICROS, &each_us[at]);
            results.add("... peak memory", MB, &peaks[at]);
            if at > 0 {
                results.ratio("... CPU time / none", &each_us[at], &each_us[0]);
            }
        }
    }
    Ok(())
}

fn backlog(bench: &mut Bench) -> Result<()> {
    let topic = bench.backlog()?;
    bench.warm(topic)?;
    let mut runs = WHICH.map(|_| Vec::new());
    for turn in 1..=bench.runs {
        for ((which, flags), runs) in WHICH.into_iter().zip(&mut runs) {
            let label = format!("backlog, {which}, {turn} of {}", bench.runs);
            runs.push(bench.measure(topic, &label, &[&["-w", "2"], flags].concat())?);
        }
    }
    let rate = |runs: &[Run]| each(runs, Run::rate);
    let cpu = |runs: &[Run]| each(runs, |run| run.cpu_s);
    for (at, (which, _)) in WHICH.into_iter().enumerate() {
        bench.results.report(format!("backlog, {which}"), &runs[at]);
        if at > 0 {
            bench.results.ratio("... throughput / none", &rate(&runs[at]), &rate(&runs[0]));
            bench.results.ratio("... CPU time / none", &cpu(&runs[at]), &cpu(&runs[0]));
        }
    }
    Ok(())
}

/// Live events, 10,000 a second.
fn live(bench: &mut Bench) -> Result<()> {
    let ends = [WHICH[0], WHICH[3]];
    let mut shares = ends.map(|_| Vec::new());
    for turn in 1..=bench.runs {
        for (at, shares) in shares.iter_mut().enumerate() {
            shares.push(measure_live(bench, &format!("statistics-{at}-{turn}"), ends[at].1)?);
        }
    }
    for (at, (which, _)) in ends.into_iter().enumerate() {
        let name = format!("live, {} events/s, {which}", EVENTS_PER_S.show(RATE as f64));
        bench.results.add(format!("{name}: share of a core"), PERCENT, &shares[at]);
        let more = shares[at].iter().zip(&shares[0]).map(|(this, none)| this - none);
        if at > 0 {
            bench.results.add("... more than none", PERCENT, &more.collect::<Vec<f64>>());
        }
    }
    say(format!("live: {:.2} % of a core with everything on", median(&shares[1])));
    Ok(())
}

fn measure_live(bench: &Bench, name: &str, flags: &[&str]) -> Result<f64> {
    let mut command = bench.servers.command(&bench.limits);
    command.env("KAFKA_TOPIC", name).arg("live");
    // Some seconds more than are measured.
    let seconds = (LIVE_S + 15).to_string();
    command.args(["--rate", &RATE.to_string(), "--seconds", &seconds]);
    let log = bench.servers.file("produce.log");
    let mut producer = Process::start("the producer", command, &log)?;
    thread::sleep(Duration::from_secs(1));
    // A short gap, so that sessions close while it is measured.
    let options = [&["-w", "2", "--gap", "2s", "--out-of-orderness", "1s"], flags].concat();
    let mut job = bench.start(name, name, &options)?;
    job.wait_for_records(1)?;
    thread::sleep(Duration::from_secs(5));
    let before_s = job.process.cpu_seconds();
    thread::sleep(Duration::from_secs(LIVE_S));
    let percent = 100.0 * (job.process.cpu_seconds() - before_s) / LIVE_S as f64;
    job.stop()?;
    producer.finish(Duration::from_secs(60))?;
    bench.forget(name)?;
    bench.drop_topic(name)?;
    say(format!("{name}: {percent:.2} % of a core"));
    Ok(percent)
}
