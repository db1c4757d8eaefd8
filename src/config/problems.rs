//! Collects all mistakes, to report them in one message.

use std::fmt::Write as _;

use sessionizer_core::fault::Fault;

use crate::config::Environment;

/// Collects what is wrong.
pub struct Problems<'a> {
    env: &'a Environment,
    found: Vec<(String, String)>,
}

impl<'a> Problems<'a> {
    /// Begins with what was found when the environment was read.
    pub fn new(env: &'a Environment) -> Self {
        Problems { env, found: env.notes().to_vec() }
    }

    /// Notes that a flag or a variable is wrong. A flag whose value came from a variable is
    /// reported by the name of the variable.
    pub fn add(&mut self, name: &str, what: impl Into<String>) {
        self.found.push(self.env.blame(name, what.into()));
    }

    /// The value; otherwise notes what is wrong with it.
    pub fn take<T>(&mut self, name: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|what| self.add(name, what)).ok()
    }

    /// What is wrong: the name of the setting, and the rest of the sentence.
    pub fn list(mut self) -> Vec<(String, String)> {
        let mut seen = Vec::new();
        // If a value is in quotes, nobody can tell what else is wrong with it.
        let quoted = |(name, what): &(String, String)| {
            let of_it = self.env.notes().iter().find(|(known, _)| known == name);
            of_it.is_some_and(|(_, note)| note.contains("quotes around it") && note != what)
        };
        self.found.retain(|found| {
            let new = !seen.contains(found) && !quoted(found);
            seen.push(found.clone());
            new
        });
        self.found
    }

    /// Everything in one message.
    pub fn fault(self) -> Fault {
        let found = self.list();
        let width = found.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut message = match found.len() {
            1 => "a setting is missing or wrong:".to_owned(),
            several => format!("{several} settings are missing or wrong:"),
        };
        for (name, what) in &found {
            write!(message, "\n  {name:width$}  {what}").expect("writing to a string cannot fail");
        }
        message.push_str("\n(sessionizer --help explains every setting)");
        Fault::config(message)
    }

    /// Drops what is wrong with settings that this command does not read.
    pub fn keep(&mut self, is_read: impl Fn(&str) -> bool) {
        self.found.retain(|(name, _)| is_read(name));
    }

    /// Whether something is wrong with this flag or variable.
    pub fn concern(&self, name: &str) -> bool {
        self.found.iter().any(|(found, _)| found == name)
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }
}
