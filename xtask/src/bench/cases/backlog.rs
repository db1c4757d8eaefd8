//! The job over a backlog, in turn with consumers that throw the same records away.

use crate::bench::Bench;
use crate::bench::backlog::Run;
use crate::bench::results::each;
use crate::failure::Result;

pub fn run(bench: &mut Bench) -> Result<()> {
    let topic = bench.backlog()?;
    bench.warm(topic)?;
    let (mut raw, mut jobs) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for turn in 1..=bench.runs {
        for (at, workers) in ["1", "2"].into_iter().enumerate() {
            let label = format!("raw, consumers: {workers}, {turn} of {}", bench.runs);
            raw[at].push(bench.measure_raw(topic, &label, at + 1)?);
            let label = format!("-w {workers}, {turn} of {}", bench.runs);
            jobs[at].push(bench.measure(topic, &label, &["-w", workers])?);
        }
    }
    for (consumers, runs) in (1..).zip(&raw) {
        bench.results.report_raw(consumers, runs);
    }
    let cpu = |runs: &[Run]| each(runs, |run| run.cpu_s);
    for (workers, job) in (1..).zip(&jobs) {
        let workers: usize = workers;
        bench.results.report(format!("-w {workers}"), job);
        for (consumers, raw) in (1..).zip(&raw) {
            let consumers: usize = consumers;
            let what = format!("-w {workers}: throughput / raw, consumers: {consumers}");
            bench.results.ratio(what, &each(job, Run::rate), &each(raw, Run::rate));
            bench.results.ratio("... CPU time / raw", &cpu(job), &cpu(raw));
        }
    }
    let [one, two] = [0, 1].map(|at| each(&jobs[at], Run::rate));
    bench.results.ratio("-w 2: throughput / -w 1", &two, &one);
    Ok(())
}
