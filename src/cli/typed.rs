//! Rewrites the typed arguments so that clap understands every value.
//!
//! On its own, clap takes `-5m` for a flag, `--gap --table x` for a gap of `--table` and `-workers
//! 4` for a `-w` of `orkers`. Here the value of a flag is whatever follows it, unless that is a
//! flag itself, and a flag with one dash too few is reported.

use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, Command};

use crate::cli::tips::NO_VALUE;
use crate::config::Environment;

/// The arguments for clap.
pub struct Typed {
    pub args: Vec<OsString>,
    /// `--env-file`, which may be on either side of a subcommand.
    pub env_file: Option<String>,
}

/// Attaches each value to its flag: `--gap=-5m`. Notes flags without a value.
pub fn tidy(typed: Vec<OsString>, root: &Command, env: &mut Environment) -> Typed {
    let mut tidy = Typed { args: Vec::new(), env_file: None };
    let mut command = root;
    let mut rest = typed.into_iter().peekable();
    tidy.args.extend(rest.next());
    while let Some(arg) = rest.next() {
        let Some(text) = arg.to_str() else {
            tidy.args.push(arg);
            continue;
        };
        let (flag, attached) = split(text);
        if let Some((flag, attached)) = one_dash_too_few(command, text) {
            env.note(
                text,
                format!("has one dash too few: write --{}", flag.get_long().unwrap_or("")),
            );
            if takes(flag) && attached.is_none() {
                rest.next_if(|next| !is_flag(command, next));
            }
            continue;
        }
        let flag = flag.and_then(|flag| find(command, flag));
        if let (Some(flag), Some(_), true) = (flag, attached, text.starts_with("--"))
            && !takes(flag)
        {
            let name = text.split_once('=').map_or(text, |(name, _)| name);
            env.note(name, NO_VALUE);
            continue;
        }
        let Some(flag) = flag.filter(|flag| takes(flag)) else {
            command = command.find_subcommand(text).unwrap_or(command);
            tidy.args.push(arg);
            continue;
        };
        let name = format!("--{}", flag.get_long().expect("every flag has a long name"));
        let value =
            attached.map(OsString::from).or_else(|| rest.next_if(|next| !is_flag(command, next)));
        tidy.attach(flag, &name, value, env);
    }
    tidy
}

impl Typed {
    /// Attaches a value to its flag, or notes what is wrong with it.
    fn attach(&mut self, flag: &Arg, name: &str, value: Option<OsString>, env: &mut Environment) {
        match value {
            None => {
                let kind = flag.get_value_names().and_then(|names| names.first());
                let kind = kind.map_or("VALUE", |kind| kind.as_str());
                env.note(name, format!("has no value: write {name} {kind}"));
                self.args.extend(stand_in(flag));
            }
            Some(value) if value.to_str().is_some_and(|value| value.trim().is_empty()) => {
                let or = if flag.is_required_set() { "" } else { ", or leave the flag out" };
                env.note(name, format!("has an empty value: give it one{or}"));
                self.args.extend(stand_in(flag));
            }
            Some(value) if name == "--env-file" => match value.into_string() {
                Ok(_) if self.env_file.is_some() => env.note(name, "is given twice"),
                Ok(file) => self.env_file = Some(file),
                Err(_) => env.note(name, "is not valid UTF-8"),
            },
            Some(value) => {
                let mut whole = OsString::from(format!("{name}="));
                whole.push(value);
                self.args.push(whole);
            }
        }
    }
}

/// The argument for a required flag whose value is missing, as has been noted: otherwise clap would
/// report that the flag is missing, and nothing else.
fn stand_in(flag: &Arg) -> Option<OsString> {
    let name = flag.get_long().filter(|_| flag.is_required_set())?;
    Some(OsString::from(format!("--{name}=")))
}

/// Splits an argument into its flag and the attached value.
fn split(text: &str) -> (Option<Flag<'_>>, Option<&str>) {
    if let Some(long) = text.strip_prefix("--") {
        return match long.split_once('=') {
            Some((long, value)) => (Some(Flag::Long(long)), Some(value)),
            None => (Some(Flag::Long(long)), None),
        };
    }
    let mut chars = text.strip_prefix('-').unwrap_or("").chars();
    let Some(short) = chars.next() else { return (None, None) };
    let value = Some(chars.as_str()).filter(|value| !value.is_empty());
    (Some(Flag::Short(short)), value.map(|value| value.strip_prefix('=').unwrap_or(value)))
}

#[derive(Clone, Copy)]
enum Flag<'a> {
    Long(&'a str),
    Short(char),
}

fn find<'a>(command: &'a Command, flag: Flag<'_>) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| match flag {
        Flag::Long(long) => arg.get_long() == Some(long),
        Flag::Short(short) => arg.get_short() == Some(short),
    })
}

/// `-workers`, with a value that may be attached to it.
fn one_dash_too_few<'a, 'b>(
    command: &'a Command,
    text: &'b str,
) -> Option<(&'a Arg, Option<&'b str>)> {
    let text = text.strip_prefix('-').filter(|text| text.len() > 1 && !text.starts_with('-'))?;
    let (name, attached) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    find(command, Flag::Long(name)).map(|flag| (flag, attached))
}

pub fn takes(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// Whether it can only be a flag: it has two dashes, or is the short name of a flag.
fn is_flag(command: &Command, arg: &OsStr) -> bool {
    let Some(text) = arg.to_str() else { return false };
    match split(text) {
        (Some(Flag::Long(_)), _) => true,
        (Some(short), _) => text.chars().count() == 2 && find(command, short).is_some(),
        (None, _) => false,
    }
}
