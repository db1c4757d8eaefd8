//! The command line: what can be typed, and where a value comes from.
//!
//! A flag takes precedence over its environment variable, the environment over `--env-file`, and
//! the file over the default. Only [`parse`] decides this: it gives clap the variables as if they
//! had been typed, and remembers which, so that a message can name what has to be corrected.

mod args;
mod help;
#[cfg(test)]
mod tests;
mod tips;
mod typed;
mod variables;
pub mod version;

use std::ffi::OsString;

pub use args::{
    AskedJobArgs, AuditArgs, CheckArgs, CompareArgs, CompletionsArgs, DemoArgs, ForgetArgs,
    HealthArgs, ManArgs, OpenArgs, ProduceArgs, RedriveArgs, ReportArgs, ResetArgs, RunArgs,
    StatusArgs,
};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, ValueHint};

use crate::config;
use crate::config::Environment;

/// Turns a Kafka topic of web events into sessions in PostgreSQL, exactly once.
///
/// Without a command, it runs the job: it reads the topic, groups events by (ip, host) into
/// sessions with a gap of five minutes, and writes each session that has closed to the table
/// sessionized_events. Stop it with Ctrl-C or SIGTERM and start it again whenever you like, with
/// any number of workers: no session is lost and none is written twice.
#[derive(Parser, Debug)]
#[command(version = version::FULL, max_term_width = 100, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunArgs,

    /// Take environment variables from a file; variables that are already set take precedence
    ///
    /// Each line is NAME=VALUE, as in Docker and systemd: blank lines and lines that begin with #
    /// are ignored, `export` before the name and quotes around the value are removed.
    #[arg(
        long, value_name = "FILE", value_hint = ValueHint::FilePath, global = true,
        display_order = 900
    )]
    pub env_file: Option<String>,

    /// How log lines are written: text or json
    ///
    /// With json, each line is one JSON object with time, level, target and message, and whatever
    /// else is known of it by name: topic, partition, offset, epoch, writer.
    #[arg(long, value_name = "FORMAT", default_value = "text", global = true, display_order = 901)]
    pub log_format: String,
}

/// The other commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Checks everything that a start depends on, and says what a start would do; changes nothing
    ///
    /// Reads the settings of the job, checks Kafka, Postgres and a sample of the events, and says
    /// for each failure what to do. docs/OPERATIONS.md explains every code.
    Check(Box<CheckArgs>),
    /// Writes events to the topic: from an access log, or generated
    Produce(Box<ProduceArgs>),
    /// Reads the topic again, computes the batch answer and compares the table with it
    ///
    /// Uses the environment of the job and may run beside it. Exits with 0 only if the table is the
    /// batch answer and the balance is zero. The next audit continues from there (see --full).
    Audit(Box<AuditArgs>),
    /// Compares the table of the job with that of another program, session by session
    ///
    /// For running beside a Flink job before the cutover: both read the same topic, and each writes
    /// its own table. Every difference is explained, or counted as unexplained. Uses the
    /// environment of the job and may run beside it. Exits with 0 only if nothing is unexplained.
    Compare(Box<CompareArgs>),
    /// Analyses the table: hosts, days, hours, visitors, and what is unlike the rest
    ///
    /// Uses POSTGRES_URL and the login of the job, and only reads; it may run beside the job, and
    /// on a standby. It runs the queries in queries/, and prints tables, JSON or CSV, or writes one
    /// HTML page.
    Report(Box<ReportArgs>),
    /// Removes a job and its rows, so that the next start begins afresh
    ///
    /// Uses POSTGRES_URL and the login of the job. Shows what it is connected to and what will be
    /// removed, and asks for the job's name. Refuses to remove a running job.
    Reset(Box<ResetArgs>),
    /// Shows what a running job does: progress, partitions, writers, balance
    ///
    /// Asks its HTTP port (--http), not Kafka or Postgres.
    Status(Box<StatusArgs>),
    /// Lists the open sessions, which have no row yet
    ///
    /// They are in the snapshots in Postgres, in a binary format that SQL cannot read: so this is a
    /// command and not a view. It only reads, and works whether the job runs or not. A running job
    /// takes a snapshot of each shard every --snapshot-interval (one minute by default), so the
    /// list may be that old; a clean stop takes one of every shard.
    Open(Box<OpenArgs>),
    /// Removes a visitor from everything that the job has stored
    ///
    /// From rows, open sessions, dead letters and anomalies, in one transaction that keeps the
    /// balance at zero and the audit right. The job must have been stopped with SIGTERM. Shows what
    /// will be removed, and asks. The records stay in Kafka until its retention removes them: a
    /// `reset`, or another job that reads them, brings the visitor back. Backups and the WAL of
    /// Postgres are up to you.
    Forget(Box<ForgetArgs>),
    /// Processes dead letters again once their cause is fixed
    ///
    /// Decodes them with this program and these settings, and merges those that are events now with
    /// open sessions and rows, each exactly once: as one more commit of the job, which must have
    /// been stopped with SIGTERM. Uses the environment of the job. Payloads that were cut are
    /// reread from Kafka. What is still bad stays as it is.
    Redrive(Box<RedriveArgs>),
    /// Reports whether a running job is ready, for health checks
    ///
    /// Exits with 0 if it makes progress or has nothing to do, and otherwise with 1 and the reason.
    Health(Box<HealthArgs>),
    /// Runs the job with generated events on a broker inside the program, and shows the results
    ///
    /// Needs only POSTGRES_URL and its login (scripts/demo gives it a private server), and reads no
    /// other setting from the environment. The rows go to the table sessionizer_demo, the state to
    /// the job of that name; the next demo replaces both. At the end it audits its own table.
    Demo(Box<DemoArgs>),
    /// Prints the SQL that brings the schema sessionizer up to date, for psql
    ///
    /// A start does the same by itself if its login owns the schema. To have the owner do it:
    /// sessionizer schema | psql -U OWNER DATABASE
    Schema,
    /// Prints completions for a shell: bash, zsh, fish, elvish or powershell
    ///
    /// For example: sessionizer completions bash >/etc/bash_completion.d/sessionizer
    Completions(CompletionsArgs),
    /// Prints the manual page, or writes one for each command into a directory
    ///
    /// To read it without installing it: sessionizer man | man -l -
    Man(ManArgs),
}

/// The clap command, with the variable and the default of each flag in its help.
pub fn command() -> clap::Command {
    help::describe(Cli::command())
}

/// Parses the arguments and the variables of the process.
///
/// A mistake in a value is noted in the environment, so that [`crate::config`] can report it
/// together with all others.
///
/// # Errors
/// What clap has to report: help, the version, or an unknown argument.
pub fn parse(
    typed: impl IntoIterator<Item = OsString>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(Cli, Environment), clap::Error> {
    let typed: Vec<OsString> = typed.into_iter().collect();
    let mut command = command();
    if typed.iter().any(|arg| arg == "--version") {
        command = command.long_version(version::long());
    }
    command.build();
    let mut env = Environment::new(variables);
    let words = typed.clone();
    let typed = typed::tidy(typed, &command, &mut env);
    let matches = command
        .try_get_matches_from_mut(&typed.args)
        .map_err(|error| tips::with_tip(error, &words, &command))?;
    env.read_file(typed.env_file);
    config::read_secret_files(&mut env);
    let all = variables::known(&command);
    env.check(&all);
    let (name, chosen, matches) = match matches.subcommand() {
        Some((name, matches)) => {
            let chosen = command.find_subcommand(name).expect("clap has just found it");
            (name.to_owned(), chosen, matches)
        }
        None => (String::new(), &command, &matches),
    };
    let was_typed = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let set = variables::resolve(&name, chosen, was_typed, &mut env);
    let args = typed.args.into_iter().chain(set);
    let matches: ArgMatches = command.try_get_matches_from_mut(args)?;
    let cli = Cli::from_arg_matches(&matches)?;
    Ok((cli, env))
}

/// Whether clap only has something to show, and nothing is wrong.
pub fn only_shows(error: &clap::Error) -> bool {
    matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
}
