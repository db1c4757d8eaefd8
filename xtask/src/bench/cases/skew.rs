//! Two topics of one job: three partitions, and one that is an hour of event time behind. They are
//! 5,000 seconds long however many events there are, so an hour is worth many sessions: more than
//! `--drift-sessions` allows if there are 20 million events, fewer if there are 5.

use crate::bench::Bench;
use crate::bench::backlog::Run;
use crate::bench::produce::Recipe;
use crate::bench::results::each;
use crate::failure::Result;

/// Name, topics and options. The longest possible `--max-drift` pauses nothing.
const WAYS: [(&str, &str, &[&str]); 3] = [
    ("even", "rest,even", &["-w", "2"]),
    ("default", "rest,behind", &["-w", "2"]),
    ("off", "rest,behind", &["-w", "2", "--max-drift", "366d"]),
];

pub fn run(bench: &mut Bench) -> Result<()> {
    let events = bench.events;
    let rate = events / 20_000; // A quarter of the events a second.
    let skewed = Recipe::ordinary(events).with("--visitors", events / 20);
    let rest = skewed.clone().with("--density", 3 * rate).with("--partitions", 3);
    let rest = rest.with("--number", events * 3 / 4).with("--seed", 1);
    let one = skewed.with("--density", rate).with("--partitions", 1);
    let one = one.with("--number", events / 4).with("--seed", 2);
    let (noon, eleven) = ("2024-05-01T12:00:00Z", "2024-05-01T11:00:00Z");
    bench.fill("rest", &rest.with("--historical", noon))?;
    bench.fill("even", &one.clone().with("--historical", noon))?;
    bench.fill("behind", &one.with("--historical", eleven))?;

    let mut runs = WAYS.map(|_| Vec::new());
    for turn in 1..=bench.runs {
        for ((name, topics, options), runs) in WAYS.iter().zip(&mut runs) {
            let label = format!("skew, {name}, {turn} of {}", bench.runs);
            runs.push(bench.measure(topics, &label, options)?);
        }
    }
    let [even, default, off] = &runs;
    let peak = |runs: &[Run]| each(runs, |run| run.peak_mb);
    let rate = |runs: &[Run]| each(runs, Run::rate);
    let results = &mut bench.results;
    results.report("no skew", even);
    results.report("an hour behind", default);
    results.ratio("an hour behind: peak memory / no skew", &peak(default), &peak(even));
    results.ratio("... throughput / no skew", &rate(default), &rate(even));
    results.report("an hour behind, nothing paused", off);
    results.ratio("nothing paused: peak memory / no skew", &peak(off), &peak(even));
    results.ratio("... throughput / no skew", &rate(off), &rate(even));
    ["rest", "even", "behind"].iter().try_for_each(|topic| bench.drop_topic(topic))
}
