//! A flood of large records that are not events.

use std::thread;
use std::time::Duration;

use crate::bench::Bench;
use crate::bench::backlog::Run;
use crate::bench::measure::{COUNT, MB_PER_S, TENTHS_OF_MB, thousands};
use crate::bench::results::each;
use crate::failure::Result;
use crate::screen::say;

const TOPIC: &str = "flood";
const BYTES: u64 = 100_000;
const MEMORY_MIB: u64 = 256;

/// Measured while a lock kept dead letters from being written, and until all were written.
struct Locked {
    written_before: f64,
    peak_mb: f64,
    peak_in_the_end_mb: f64,
}

pub fn run(bench: &mut Bench) -> Result<()> {
    let count = if bench.events < 500_000 { 1_000 } else { bench.events / 500 };
    let memory = format!("{MEMORY_MIB}MiB");
    let options = ["-w", "2", "--memory", &memory];
    bench.fill_with_letters(TOPIC, count, BYTES)?;
    bench.warm(TOPIC)?;
    let (mut raw, mut floods, mut locked) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 1..=bench.runs {
        let label = format!("raw, consumers: 1, {turn} of {}", bench.runs);
        raw.push(bench.measure_raw(TOPIC, &label, 1)?);
        let label = format!("a flood, {turn} of {}", bench.runs);
        floods.push(bench.measure(TOPIC, &label, &options)?);
        locked.push(hold_back(bench, turn, count, &options)?);
    }
    bench.drop_topic(TOPIC)?;
    let results = &mut bench.results;
    results.report(format!("bad records of {} kB", BYTES / 1_000), &floods);
    let megabytes = each(&floods, |run| run.rate() * BYTES as f64 / 1e6);
    results.add("... megabytes read", MB_PER_S, &megabytes);
    let rate = |runs: &[Run]| each(runs, Run::rate);
    results.ratio("... throughput / raw, consumers: 1", &rate(&floods), &rate(&raw));
    let of = |figure: fn(&Locked) -> f64| locked.iter().map(figure).collect::<Vec<f64>>();
    results.add("locked: records written before", COUNT, &of(|at| at.written_before));
    results.add("locked: peak memory", TENTHS_OF_MB, &of(|at| at.peak_mb));
    let peak_mb = of(|at| at.peak_in_the_end_mb);
    results.add("... until all is written", TENTHS_OF_MB, &peak_mb);
    let limit_mb = (MEMORY_MIB << 20) as f64 / 1e6;
    results.ratio("... peak memory / --memory", &peak_mb, &vec![limit_mb; peak_mb.len()]);
    Ok(())
}

fn hold_back(bench: &Bench, turn: usize, count: u64, options: &[&str]) -> Result<Locked> {
    let bytes = BYTES.to_string();
    // Keep the whole payloads; otherwise all of them would fit into memory.
    let options = [options, &["--dead-letter-bytes", &bytes]].concat();
    let mut job = bench.start(&format!("flood-{turn}"), TOPIC, &options)?;
    job.wait_for_records(1)?;
    let mut lock = bench.servers.postgres.sql().connect()?;
    lock.run("begin")?;
    lock.run("lock table sessionizer.dead_letters")?;
    thread::sleep(Duration::from_secs(20));
    let peak_mb = job.process.memory_mb("VmHWM")?;
    let written_before = job.records()?;
    lock.run("rollback")?;
    job.wait_for_records(count)?;
    // The kernel counts pages roughly, so even a peak may appear to shrink.
    let peak_in_the_end_mb = job.process.memory_mb("VmHWM")?.max(peak_mb);
    job.stop()?;
    bench.forget(&job.name)?;
    say(format!(
        "locked, {turn} of {}: {peak_mb:.1} MB at most, {} of {} records written before; \
         {peak_in_the_end_mb:.1} MB in the end",
        bench.runs,
        thousands(written_before as u64),
        thousands(count),
    ));
    Ok(Locked { written_before, peak_mb, peak_in_the_end_mb })
}
