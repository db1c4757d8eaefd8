//! The memory of an open session: first in the dataflow alone, so that the buffers of the Kafka
//! client are not mistaken for sessions; then in the whole job with a million sessions, which also
//! saves them.

use std::thread;
use std::time::Duration;

use crate::bench::Bench;
use crate::bench::measure::{BYTES, COUNT, TENTHS_OF_MB, thousands};
use crate::bench::printed::Pairs;
use crate::bench::produce::Recipe;
use crate::failure::Result;
use crate::screen::say;

/// The first is the baseline, without any sessions.
const OPEN: [u64; 4] = [1_000, 100_000, 1_000_000, 10_000_000];

pub fn run(bench: &mut Bench) -> Result<()> {
    let turns = bench.runs.max(3);
    let (mut resident_mb, mut grown) = (OPEN.map(|_| Vec::new()), OPEN.map(|_| Vec::new()));
    for turn in 1..=turns {
        let mut empty_kib = 0.0;
        for (at, sessions) in OPEN.into_iter().enumerate() {
            let mut command = bench.servers.command(&bench.limits);
            command.args(["memory", "--sessions", &sessions.to_string()]);
            let label = format!("{} open sessions, {turn} of {turns}", thousands(sessions));
            let printed = Pairs::read(&bench.finish(&label, vec![command])?.output)?;
            let kib = printed.number("rss_kib")?;
            if at == 0 {
                empty_kib = kib;
            }
            say(format!("{label}: {kib} KiB"));
            resident_mb[at].push(kib * 1024.0 / 1e6);
            grown[at].push((kib - empty_kib) * 1024.0 / sessions as f64);
        }
    }
    for (at, sessions) in OPEN.into_iter().enumerate() {
        let what = format!("{} open sessions: resident", thousands(sessions));
        bench.results.add(what, TENTHS_OF_MB, &resident_mb[at]);
        if at > 0 {
            bench.results.add("... growth a session", BYTES, &grown[at]);
        }
    }
    whole_job(bench)
}

fn whole_job(bench: &mut Bench) -> Result<()> {
    const TOPIC: &str = "memory";
    const RECORDS: u64 = 1_500_000;
    let options = ["-w", "2", "--gap", "2h", "--snapshot-interval", "10s"];
    // Two million visitors at once, one page view every twenty seconds: half have viewed one.
    let recipe = Recipe::new().with("--historical", "1m").with("--density", 100_000);
    bench.fill(TOPIC, &recipe.with("--number", RECORDS).with("--visitors", 100_000_000))?;
    let (mut resident_mb, mut peak_mb, mut open) = (Vec::new(), Vec::new(), 0.0);
    for turn in 1..=bench.runs {
        let name = format!("memory-{turn}");
        let mut job = bench.start(&name, TOPIC, &options)?;
        job.wait_for_records(RECORDS)?;
        // Every shard is saved once or twice.
        thread::sleep(Duration::from_secs(15));
        let (resident, peak) = (job.process.memory_mb("VmRSS")?, job.process.memory_mb("VmHWM")?);
        job.stop()?;
        let mut again = bench.start_after(job.newest_epoch()?, &name, TOPIC, &options)?;
        open = again.loaded()?.sessions;
        again.kill()?;
        bench.forget(&name)?;
        let (runs, open) = (bench.runs, thousands(open as u64));
        say(format!(
            "the job with {open} open sessions, {turn} of {runs}: {resident:.1} MB, at most \
             {peak:.1} MB"
        ));
        resident_mb.push(resident);
        peak_mb.push(peak);
    }
    bench.drop_topic(TOPIC)?;
    bench.results.add("the whole job, open sessions", COUNT, &[open]);
    bench.results.add("... resident", TENTHS_OF_MB, &resident_mb);
    bench.results.add("... at most", TENTHS_OF_MB, &peak_mb);
    Ok(())
}
