//! An idle job.

use std::thread;
use std::time::{Duration, Instant};

use crate::bench::Bench;
use crate::bench::measure::{PERCENT, SECONDS, TENTHS_OF_MB};
use crate::bench::produce::Recipe;
use crate::failure::Result;
use crate::screen::say;

const TOPIC: &str = "empty";
const IDLE_S: u64 = 30;

pub fn run(bench: &mut Bench) -> Result<()> {
    // The producer creates the topic, which stays empty.
    bench.fill(TOPIC, &Recipe::new().with("--number", 0))?;
    let (mut first_s, mut idle_percent, mut peak_mb) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 1..=bench.runs {
        let began = Instant::now();
        let mut job = bench.start_after(0, &format!("start-{turn}"), TOPIC, &[])?;
        let first = began.elapsed().as_secs_f64();
        thread::sleep(Duration::from_secs(2));
        let before = job.process.cpu_seconds();
        thread::sleep(Duration::from_secs(IDLE_S));
        let idle = 100.0 * (job.process.cpu_seconds() - before) / IDLE_S as f64;
        let peak = job.process.memory_mb("VmHWM")?;
        job.stop()?;
        bench.forget(&job.name)?;
        let runs = bench.runs;
        say(format!(
            "start, {turn} of {runs}: {first:.3} s, idle {idle:.2} % of a core, {peak:.1} MB"
        ));
        first_s.push(first);
        idle_percent.push(idle);
        peak_mb.push(peak);
    }
    bench.drop_topic(TOPIC)?;
    bench.results.add("start to the first commit", SECONDS, &first_s);
    bench.results.add("idle, share of a core", PERCENT, &idle_percent);
    bench.results.add("peak memory", TENTHS_OF_MB, &peak_mb);
    Ok(())
}
