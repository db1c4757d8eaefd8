//! `scripts/bench`: measures the program on private servers.
//!
//! Things to compare are measured in turn, so that a machine whose speed drifts favours none of
//! them, and each ratio is that of two runs of the same turn.

use std::path::PathBuf;
use std::process::Command;

use clap::ValueEnum;

mod backlog;
mod cases;
mod clients;
mod live;
mod measure;
mod printed;
mod produce;
mod results;

use self::cases::Case;
use self::results::{Head, Results};
use crate::failure::{Result, While};
use crate::rng::Rng;
use crate::screen::say;
use crate::servers::Servers;
use crate::{make_ready, proc, root};

/// Builds the program, starts a private Kafka and PostgreSQL, measures, and prints a table: the
/// median of several runs, the least and the most
///
/// Things to compare are measured in turn, and each ratio is that of two runs of the same turn.
/// Leaves nothing behind, however it ends, even on Ctrl-C.
#[derive(clap::Args)]
#[command(override_usage = "scripts/bench [OPTIONS] [CASE]...")]
pub struct Args {
    /// What to measure; by default all but `peer`, which downloads Flink
    #[arg(value_name = "CASE")]
    cases: Vec<Case>,
    /// The number of events in a backlog; 200000 makes a quick trial
    #[arg(long, value_name = "N", default_value = "5,000,000", value_parser = whole)]
    events: u64,
    /// How often to measure each thing
    #[arg(long, value_name = "N", default_value = "5", value_parser = whole)]
    runs: u64,
    /// Also writes the results to this file, with every single run
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A whole number, with or without separators.
fn whole(text: &str) -> std::result::Result<u64, String> {
    let digits: String = text.chars().filter(|at| !matches!(at, ',' | '_')).collect();
    match digits.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("not a whole number above 0".to_owned()),
    }
}

/// What the cases share.
struct Bench {
    servers: Servers,
    program: PathBuf,
    /// The built bench/limits.
    limits: PathBuf,
    events: u64,
    runs: usize,
    results: Results,
    /// The number of jobs so far, for their names.
    jobs: usize,
    backlog_filled: bool,
    rng: Rng,
}

pub fn run(args: &Args) -> Result<()> {
    let cases = match args.cases.as_slice() {
        [] => Case::value_variants().iter().filter(|case| **case != Case::Peer).copied().collect(),
        cases => cases.to_vec(),
    };
    let built = make_ready(&["--bin", "sessionizer", "--example", "limits"])?;
    let mut bench = Bench {
        servers: Servers::start("bench")?,
        program: built.join("sessionizer"),
        limits: built.join("examples/limits"),
        events: args.events,
        runs: args.runs as usize,
        results: Results::default(),
        jobs: 0,
        backlog_filled: false,
        rng: Rng::new(u64::from(std::process::id())),
    };
    // Most cases ask when a row was committed.
    bench.servers.postgres.sql().run("alter system set track_commit_timestamp = on")?;
    bench.servers.postgres.restart()?;
    let head = bench.head()?;
    say(&head.machine);
    let measured = bench.measure_all(&cases);
    // Show what was measured before a failure.
    if measured.is_ok() || !bench.results.is_empty() {
        bench.results.print(&head)?;
        if let Some(path) = &args.json {
            bench.results.write_json(&head, path)?;
        }
    }
    measured
}

impl Bench {
    fn measure_all(&mut self, cases: &[Case]) -> Result<()> {
        for (at, case) in cases.iter().enumerate() {
            let name = case.to_possible_value().expect("no case is hidden");
            let name = name.get_name();
            say(format!("==> {name} ({} of {})", at + 1, cases.len()));
            self.results.begin(name);
            cases::run(*case, self).during(name)?;
        }
        Ok(())
    }

    /// The machine and the versions.
    fn head(&self) -> Result<Head> {
        let says = |command: &mut Command| {
            let output = command.current_dir(root()).output().ok();
            let output = output.filter(|output| output.status.success());
            let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            text.and_then(|text| text.lines().next().map(str::to_owned))
        };
        let versions = [
            says(Command::new(&self.program).arg("--version")),
            says(Command::new("git").args(["describe", "--always", "--dirty"]))
                .or(Some("no git".to_owned())),
            says(Command::new("rustc").arg("--version")),
            kafka_version().map(|version| format!("Kafka {version}")),
            Some(format!(
                "PostgreSQL {}",
                self.servers.postgres.sql().value("show server_version")?
            )),
        ];
        let versions: Vec<String> = versions.into_iter().flatten().collect();
        Ok(Head {
            machine: proc::machine(),
            versions: versions.join(", "),
            events: self.events,
            runs: self.runs,
        })
    }
}

/// Defined in scripts/lib/setup.sh alone.
fn kafka_version() -> Option<String> {
    let setup = std::fs::read_to_string(root().join("scripts/lib/setup.sh")).ok()?;
    Some(setup.lines().find_map(|line| line.strip_prefix("kafka_version="))?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_events_may_have_separators() {
        assert_eq!(whole("5,000_000"), Ok(5_000_000));
        for text in ["0", "-1", "5e6", "many", ""] {
            assert!(whole(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_version_of_kafka_is_found() {
        let version = kafka_version().expect("setup.sh says it");
        assert!(version.split('.').all(|part| part.parse::<u32>().is_ok()), "{version}");
    }
}
