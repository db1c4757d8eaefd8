//! The dataflow alone: from memory into a ledger that discards.

use crate::bench::Bench;
use crate::bench::measure::{EVENTS_PER_S, MICROS};
use crate::bench::printed::Pairs;
use crate::failure::Result;
use crate::screen::say;

pub fn run(bench: &mut Bench) -> Result<()> {
    let events = bench.events as f64;
    let (mut rates, mut each_us) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for turn in 1..=bench.runs {
        for (at, workers) in ["1", "2"].into_iter().enumerate() {
            let mut command = bench.servers.command(&bench.limits);
            command.args(["compute", "-w", workers, "--events", &bench.events.to_string()]);
            let label = format!("-w {workers}, {turn} of {}", bench.runs);
            let printed = Pairs::read(&bench.finish(&label, vec![command])?.output)?;
            // Generating the events is not measured.
            let rate = events / printed.number("seconds")?;
            let us = 1e6 * printed.number("cpu")? / events;
            say(format!("{label}: {} events/s, {us:.3} µs an event", EVENTS_PER_S.show(rate)));
            rates[at].push(rate);
            each_us[at].push(us);
        }
    }
    for (at, workers) in [1, 2].into_iter().enumerate() {
        bench.results.add(format!("-w {workers}: throughput"), EVENTS_PER_S, &rates[at]);
        bench.results.add(format!("-w {workers}: CPU time of an event"), MICROS, &each_us[at]);
    }
    bench.results.ratio("-w 2: throughput / -w 1", &rates[1], &rates[0]);
    Ok(())
}
