//! The real operators, watermark, recovery and commit logic on a feed and a ledger in memory.
//!
//! A seed is one schedule: partitions, keys, disorder, stragglers, bad input, events at the edge of
//! the future, silent partitions, partitions that appear later, one to four workers and writers
//! that change at every start, clocks that differ and are set by milliseconds and by hours in both
//! directions, transactions that stay open for a while, partitions that nobody serves, partition
//! ends that are outdated when they are handled, commits that fail or whose reply is lost, a ledger
//! that is away for a while, crashes and clean stops between any two steps, memory for a few
//! records in flight or for a single one, a ledger that goes back to an earlier state, bounded runs
//! that end by themselves, and instances that do not know that they were replaced. Between two
//! lives, visitors are forgotten and dead letters are processed again, once and twice; in half of the
//! schedules, too little of their payloads is kept to decode them. Half of the
//! lives are a cluster: two or three processes, one of which may be slow, cut off from the ledger,
//! or lost while the others carry on for a while, and which learn of a stop at different times.
//!
//! A *life* is one run of the job, from a start to whatever ends it.
//!
//! At every commit the contract and the invariants are checked, and at every complete epoch the
//! statistics are a plain fold of the changes (`statistics`); after a bounded run and at the end,
//! the table equals the batch answer. That end is reached: after the last disturbance everything
//! becomes durable within a bounded number of steps, and epochs advance as fast as time does
//! (liveness).
//!
//! To show that the checks catch errors, the protocol's rules are broken one by one (`sabotage`).
//!
//! `SESSIONIZER_SEEDS=N` sets how many schedules run; `SESSIONIZER_SEED=N` runs one of them and
//! prints its story.

mod clocks;
mod feed;
mod ledger;
#[path = "../shared/oracle.rs"]
mod oracle;
mod processors;
#[path = "../shared/rng.rs"]
mod rng;
mod run;
mod sabotage;
mod schedule;
mod statistics;
mod topic;
mod witness;

const SEEDS: u64 = 1_000;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn whatever_happens_the_contract_holds_and_the_table_is_the_batch_answer() {
    if let Some(seed) = variable("SESSIONIZER_SEED") {
        return println!("{:?}", schedule::run(seed, None));
    }
    let seeds = variable("SESSIONIZER_SEEDS").unwrap_or(SEEDS);
    let parts = processors::on_each(|first, step| all((first as u64..seeds).step_by(step)));
    let mut seen = schedule::Seen::default();
    for part in &parts {
        seen.add(part);
    }
    println!("{seen:?}");
    assert!(seen.leaps > 0, "no clock was set by hours");
    assert!(seen.pauses > 0, "memory was never used up");
    // A simulation in which nothing goes wrong proves nothing.
    assert!(seen.crashes > 0 && seen.stops > 0 && seen.lost_replies > 0 && seen.fenced > 0);
    assert!(seen.late > 0 && seen.dead > 0 && seen.dropped > 0 && seen.replayed_epochs > 0);
    assert!(seen.transactions > 0 && seen.unserved > 0, "no partition was disturbed");
    seen.statistics.check();
    assert!(seen.forgotten > 0 && seen.forgotten_open > 0 && seen.redriven > 0);
    assert!(seen.read_again > 0 && seen.blanked > 0, "no dead letter was cut");
    assert!(seen.drains > 0 && seen.clusters > 0 && seen.losses > 0 && seen.gone_back > 0);
}

fn all(seeds: impl Iterator<Item = u64>) -> schedule::Seen {
    let mut seen = schedule::Seen::default();
    for seed in seeds {
        let one = std::panic::catch_unwind(|| schedule::run(seed, None));
        seen.add(&one.unwrap_or_else(|_| {
            panic!(
                "to replay it: SESSIONIZER_SEED={seed} cargo test --profile bench --test simulation"
            )
        }));
    }
    seen
}
