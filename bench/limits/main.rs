//! What `scripts/bench` measures besides the program itself: how fast records can be read at all,
//! and parts of the job on their own. It is not for users, and not shipped.
//!
//! Each subcommand measures one thing once and prints one line of `name value` pairs;
//! `scripts/bench` repeats them in turn and compares.

mod dataflow;
mod kafka;
mod memory;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
enum Command {
    /// Reads the topic of the environment to its end and throws the records away
    Raw {
        /// Consumers, each with a thread and a share of the partitions
        #[arg(long, default_value_t = 1)]
        consumers: usize,
    },
    /// Runs the dataflow over generated events in memory, into a ledger that discards
    Compute {
        #[arg(short, long, default_value_t = 1)]
        workers: usize,
        #[arg(long, default_value_t = 5_000_000)]
        events: u64,
        #[arg(long, default_value_t = 50_000)]
        visitors: u64,
        /// Spreads the events over this many hosts of equal size; by default over a few
        #[arg(long)]
        hosts: Option<u64>,
        #[arg(long, default_value_t = 4)]
        partitions: i32,
        /// Events a second of event time
        #[arg(long, default_value_t = 100)]
        density: u64,
        /// What is counted live: visitors, hosts, anomalies (with hosts) or none
        #[arg(long, default_value = "none")]
        statistics: String,
    },
    /// Opens this many sessions in the dataflow, with keys of 30 bytes, and prints what they take
    Memory {
        #[arg(short, long, default_value_t = 1)]
        workers: usize,
        #[arg(long, default_value_t = 1_000_000)]
        sessions: u64,
    },
    /// Writes events whose time is exactly that of their sending: eight a visitor, half a second
    /// apart
    Live {
        #[arg(long, default_value_t = 10_000.0)]
        rate: f64,
        #[arg(long, default_value_t = 60.0)]
        seconds: f64,
        #[arg(long, default_value_t = 4)]
        partitions: i32,
    },
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Raw { consumers } => kafka::raw(consumers),
        Command::Compute { workers, events, visitors, hosts, partitions, density, statistics } => {
            dataflow::statistics(&statistics).and_then(|statistics| {
                let crowd = (visitors, hosts);
                dataflow::compute(workers, (events, density), crowd, partitions, statistics)
            })
        }
        Command::Memory { workers, sessions } => memory::memory(workers, sessions),
        Command::Live { rate, seconds, partitions } => kafka::live(rate, seconds, partitions),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("error: {fault}");
            ExitCode::from(fault.exit_code())
        }
    }
}

/// User and system time of all threads so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux has /proc");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number of ticks");
    // `/proc` counts in hundredths of a second on every architecture.
    (ticks(11) + ticks(12)) / 100.0
}

/// A line of `/proc/self/status` that is in KiB.
fn memory_kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has /proc");
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}
