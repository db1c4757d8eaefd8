//! Stragglers: events of sessions that are already in the table.

use crate::bench::Bench;
use crate::bench::backlog::Run;
use crate::bench::produce::Recipe;
use crate::bench::results::each;
use crate::failure::Result;

const SHARES: [&str; 4] = ["0", "0.001", "0.01", "0.1"];

pub fn run(bench: &mut Bench) -> Result<()> {
    let topics = SHARES.map(|share| format!("late-{share}"));
    for (share, topic) in SHARES.iter().zip(&topics) {
        bench.fill(topic, &Recipe::ordinary(bench.events).with("--late", share))?;
    }
    let mut runs = SHARES.map(|_| Vec::new());
    for turn in 1..=bench.runs {
        for ((share, topic), runs) in SHARES.iter().zip(&topics).zip(&mut runs) {
            let label = format!("late: {share}, {turn} of {}", bench.runs);
            runs.push(bench.measure(topic, &label, &["-w", "2"])?);
        }
    }
    let cpu = |runs: &[Run]| each(runs, |run| run.cpu_s);
    let rate = |runs: &[Run]| each(runs, Run::rate);
    for (at, (share, topic)) in SHARES.iter().zip(&topics).enumerate() {
        bench.drop_topic(topic)?;
        let (these, none) = (&runs[at], &runs[0]);
        bench.results.report(format!("share of stragglers: {share}"), these);
        if at > 0 {
            let what = format!("{share} stragglers: CPU time / none");
            bench.results.ratio(what, &cpu(these), &cpu(none));
            let what = format!("{share} stragglers: throughput / none");
            bench.results.ratio(what, &rate(these), &rate(none));
        }
    }
    Ok(())
}
