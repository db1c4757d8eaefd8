//! The records of an access log. What does not parse is logged, skipped and counted.
//!
//! The first record is read when the log is opened: until then, nothing needs to be created for it.

use std::io::BufRead;
use std::path::Path;

use log::warn;
use sessionizer_core::fault::Fault;

use super::{Lines, ReadError, parse_line, reader};
use crate::commands::produce::Outgoing;
use crate::dataflow::run_state::RunState;
use crate::ui::text::{count, plural};

/// How many skipped lines are shown of each kind; further ones are only counted.
const LINES_SHOWN: u64 = 10;

/// A log, of which the first record is known.
pub struct AccessLog<'a> {
    path: String,
    host: String,
    lines: Lines<Box<dyn BufRead + Send>>,
    run_state: &'a RunState,
    /// The next record, read ahead.
    first: Option<Result<Outgoing, Fault>>,
    bad: Skipped,
    too_long: Skipped,
}

/// Lines that were skipped for a reason of one kind.
#[derive(Default)]
struct Skipped {
    lines: u64,
    /// The first one: its number, and why.
    first: Option<(u64, String)>,
}

impl Skipped {
    fn add(&mut self, path: &str, number: u64, why: String) {
        self.lines += 1;
        match self.lines {
            ..=LINES_SHOWN => warn!("{path}: line {} is skipped: {why}", count(number)),
            n if n == LINES_SHOWN + 1 => {
                warn!("{path}: further lines that are skipped are only counted");
            }
            _ => {}
        }
        self.first.get_or_insert((number, why));
    }
}

impl<'a> AccessLog<'a> {
    /// Opens a log and reads up to its first record.
    ///
    /// # Errors
    /// If it cannot be read, or has lines and none of them is a line of an access log.
    pub fn open(path: &str, host: &str, run_state: &'a RunState) -> Result<Self, Fault> {
        // If the file cannot be opened, its name is probably wrong.
        let lines = reader(Path::new(path))
            .map_err(|why| Fault::config(format!("--access-log {path}: {why}")))?;
        let mut log = AccessLog {
            path: path.to_owned(),
            host: host.to_owned(),
            lines: Lines::new(lines),
            run_state,
            first: None,
            bad: Skipped::default(),
            too_long: Skipped::default(),
        };
        match log.next() {
            Some(Err(fault)) => Err(fault),
            None if !run_state.stopping() => log.without_record().map_or(Ok(log), Err),
            first => {
                log.first = first;
                Ok(log)
            }
        }
    }

    /// What is wrong with a log that has lines and no record.
    fn without_record(&self) -> Option<Fault> {
        let lines = self.bad.lines + self.too_long.lines;
        let firsts = [&self.bad, &self.too_long].into_iter().filter_map(|of| of.first.as_ref());
        let Some((number, why)) = firsts.min() else {
            warn!("{}: it is empty", self.path);
            return None;
        };
        let path = &self.path;
        let none = match lines {
            1 => "its only line cannot be read".to_owned(),
            lines => format!("none of its {} can be read", plural(lines, "line")),
        };
        Some(Fault::config(format!(
            "--access-log {path}: it is not an access log in the common or combined format: {none}; \
             line {}: {why}",
            count(*number)
        )))
    }

    /// Says how many lines were skipped.
    pub fn summarize(&self) {
        let path = &self.path;
        if self.bad.lines > 0 {
            warn!("{path}: skipped {} that did not parse", plural(self.bad.lines, "line"));
        }
        if self.too_long.lines > 0 {
            let were = if self.too_long.lines == 1 { "was" } else { "were" };
            warn!("{path}: skipped {} that {were} too long", plural(self.too_long.lines, "line"));
        }
    }
}

impl Iterator for AccessLog<'_> {
    type Item = Result<Outgoing, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        while !self.run_state.stopping() {
            let (number, line) = self.lines.next()?;
            match line {
                Ok(line) => match parse_line(&line, &self.host) {
                    Ok(event) => {
                        return Some(Ok(Outgoing {
                            key: Some(event.ip.to_string()),
                            payload: Some(event.to_json()),
                            partition: None,
                        }));
                    }
                    Err(why) => self.bad.add(&self.path, number, why.to_string()),
                },
                Err(why @ ReadError::TooLong) => {
                    self.too_long.add(&self.path, number, why.to_string());
                }
                Err(ReadError::Io(why)) => {
                    let (path, number) = (&self.path, count(number));
                    let why = format!("{path}: line {number}: cannot read further: {why}");
                    return Some(Err(Fault::environment(why)));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::produce::access_log::input::MAX_LINE_BYTES;

    const GOOD: &str = "203.0.113.9 - - [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 12\n";

    /// What an opened log has said: its error, or the records, and what was skipped.
    fn read(name: &str, content: &str) -> Result<(usize, u64, u64), Fault> {
        let file = format!("sessionizer-records-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(file);
        std::fs::write(&path, content).expect("the temporary directory is writable");
        let run_state = RunState::default();
        let log = AccessLog::open(path.to_str().expect("UTF-8"), "h", &run_state);
        std::fs::remove_file(&path).expect("just written");
        let mut log = log?;
        let records = log.by_ref().filter(Result::is_ok).count();
        Ok((records, log.bad.lines, log.too_long.lines))
    }

    #[test]
    fn a_log_without_a_record_is_refused_with_its_first_line() {
        let long = format!("{}\n", "x".repeat(MAX_LINE_BYTES + 3));
        for (content, says) in [
            (
                "hello\nworld\n",
                "none of its 2 lines can be read; line 1: time at column 6: no time",
            ),
            ("\n", "its only line cannot be read; line 1: client at column 1: the line is empty"),
            (&*long, "its only line cannot be read; line 1: it is longer than 1048576 bytes"),
            (&format!("{long}x"), "none of its 2 lines can be read; line 1: it is longer than"),
        ] {
            let fault = read("bad", content).expect_err("not a log");
            assert_eq!(fault.exit_code(), 2);
            let why = fault.to_string();
            assert!(why.contains("bad: it is not an access log"), "{why}");
            assert!(why.contains(says), "{says}: {why}");
        }
        assert_eq!(read("empty", ""), Ok((0, 0, 0)));
    }

    #[test]
    fn what_is_skipped_is_counted_by_its_kind() {
        let long = "x".repeat(3 << 20);
        let content = format!("bad\n{GOOD}{}{long}\n{GOOD}", "bad\n".repeat(20));
        assert_eq!(read("mixed", &content), Ok((2, 21, 1)));
        assert_eq!(read("good", GOOD), Ok((1, 0, 0)));
    }

    #[test]
    fn a_stop_is_noticed_between_lines() {
        let path = std::env::temp_dir().join(format!("sessionizer-stop-{}", std::process::id()));
        std::fs::write(&path, "bad\n").expect("the temporary directory is writable");
        let run_state = RunState::default();
        run_state.request_stop();
        let log = AccessLog::open(path.to_str().expect("UTF-8"), "h", &run_state);
        std::fs::remove_file(&path).expect("just written");
        assert_eq!(log.map_or(1, Iterator::count), 0, "nothing was read");
    }
}
