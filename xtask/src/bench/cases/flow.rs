//! PostgreSQL goes away in the middle of a backlog, and comes back after a minute.

use std::thread;
use std::time::{Duration, Instant};

use crate::bench::Bench;
use crate::bench::live::Job;
use crate::bench::measure::{CPU_SECONDS, EVENTS_PER_S, SECONDS, TENTHS_OF_MB};
use crate::bench::produce::Recipe;
use crate::failure::Result;
use crate::screen::say;

const TOPIC: &str = "flow";

#[derive(Clone, Copy)]
struct Outage {
    rate_before: f64,
    peak_before_mb: f64,
    peak_mb: f64,
    cpu_s: f64,
    first_commit_s: f64,
    rate_after: f64,
}

pub fn run(bench: &mut Bench) -> Result<()> {
    // Long enough to outlast the outage; records read but not committed are part of it.
    let count = if bench.events < 1_000_000 { 4_000_000 } else { bench.events * 4 };
    bench.fill(TOPIC, &Recipe::ordinary(count))?;
    let mut outages = Vec::new();
    for turn in 1..=bench.runs {
        outages.push(measure(bench, turn, count)?);
    }
    bench.drop_topic(TOPIC)?;
    let of = |figure: fn(&Outage) -> f64| outages.iter().map(figure).collect::<Vec<f64>>();
    let results = &mut bench.results;
    results.add("peak memory before PostgreSQL stops", TENTHS_OF_MB, &of(|at| at.peak_before_mb));
    results.add("... at the end of the minute", TENTHS_OF_MB, &of(|at| at.peak_mb));
    results.add("CPU time in the minute", CPU_SECONDS, &of(|at| at.cpu_s));
    let back = "PostgreSQL is back: to the first commit";
    results.add(back, SECONDS, &of(|at| at.first_commit_s));
    results.add("throughput before", EVENTS_PER_S, &of(|at| at.rate_before));
    results.add("throughput after", EVENTS_PER_S, &of(|at| at.rate_after));
    results.ratio("... after / before", &of(|at| at.rate_after), &of(|at| at.rate_before));
    Ok(())
}

fn measure(bench: &Bench, turn: usize, count: u64) -> Result<Outage> {
    let mut job = bench.start(&format!("flow-{turn}"), TOPIC, &["-w", "2"])?;
    job.wait_for_records(count / 40)?;
    let rate_before = rate_until(&mut job, count / 4)?;
    let peak_before_mb = job.process.memory_mb("VmHWM")?;
    bench.servers.postgres.stop()?;
    let before = job.process.cpu_seconds();
    thread::sleep(Duration::from_secs(60));
    let cpu_s = job.process.cpu_seconds() - before;
    let peak_mb = job.process.memory_mb("VmHWM")?;
    bench.servers.postgres.start_again()?;
    let began = Instant::now();
    job.wait_for_epoch_after(job.newest_epoch()?)?;
    let first_commit_s = began.elapsed().as_secs_f64();
    let rate_after = rate_until(&mut job, count / 8 * 7)?;
    job.stop()?;
    bench.forget(&job.name)?;
    say(format!(
        "away for a minute, {turn} of {}: {peak_before_mb:.1} MB before, {peak_mb:.1} MB at most; \
         {first_commit_s:.3} s to the first commit, {} events/s before and {} after",
        bench.runs,
        EVENTS_PER_S.show(rate_before),
        EVENTS_PER_S.show(rate_after),
    ));
    Ok(Outage { rate_before, peak_before_mb, peak_mb, cpu_s, first_commit_s, rate_after })
}

/// Events a second, from now until this many are committed.
fn rate_until(job: &mut Job, count: u64) -> Result<f64> {
    let began = Instant::now();
    let before = job.records()?;
    job.wait_for_records(count)?;
    Ok((job.records()? - before) / began.elapsed().as_secs_f64())
}
