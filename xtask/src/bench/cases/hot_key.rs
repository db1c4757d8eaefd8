//! Half of all events from one visitor.

use crate::bench::Bench;
use crate::bench::backlog::Run;
use crate::bench::produce::Recipe;
use crate::bench::results::each;
use crate::failure::Result;

const SHARES: [&str; 2] = ["0", "0.5"];

pub fn run(bench: &mut Bench) -> Result<()> {
    let topics = SHARES.map(|share| format!("hot-{share}"));
    for (share, topic) in SHARES.iter().zip(&topics) {
        bench.fill(topic, &Recipe::ordinary(bench.events).with("--hot", share))?;
    }
    let mut runs = [Vec::new(), Vec::new()];
    for turn in 1..=bench.runs {
        for ((share, topic), runs) in SHARES.iter().zip(&topics).zip(&mut runs) {
            let label = format!("hot: {share}, {turn} of {}", bench.runs);
            runs.push(bench.measure(topic, &label, &["-w", "2"])?);
        }
    }
    for (share, topic) in SHARES.iter().zip(&topics) {
        bench.drop_topic(topic)?;
        let at = usize::from(*share != "0");
        bench.results.report(format!("share of one visitor: {share}"), &runs[at]);
    }
    let [even, hot] = &runs;
    let cpu = |runs: &[Run]| each(runs, |run| run.cpu_s);
    bench.results.ratio("half from one visitor: CPU time / even", &cpu(hot), &cpu(even));
    let rate = |runs: &[Run]| each(runs, Run::rate);
    bench.results.ratio("... throughput / even", &rate(hot), &rate(even));
    Ok(())
}
