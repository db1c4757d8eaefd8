//! The environment variable of each flag: SESSIONIZER_ and the name of the flag.

use std::collections::BTreeSet;
use std::ffi::OsString;

use clap::{ArgAction, Command};

use crate::config::Environment;
use crate::config::value::{boolean, number};

/// Variables that are not flags: those of Kafka and Postgres, and the secret of a cluster, which
/// must not be typed where everybody on the machine can see it.
pub const PLAIN: [&str; 12] = [
    "KAFKA_URL",
    "KAFKA_TOPIC",
    "KAFKA_GROUP",
    "KAFKA_WEB_TRAFFIC_KEY",
    "KAFKA_WEB_TRAFFIC_SECRET",
    "POSTGRES_URL",
    "POSTGRES_USER",
    "POSTGRES_PASSWORD",
    "KAFKA_WEB_TRAFFIC_SECRET_FILE",
    "POSTGRES_PASSWORD_FILE",
    "PGPASSFILE",
    "SESSIONIZER_CLUSTER_SECRET",
];

/// Variables that only the scripts and tests of this repository read.
const SCRIPT_VARIABLES: [&str; 7] = [
    "SESSIONIZER_CACHE",
    "SESSIONIZER_PROGRAM",
    "SESSIONIZER_RECORD_COST",
    "SESSIONIZER_COST_HOT",
    "SESSIONIZER_FUZZ",
    "SESSIONIZER_SEED",
    "SESSIONIZER_SEEDS",
];

/// The variables of a flag; the first is the one to use, the others are former names.
pub fn names(command: &str, flag: &str) -> Vec<String> {
    let regular = format!("SESSIONIZER_{}", flag.to_uppercase().replace('-', "_"));
    let listed: &[&str] = match (command, flag) {
        ("" | "check" | "redrive", "late") => &["SESSIONIZER_LATE", "SESSIONIZER_LATE_EVENTS"],
        // The job has a flag of this name with another meaning.
        ("produce", "late") => &["SESSIONIZER_PRODUCE_LATE", "SESSIONIZER_LATE"],
        // The job and `produce` have flags of these names with other meanings.
        ("report", "from") => &["SESSIONIZER_REPORT_FROM"],
        ("report", "host") => &["SESSIONIZER_REPORT_HOST"],
        _ => return vec![regular],
    };
    listed.iter().map(|name| (*name).to_owned()).collect()
}

/// Whether a flag has a variable. Those that clap adds have none, nor has the one that skips a
/// question, which must always be typed. The flags of the demo have none, so that a demo does not
/// take over the exported variables of a job. The same goes for flags that name a visitor and for
/// the `--reason` of `redrive`: a variable that was exported for something else (`produce` has a
/// `--host`, too) must not decide who is forgotten, or which dead letters are processed again.
pub fn has_variable(command: &str, arg: &clap::Arg) -> bool {
    let id = arg.get_id().as_str();
    let names_a_visitor = ["open", "forget"].contains(&command) && ["ip", "host"].contains(&id);
    command != "demo"
        && !names_a_visitor
        && (command, id) != ("redrive", "reason")
        && !["help", "version", "yes"].contains(&id)
        && arg.get_long().is_some()
}

/// Every variable that any command reads.
pub fn known(root: &Command) -> BTreeSet<String> {
    let mut all: BTreeSet<String> =
        PLAIN.iter().chain(&SCRIPT_VARIABLES).map(|name| (*name).to_owned()).collect();
    let commands = std::iter::once(("", root))
        .chain(root.get_subcommands().map(|command| (command.get_name(), command)));
    for (name, command) in commands.filter(|(name, _)| *name != "help") {
        for arg in command.get_arguments().filter(|arg| has_variable(name, arg)) {
            all.extend(names(name, arg.get_long().expect("it has a variable")));
        }
    }
    all
}

/// The flags of a command that were not typed and whose variable is set, as arguments.
pub fn resolve(
    name: &str,
    command: &Command,
    was_typed: impl Fn(&str) -> bool,
    env: &mut Environment,
) -> Vec<OsString> {
    let mut args = Vec::new();
    for arg in command.get_arguments().filter(|arg| has_variable(name, arg)) {
        let flag = arg.get_long().expect("it has a variable");
        if flag == "env-file" || was_typed(arg.get_id().as_str()) {
            continue;
        }
        let set = names(name, flag).into_iter().filter_map(|variable| {
            let value = env.value(&variable)?;
            Some((variable, value)).filter(|(variable, value)| is_meant(name, variable, value))
        });
        let set: Vec<(String, String)> = set.collect();
        if matches!((name, flag), ("" | "check", "late"))
            && set.is_empty()
            && env.value("SESSIONIZER_LATE").is_some()
        {
            env.warn(
                "SESSIONIZER_LATE is a number, which only `produce` reads: for the job it can be \
                 merge or drop (and SESSIONIZER_PRODUCE_LATE is for `produce` alone)"
                    .to_owned(),
            );
        }
        let Some((variable, value)) = set.first().cloned() else { continue };
        if let Some((other, _)) = set.iter().find(|(_, other)| *other != value) {
            env.note(other, format!("is not the same as {variable}: they set --{flag}, keep one"));
        }
        env.set_by(&format!("--{flag}"), &variable);
        match arg.get_action() {
            ArgAction::SetTrue => match boolean(&value) {
                Ok(true) => args.push(format!("--{flag}").into()),
                Ok(false) => {}
                Err(what) => env.note(&variable, what),
            },
            _ => args.push(format!("--{flag}={value}").into()),
        }
    }
    args
}

/// SESSIONIZER_LATE was a share of the events for `produce` before it became a rule for the job. A
/// file that both read may hold either; a number is never a rule.
fn is_meant(command: &str, variable: &str, value: &str) -> bool {
    let is_share = number(value, f64::MIN, f64::MAX).is_ok();
    match (command, variable) {
        ("" | "check" | "redrive", "SESSIONIZER_LATE") => !is_share,
        ("produce", "SESSIONIZER_LATE") => is_share,
        _ => true,
    }
}
