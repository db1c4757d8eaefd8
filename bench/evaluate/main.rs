//! How well anomalies are found: the tables of docs/ANOMALIES.md. See `scripts/evaluate --help`.
//!
//! The detectors are `sessionizer_core::anomaly::batch`, the same functions that the job uses, and
//! the traffic that of `sessionizer produce --scenario`, without Kafka and Postgres in between.

mod access_log;
mod open;
mod outcome;
mod rows;
mod synthetic;

use std::process::ExitCode;

use clap::{Args, Parser};
use sessionizer_core::anomaly::Thresholds;

/// Scores the detectors of anomalies
#[derive(Parser)]
#[command(bin_name = "scripts/evaluate", disable_help_subcommand = true)]
enum Tool {
    /// On generated days: precision, recall, delay and false alarms, for three volumes and two
    /// tails, compared with "more than 100 events"
    Synthetic(synthetic::Args),
    /// On an access log: who is flagged, and what their agents say they are
    Log(access_log::Args),
    /// On what a job has found in a topic that `produce --scenario … --truth FILE` has written
    Rows(rows::Args),
}

/// The thresholds.
#[derive(Args)]
struct ThresholdArgs {
    /// Changes a threshold, for example burst.min=30; can be given several times
    #[arg(long = "set", value_name = "NAME=VALUE")]
    set: Vec<String>,
}

impl ThresholdArgs {
    fn thresholds(&self) -> Result<Thresholds, String> {
        let mut thresholds = Thresholds::default();
        for setting in &self.set {
            let (name, value) =
                setting.split_once('=').ok_or(format!("--set {setting}: is not NAME=VALUE"))?;
            let value = value.parse().map_err(|why| format!("--set {setting}: {why}"))?;
            thresholds.set(name, value).map_err(|why| format!("--set {setting}: {why}"))?;
        }
        Ok(thresholds)
    }
}

fn main() -> ExitCode {
    let done = match Tool::parse() {
        Tool::Synthetic(args) => synthetic::run(&args),
        Tool::Log(args) => access_log::run(&args),
        Tool::Rows(args) => rows::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
