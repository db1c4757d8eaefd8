//! Parses what the job logs and `bench/limits` prints.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::failure::{Failure, Result, While};

/// Pairs of a name and a number on one line, as `bench/limits` prints them.
pub struct Pairs(BTreeMap<String, f64>);

impl Pairs {
    pub fn read(path: &Path) -> Result<Pairs> {
        Ok(Pairs::parse(&fs::read_to_string(path).during(path.display())?))
    }

    fn parse(text: &str) -> Pairs {
        let words: Vec<&str> = text.split_whitespace().collect();
        let pairs = words.chunks_exact(2);
        let pairs = pairs.filter_map(|pair| Some((pair[0].to_owned(), pair[1].parse().ok()?)));
        Pairs(pairs.collect())
    }

    pub fn number(&self, name: &str) -> Result<f64> {
        let number = self.0.get(name).copied();
        number.ok_or_else(|| Failure(format!("bench/limits has printed no {name}")))
    }
}

/// What a start of the job logged about the state it loaded.
#[derive(Debug, PartialEq)]
pub struct Loaded {
    pub sessions: f64,
    pub seconds: f64,
    /// The epochs it had to replay.
    pub epochs: f64,
}

impl Loaded {
    pub fn read(log: &Path) -> Result<Loaded> {
        let text = fs::read_to_string(log).during(log.display())?;
        Loaded::parse(&text).ok_or_else(|| {
            Failure(format!("{} does not say what the start has loaded", log.display()))
        })
    }

    fn parse(log: &str) -> Option<Loaded> {
        // `… reading begins: loaded 1,234 open sessions in 0.12 s`
        let loaded = log.lines().find_map(|line| line.split_once(": loaded ")).map(|at| at.1)?;
        let (sessions, rest) = loaded.split_once(" open session")?;
        let seconds = rest.rsplit_once(" in ")?.1.strip_suffix(" s")?;
        // `… start 2 of the job NAME: 12 epochs to replay`
        let again = log.lines().find_map(|line| line.split_once(" to replay"));
        let epochs = again.and_then(|(before, _)| before.rsplit_once(": ")).map_or("0", |at| at.1);
        let whole = |text: &str| text.replace(',', "").split(' ').next()?.parse().ok();
        Some(Loaded {
            sessions: whole(sessions)?,
            seconds: seconds.parse().ok()?,
            epochs: whole(epochs)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_found_by_their_name() {
        let printed = Pairs::parse("records 5000 seconds 1.250 cpu 0.50\n");
        assert_eq!(printed.number("seconds").expect("it is there"), 1.25);
        assert!(printed.number("rows").is_err());
    }

    #[test]
    fn a_start_logs_what_it_has_loaded() {
        let log = "[2026-11-26T10:00:00.000Z INFO] start 3 of the job x: 1,012 epochs to \
                   replay; topic x (4 partitions)\n\
                   [2026-11-26T10:00:00.500Z INFO] reading begins: loaded 1,150,011 open \
                   sessions in 0.22 s\n";
        let want = Loaded { sessions: 1_150_011.0, seconds: 0.22, epochs: 1012.0 };
        assert_eq!(Loaded::parse(log), Some(want));
        assert_eq!(Loaded::parse("INFO  reading begins\n"), None);
        let one = "INFO reading begins: loaded 1 open session in 0.01 s";
        let want = Loaded { sessions: 1.0, seconds: 0.01, epochs: 0.0 };
        assert_eq!(Loaded::parse(one), Some(want));
    }
}
