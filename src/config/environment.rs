//! Environment variables, and below them those of `--env-file`. Knows which variable has set a
//! flag, and never shows a value.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use crate::config::{env_file, read_file};

/// Secrets are taken as they are: a password may begin with a space or a quote.
const SECRETS: [&str; 3] =
    ["POSTGRES_PASSWORD", "KAFKA_WEB_TRAFFIC_SECRET", crate::config::cluster::SECRET];

/// What other programs call the settings of our variables.
const ALSO_CALLED: [(&str, &[&str]); 6] = [
    (
        "KAFKA_URL",
        &[
            "KAFKA_BROKER",
            "KAFKA_BROKERS",
            "KAFKA_BROKER_LIST",
            "KAFKA_BOOTSTRAP_SERVER",
            "KAFKA_BOOTSTRAP_SERVERS",
            "KAFKA_URI",
            "KAFKA_URLS",
        ],
    ),
    ("KAFKA_TOPIC", &["KAFKA_TOPIC_NAME"]),
    ("KAFKA_GROUP", &["KAFKA_GROUP_ID", "KAFKA_CONSUMER_GROUP"]),
    ("POSTGRES_URL", &["POSTGRES_URI", "POSTGRES_DSN", "POSTGRES_JDBC_URL", "DATABASE_URL"]),
    ("POSTGRES_USER", &["POSTGRES_USERNAME"]),
    ("POSTGRES_PASSWORD", &["POSTGRES_PASS", "POSTGRES_PWD", "POSTGRES_PASSWD"]),
];

/// The variables that a command reads.
#[derive(Default)]
pub struct Environment {
    variables: BTreeMap<String, Variable>,
    /// By flag: the variable that its value came from.
    set_by: BTreeMap<String, String>,
    /// What is wrong, in terms of flags and variables.
    notes: Vec<(String, String)>,
    /// What may be a mistake.
    warnings: Vec<String>,
}

struct Variable {
    /// `None` if it is not UTF-8.
    value: Option<String>,
    /// Where a file sets it.
    place: Option<String>,
}

impl Environment {
    /// The variables of a process.
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let named = variables.into_iter().filter_map(|(name, value)| {
            let variable = Variable { value: value.into_string().ok(), place: None };
            Some((name.into_string().ok()?, variable))
        });
        Environment { variables: named.collect(), ..Environment::default() }
    }

    /// The same with some variables changed; `None` unsets one.
    pub fn with(&self, changes: &[(&str, Option<&str>)]) -> Self {
        let mut variables: BTreeMap<String, Variable> = BTreeMap::new();
        for (name, Variable { value, place }) in &self.variables {
            let variable = Variable { value: value.clone(), place: place.clone() };
            variables.insert(name.clone(), variable);
        }
        for (name, value) in changes {
            variables.remove(*name);
            if let Some(value) = value {
                let variable = Variable { value: Some((*value).to_owned()), place: None };
                variables.insert((*name).to_owned(), variable);
            }
        }
        let notes = self.notes.clone();
        Environment { variables, notes, ..Environment::default() }
    }

    /// Adds the variables of a file, or of the one that SESSIONIZER_ENV_FILE names. Variables that
    /// are already set take precedence.
    pub fn read_file(&mut self, file: Option<String>) {
        let (name, file) = match (file, self.value("SESSIONIZER_ENV_FILE")) {
            (Some(file), _) => ("--env-file", file),
            (None, Some(file)) => ("SESSIONIZER_ENV_FILE", file),
            (None, None) => return,
        };
        match read_file(&file) {
            Ok(bytes) => self.add_file(name, &file, &bytes),
            Err(why) => self.note(name, format!("{file} cannot be read: {why}")),
        }
    }

    fn add_file(&mut self, name: &str, file: &str, bytes: &[u8]) {
        match env_file::parse(bytes) {
            Ok(variables) => {
                for env_file::Assignment { number, name, value } in variables {
                    let is_set = |known: &Variable| {
                        let value = known.value.as_deref();
                        known.place.is_none() && value.is_none_or(|value| !value.trim().is_empty())
                    };
                    if !self.variables.get(&name).is_some_and(is_set) {
                        let place = Some(format!("line {number} of {file}"));
                        self.variables.insert(name, Variable { value: Some(value), place });
                    }
                }
            }
            Err(wrong) => {
                for (number, what) in wrong {
                    self.note(name, format!("line {number} of {file} {what}"));
                }
            }
        }
    }

    /// A value without surrounding white space; an empty one counts as not set.
    pub fn value(&self, name: &str) -> Option<String> {
        let value = self.variables.get(name)?.value.as_deref()?.trim();
        Some(value.to_owned()).filter(|value| !value.is_empty())
    }

    /// A secret, as it is.
    pub fn secret(&self, name: &str) -> Option<String> {
        let value = self.variables.get(name)?.value.as_deref()?;
        Some(value.to_owned()).filter(|value| !value.trim().is_empty())
    }

    /// Sets a secret that was read from a file.
    pub(super) fn set_secret(&mut self, name: &str, value: &str) {
        let variable = Variable { value: Some(value.to_owned()), place: None };
        self.variables.insert(name.to_owned(), variable);
    }

    /// Notes a mistake.
    pub fn note(&mut self, name: &str, what: impl Into<String>) {
        let note = self.blame(name, what.into());
        self.notes.push(note);
    }

    /// Adds what may be a mistake.
    pub fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// Remembers where the value of a flag came from.
    pub fn set_by(&mut self, flag: &str, variable: &str) {
        self.set_by.insert(flag.to_owned(), variable.to_owned());
    }

    /// The variable that has set a flag, or the flag.
    pub fn origin(&self, flag: &str) -> String {
        self.set_by.get(flag).cloned().unwrap_or_else(|| flag.to_owned())
    }

    /// What has to be corrected: the variable instead of the flag that it has set, and the line of
    /// the file that sets it.
    pub fn blame(&self, name: &str, what: String) -> (String, String) {
        let name = self.set_by.get(name).map_or(name, String::as_str);
        let place = self.variables.get(name).and_then(|variable| variable.place.as_ref());
        let what = place.map_or(what.clone(), |place| format!("{what} ({place})"));
        (name.to_owned(), what)
    }

    pub(super) fn notes(&self) -> &[(String, String)] {
        &self.notes
    }

    /// What may be a mistake, for the log.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Checks all variables: those in `known` must be well-formed, and a name that nothing reads
    /// may be a typo.
    pub fn check(&mut self, known: &BTreeSet<String>) {
        let (mut notes, mut warnings) = (Vec::new(), Vec::new());
        for (name, variable) in &self.variables {
            let is_known = known.contains(name);
            match variable.value.as_deref() {
                None if is_known => notes.push((name.clone(), "is not valid UTF-8".to_owned())),
                Some(value) if is_known => check_value(name, value, &mut notes, &mut warnings),
                _ => {}
            }
            let is_set = |name: &str| self.variables.contains_key(name);
            if !is_known && let Some(what) = slip(name, known, is_set) {
                let place = variable.place.as_ref();
                let place = place.map_or(String::new(), |place| format!(" ({place})"));
                warnings.push(format!("{name}{place} {what}"));
            }
        }
        self.notes.extend(notes);
        self.warnings.extend(warnings);
    }
}

fn check_value(
    name: &str,
    value: &str,
    notes: &mut Vec<(String, String)>,
    warnings: &mut Vec<String>,
) {
    let quoted = |value: &str| {
        let ends = (value.chars().next(), value.chars().next_back());
        value.len() > 1 && (ends == (Some('"'), Some('"')) || ends == (Some('\''), Some('\'')))
    };
    if value.trim().is_empty() {
        return;
    }
    if SECRETS.contains(&name) {
        let value = match name {
            crate::config::cluster::SECRET => crate::config::cluster::without_newline(value),
            _ => value,
        };
        if quoted(value) {
            warnings.push(format!(
                "{name} has quotes around it, and they are taken as part of it: docker run \
                 --env-file keeps them"
            ));
        } else if value.trim() != value {
            warnings.push(format!(
                "{name} begins or ends with a blank or a line break, and that is taken as part of \
                 it"
            ));
        }
    } else if quoted(value.trim()) {
        notes.push((
            name.to_owned(),
            "has quotes around it: take them off (docker run --env-file keeps them)".to_owned(),
        ));
    }
}

/// What to say about a variable that nothing reads, if its name resembles one of ours.
fn slip(name: &str, known: &BTreeSet<String>, is_set: impl Fn(&str) -> bool) -> Option<String> {
    let upper = name.to_uppercase();
    let nearest = |prefix: &str, limit: fn(usize) -> usize| {
        let word = upper.strip_prefix(prefix)?;
        let rest = known.iter().filter_map(|known| Some((known, known.strip_prefix(prefix)?)));
        let far = rest.map(|(known, rest)| (strsim::osa_distance(word, rest), known, rest.len()));
        let (distance, known, length) = far.min()?;
        (distance <= limit(length)).then(|| known.clone())
    };
    if upper.starts_with("SESSIONIZER_TEST_") {
        return None;
    }
    if upper.starts_with("SESSIONIZER_") {
        let nearest = nearest("SESSIONIZER_", |length| (length / 2).clamp(1, 5));
        let meant = nearest.map_or(String::new(), |name| format!(": did you mean {name}?"));
        return Some(format!("is not a variable that sessionizer reads{meant}"));
    }
    if let Some(of) = upper.strip_suffix("_FILE").filter(|of| known.contains(*of)) {
        return Some(format!(
            "is not a variable that sessionizer reads: only secrets can be in files; set {of}"
        ));
    }
    // Other programs have variables that begin with these.
    let limit = |length: usize| if length <= 3 { 1 } else { 2 };
    let meant = ["KAFKA_", "POSTGRES_"].iter().find_map(|prefix| nearest(prefix, limit));
    let also = ALSO_CALLED.iter().find(|(ours, names)| !is_set(ours) && names.contains(&&*upper));
    let meant = meant.or_else(|| also.map(|(ours, _)| (*ours).to_owned()))?;
    Some(format!("is not a variable that sessionizer reads: did you mean {meant}?"))
}
