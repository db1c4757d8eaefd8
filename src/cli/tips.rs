//! Suggests what was meant by something typed that clap does not know.
//!
//! clap's own suggestions use a measure that misses short names (`--gpa`) and suggests wrong long
//! ones (`--topic` is not `--stop-timeout`), and clap does not know that variables name Kafka and
//! Postgres. Where one of these rules applies, its tip replaces clap's.

use std::ffi::OsString;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, Error};

use crate::cli::typed::takes;
use crate::cli::variables::PLAIN;

/// What people type for settings that a variable holds.
const ALSO_CALLED: [(&str, &[&str]); 8] = [
    ("KAFKA_URL", &["broker", "brokers", "broker-list", "bootstrap-server", "bootstrap-servers"]),
    ("KAFKA_TOPIC", &["topic", "topics", "kafka-topics"]),
    ("KAFKA_GROUP", &["group", "group-id", "consumer-group"]),
    ("POSTGRES_URL", &["url", "jdbc-url", "database", "database-url", "db", "dsn", "postgres"]),
    ("POSTGRES_USER", &["user", "username"]),
    ("POSTGRES_PASSWORD", &["password", "postgres-password"]),
    ("KAFKA_WEB_TRAFFIC_SECRET", &["kafka-password", "sasl-password"]),
    ("SESSIONIZER_CLUSTER_SECRET", &["cluster-secret"]),
];
/// What people type to run the job.
const RUN: [&str; 7] = ["run", "start", "job", "serve", "up", "exec", "consume"];

/// Adds a suggestion to the error, if it is clear what was meant. `typed` is what the user typed,
/// and `root` the built command.
pub fn with_tip(error: Error, typed: &[OsString], root: &Command) -> Error {
    let words: Vec<&str> = typed.iter().skip(1).filter_map(|word| word.to_str()).collect();
    let culprit = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let (kind, tip) = match error.kind() {
        kind @ ErrorKind::UnknownArgument => {
            let arg = culprit(ContextKind::InvalidArg);
            (kind, arg.and_then(|arg| tip_for_argument(&arg, &words, root)))
        }
        // What follows an option may not be a command at all.
        kind @ (ErrorKind::InvalidSubcommand | ErrorKind::ArgumentConflict) => {
            match culprit(ContextKind::InvalidSubcommand) {
                Some(word) if root.find_subcommand(&word).is_some() => {
                    (kind, Some(format!("options follow the command: sessionizer {word} ...")))
                }
                word => (
                    ErrorKind::InvalidSubcommand,
                    word.and_then(|word| tip_for_command(&word, &words, root)),
                ),
            }
        }
        kind => (kind, None),
    };
    let is_secret = |kind| culprit(kind).is_some_and(|word| shown(&word) != word);
    let is_secret = is_secret(ContextKind::InvalidArg) || is_secret(ContextKind::InvalidSubcommand);
    let tip = match tip {
        Some(tip) => tip,
        None if is_secret => "see sessionizer --help".to_owned(),
        None => return error,
    };
    let command = chosen(&words, root);
    // A new error, because clap's suggestion cannot be removed from its own.
    let mut ours = Error::new(kind).with_cmd(command);
    for kind in [ContextKind::InvalidArg, ContextKind::InvalidSubcommand] {
        if let Some(word) = culprit(kind) {
            ours.insert(kind, ContextValue::String(shown(&word)));
        }
    }
    if let Some(before) = error.get(ContextKind::PriorArg) {
        ours.insert(ContextKind::PriorArg, before.clone());
    }
    ours.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(tip)]));
    let usage = command.clone().render_usage();
    ours.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    ours
}

/// A word as it may be repeated: what follows a = or the scheme of a URL may be a secret.
fn shown(word: &str) -> String {
    let end = |mark: &str| word.find(mark).map(|at| at + mark.len());
    match end("=").into_iter().chain(end("://")).min() {
        Some(end) if end < word.len() => format!("{}...", &word[..end]),
        _ => word.to_owned(),
    }
}

/// The command whose options were typed.
fn chosen<'a>(words: &[&str], root: &'a Command) -> &'a Command {
    words.iter().find_map(|word| root.find_subcommand(word)).unwrap_or(root)
}

/// What was meant by an option that the command does not have.
fn tip_for_argument(arg: &str, words: &[&str], root: &Command) -> Option<String> {
    let command = chosen(words, root);
    if !arg.starts_with('-') && arg.contains('=') {
        return tip_for_command(arg, words, root);
    }
    if !arg.starts_with('-') {
        return Some(format!(
            "`{}` takes nothing but options, which begin with dashes",
            command.get_bin_name().unwrap_or("sessionizer")
        ));
    }
    // For `-gpa`, clap names only the first letter.
    let whole = words.iter().find(|word| word.starts_with(arg)).unwrap_or(&arg);
    let name = whole.trim_start_matches('-');
    let name = name.split_once('=').map_or(name, |(name, _)| name);
    let name = name.to_lowercase().replace('_', "-");
    if let Some(flag) = name.strip_prefix("no-").and_then(|rest| find(command, rest))
        && !takes(flag)
    {
        return Some(format!("{} is off unless it is given: leave this out", long(flag)));
    }
    if let Some(flag) = find(command, &name) {
        return Some(format!("did you mean {}?", long(flag)));
    }
    let upper = name.to_uppercase().replace('-', "_");
    let also = ALSO_CALLED.iter().find(|(_, names)| names.contains(&&*name));
    if let Some(variable) = also.map(|(ours, _)| *ours).or(PLAIN.into_iter().find(|n| *n == upper))
    {
        return Some(format!("this is set by the environment variable {variable}"));
    }
    if name.chars().count() == 1 {
        let lower = command.get_arguments().find(|arg| {
            arg.get_short().is_some_and(|short| name.eq_ignore_ascii_case(&short.to_string()))
        });
        return lower.map(|flag| {
            let short = flag.get_short().expect("found by it");
            format!("did you mean -{short}, {}?", long(flag))
        });
    }
    let elsewhere = || {
        let others = std::iter::once(root).chain(root.get_subcommands());
        let mut others = others.filter(|other| other.get_name() != command.get_name());
        let other = others.find(|other| find(other, &name).is_some())?;
        Some(format!("--{name} is an option of {}", called(other, root)))
    };
    elsewhere().or_else(|| nearest(command, &name).map(|flag| format!("did you mean --{flag}?")))
}

/// What was meant by a word that is not a command.
fn tip_for_command(word: &str, words: &[&str], root: &Command) -> Option<String> {
    let before = words.iter().position(|typed| *typed == word).and_then(|at| at.checked_sub(1));
    let before = before.and_then(|at| words[at].strip_prefix("--"));
    if let Some(flag) = before.and_then(|name| find(root, name)).filter(|flag| !takes(flag)) {
        return Some(format!("{} {NO_VALUE}", long(flag)));
    }
    if let Some((name, _)) = word.split_once('=') {
        return Some(match name.contains('.') {
            true => "each setting of librdkafka needs a --kafka-config before it".to_owned(),
            false => format!("to set a variable, write it first: {name}=... sessionizer"),
        });
    }
    let commands = root.get_subcommands().map(Command::get_name);
    let near = commands.map(|name| (strsim::osa_distance(word, name), name)).min();
    match word.to_lowercase().as_str() {
        word if RUN.contains(&word) => {
            Some(format!("without a command, `sessionizer` runs the job: leave out `{word}`"))
        }
        "version" => Some("did you mean --version?".to_owned()),
        _ => match near {
            Some((distance, name)) if distance <= 2 => Some(format!("did you mean `{name}`?")),
            _ => Some(
                "brokers, topic and database are set by variables, see sessionizer --help"
                    .to_owned(),
            ),
        },
    }
}

/// What is wrong with a value for a flag that is on or off.
pub const NO_VALUE: &str = "takes no value: leave it out to turn it off";

fn find<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| arg.get_long() == Some(name))
}

fn long(flag: &Arg) -> String {
    format!("--{}", flag.get_long().expect("every flag has a long name"))
}

/// The name of a command in a message.
fn called(command: &Command, root: &Command) -> String {
    if command.get_name() == root.get_name() {
        "`sessionizer` without a command".to_owned()
    } else {
        format!("`sessionizer {}`", command.get_name())
    }
}

/// The flag that was probably meant: one typo for every three letters, at most three.
fn nearest<'a>(command: &'a Command, name: &str) -> Option<&'a str> {
    let names = command.get_arguments().filter_map(Arg::get_long);
    let (distance, nearest) = names.map(|long| (strsim::osa_distance(name, long), long)).min()?;
    (distance <= (nearest.len() / 3).clamp(1, 3)).then_some(nearest)
}
