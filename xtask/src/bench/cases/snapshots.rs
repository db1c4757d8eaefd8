//! The cost of saving the open sessions more or less often.

use std::thread;
use std::time::{Duration, Instant};

use crate::bench::Bench;
use crate::bench::measure::{COUNT, CPU_SECONDS, EVENTS_PER_S, PERCENT, SECONDS, median};
use crate::bench::produce::Recipe;
use crate::failure::Result;
use crate::screen::say;

const TOPIC: &str = "snapshots";
const BACKLOG: u64 = 4_000_000;
const SHARDS: f64 = 128.0;
const INTERVALS: [&str; 4] = ["24h", "60s", "5s", "2s"];

#[derive(Clone, Copy)]
struct Saved {
    rate: f64,
    cpu_s: f64,
    snapshots: f64,
}

pub fn run(bench: &mut Bench) -> Result<()> {
    // As in `recovery`, with fewer visitors at once and more time: the sessions of a site that has
    // been running for some minutes.
    let recipe = Recipe::new().with("--historical", "10m").with("--density", 25_000);
    bench.fill(TOPIC, &recipe.with("--number", BACKLOG).with("--visitors", 100_000_000))?;
    let mut runs = INTERVALS.map(|_| Vec::new());
    // The first turn does not count: it brings the topic into memory.
    for turn in 0..=bench.runs {
        for (interval, runs) in INTERVALS.iter().zip(&mut runs) {
            let saved = measure(bench, interval, turn)?;
            if turn > 0 {
                runs.push(saved);
            }
        }
    }
    let mut job = bench.start("last", TOPIC, &["-w", "2"])?;
    job.wait_for_records(BACKLOG)?;
    job.stop()?;
    let mut job = bench.start_after(job.newest_epoch()?, "last", TOPIC, &["-w", "2"])?;
    let open = job.loaded()?.sessions;
    job.kill()?;
    bench.drop_topic(TOPIC)?;
    bench.results.add("open sessions at the end", COUNT, &[open]);
    report(bench, &runs);
    Ok(())
}

fn report(bench: &mut Bench, runs: &[Vec<Saved>; 4]) {
    let of =
        |runs: &[Saved], figure: fn(&Saved) -> f64| runs.iter().map(figure).collect::<Vec<_>>();
    for (interval, runs) in INTERVALS.iter().zip(runs) {
        let results = &mut bench.results;
        let name = |what: &str| format!("every {interval}: {what}");
        results.add(name("throughput"), EVENTS_PER_S, &of(runs, |at| at.rate));
        results.add(name("CPU time"), CPU_SECONDS, &of(runs, |at| at.cpu_s));
        results.add(name("snapshots of a shard"), COUNT, &of(runs, |at| at.snapshots));
    }
    let [never, _, _, often] = runs;
    let cost_s = cost_of_one_of_each_shard(
        median(&of(often, |at| at.cpu_s)),
        median(&of(never, |at| at.cpu_s)),
        median(&of(often, |at| at.snapshots)),
    );
    // In 60 s at full speed the job takes 60 times the CPU time of a second, and one snapshot of
    // each shard.
    let seconds = BACKLOG as f64 / median(&of(never, |at| at.rate));
    let cpu_of_a_minute_s = 60.0 * median(&of(never, |at| at.cpu_s)) / seconds;
    bench.results.add("CPU time of one of each shard", SECONDS, &[cost_s]);
    let share = 100.0 * cost_s / cpu_of_a_minute_s;
    bench.results.add("... share of all, every 60s", PERCENT, &[share]);
}

/// Computed from the shortest interval, where snapshots cost most.
fn cost_of_one_of_each_shard(with_s: f64, without_s: f64, snapshots: f64) -> f64 {
    (with_s - without_s) / (snapshots / SHARDS)
}

fn measure(bench: &Bench, interval: &str, turn: usize) -> Result<Saved> {
    let server = bench.servers.postgres.sql();
    server.run("select pg_stat_reset()")?;
    let options = ["-w", "2", "--snapshot-interval", interval];
    let mut job = bench.start_after(0, &format!("every-{interval}-{turn}"), TOPIC, &options)?;
    let began = Instant::now();
    job.wait_for_records(BACKLOG)?;
    let rate = BACKLOG as f64 / began.elapsed().as_secs_f64();
    let cpu_s = job.process.cpu_seconds();
    job.stop()?;
    // Each snapshot updates a row, so the server's statistics count them; the stop has saved every
    // shard once more. A connection reports its statistics when it ends.
    thread::sleep(Duration::from_millis(500));
    let updates = "select n_tup_upd from pg_stat_user_tables
        where schemaname = 'sessionizer' and relname = 'snapshots'";
    let snapshots = server.number(updates)? - SHARDS;
    bench.forget(&job.name)?;
    let rate_text = EVENTS_PER_S.show(rate);
    say(format!(
        "every {interval}: {rate_text} events/s, {cpu_s:.2} s of CPU, {snapshots} snapshots"
    ));
    Ok(Saved { rate, cpu_s, snapshots })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_that_of_one_snapshot_of_every_shard() {
        // 256 snapshots are two of each shard.
        assert_eq!(cost_of_one_of_each_shard(5.0, 4.0, 256.0), 0.5);
    }
}
