//! What an event costs, whatever the number of events, visitors, partitions and workers.

use crate::bench::Bench;
use crate::bench::backlog::Run;
use crate::bench::measure::{EVENTS_PER_S, MB, MICROS, thousands};
use crate::bench::produce::Recipe;
use crate::bench::results::each;
use crate::failure::Result;

/// One point of a dimension.
struct Point {
    topic: String,
    /// For the table.
    name: String,
    recipe: Recipe,
    workers: &'static str,
}

/// One dimension after another, so that not all topics have to exist at once. A turn visits each
/// point of a dimension once.
pub fn run(bench: &mut Bench) -> Result<()> {
    let events = bench.events;
    let ordinary = Recipe::ordinary(events);
    let point =
        |topic: String, name: String, recipe: Recipe| Point { topic, name, recipe, workers: "2" };

    let counts = event_counts(events).into_iter().map(|count| {
        let recipe = ordinary.clone().with("--number", count);
        point(format!("count-{count}"), format!("{} events", thousands(count)), recipe)
    });
    along(bench, counts.collect())?;

    let visitors = [1_000, 50_000, 1_000_000, 10_000_000].into_iter().map(|visitors| {
        let recipe = ordinary.clone().with("--visitors", visitors);
        point(format!("visitors-{visitors}"), format!("{} visitors", thousands(visitors)), recipe)
    });
    along(bench, visitors.collect())?;

    let partitions = [1, 4, 64].into_iter().map(|partitions| {
        let recipe = ordinary.clone().with("--partitions", partitions);
        point(format!("partitions-{partitions}"), format!("partitions: {partitions}"), recipe)
    });
    along(bench, partitions.collect())?;

    let topic = bench.backlog()?.to_owned();
    let workers = ["1", "2", "8"].into_iter().map(|workers| Point {
        topic: topic.clone(),
        name: format!("workers: {workers}"),
        recipe: ordinary.clone(),
        workers,
    });
    measure(bench, &workers.collect::<Vec<_>>())
}

/// The numbers of events, without duplicates: a trial has fewer events than the smallest.
fn event_counts(events: u64) -> Vec<u64> {
    let mut counts = vec![100_000, 1_000_000];
    for count in [events * 2, events * 4] {
        if !counts.contains(&count) {
            counts.push(count);
        }
    }
    counts
}

/// Fills a topic for each point, measures, and drops them.
fn along(bench: &mut Bench, points: Vec<Point>) -> Result<()> {
    for point in &points {
        bench.fill(&point.topic, &point.recipe)?;
    }
    measure(bench, &points)?;
    points.iter().try_for_each(|point| bench.drop_topic(&point.topic))
}

fn measure(bench: &mut Bench, points: &[Point]) -> Result<()> {
    let mut runs: Vec<Vec<Run>> = points.iter().map(|_| Vec::new()).collect();
    for turn in 1..=bench.runs {
        for (point, runs) in points.iter().zip(&mut runs) {
            let label = format!("{}, {turn} of {}", point.name, bench.runs);
            runs.push(bench.measure(&point.topic, &label, &["-w", point.workers])?);
        }
    }
    for (Point { name, .. }, runs) in points.iter().zip(&runs) {
        let results = &mut bench.results;
        let cpu = each(runs, Run::cpu_us_per_event);
        results.add(format!("{name}: CPU time of an event"), MICROS, &cpu);
        results.add("... throughput", EVENTS_PER_S, &each(runs, Run::rate));
        results.add("... peak memory", MB, &each(runs, |run| run.peak_mb));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_has_no_number_of_events_twice() {
        assert_eq!(event_counts(5_000_000), [100_000, 1_000_000, 10_000_000, 20_000_000]);
        assert_eq!(event_counts(500_000), [100_000, 1_000_000, 2_000_000]);
        assert_eq!(event_counts(50_000), [100_000, 1_000_000, 200_000]);
    }
}
