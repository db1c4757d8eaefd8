//! The checks: the audit after each round, and the table at the end.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::game::Game;
use crate::failure::{Result, While, fail};
use crate::process::{Process, last_lines};
use crate::screen::say;

/// The audit reads the whole topic.
const AUDIT_PATIENCE: Duration = Duration::from_secs(600);
const BROKEN: &str = "a broken invariant";

/// Compares the table with the batch answer, as far as it is committed. It continues from the audit
/// before.
pub fn audit(game: &Game) -> Result<()> {
    audit_with(game, &[])
}

fn audit_with(game: &Game, args: &[&str]) -> Result<()> {
    let mut command = game.command();
    command.arg("audit").args(args);
    let log = game.servers.file("audit.log");
    let mut audit = Process::start("the audit", command, &log)?;
    match audit.wait(AUDIT_PATIENCE)?.status {
        0 => Ok(()),
        status => fail(format!("the audit found something and ended with {status}")),
    }
}

/// Stops the producer, lets the job read to the end and close everything, and runs the audit.
pub fn settle(game: &mut Game) -> Result<()> {
    let mut producer = game.producer.take().expect("it runs until here");
    producer.signal(Signal::TERM);
    producer.finish(Duration::from_secs(60))?;
    let settings = ["--gap", "3s", "--out-of-orderness", "1s", "--until-end"];
    let settings = settings.map(str::to_owned);
    game.set_workers(2);
    let mut job = game.start_processes(game.processes_most, &settings)?;
    job.ended_by_itself(120, &[0]).during(format!("the last run, {}", job.shape))?;
    for log in game.logs() {
        if contains(&log, BROKEN).during(log.display())? {
            return fail(format!("an instance found an invariant broken: see {}", log.display()));
        }
    }
    audit(game).during("at the end")?;
    audit_with(game, &["--full"]).during("at the end, everything again")?;
    say(last_lines(&game.servers.file("audit.log"), 100));
    Ok(())
}

/// Whether a line of a file, which may be large, contains this text.
fn contains(path: &Path, text: &str) -> std::io::Result<bool> {
    let mut file = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    while file.read_until(b'\n', &mut line)? > 0 {
        if line.windows(text.len()).any(|at| at == text.as_bytes()) {
            return Ok(true);
        }
        line.clear();
    }
    Ok(false)
}

/// Reports what was played, and that all is well.
pub fn tell(game: &Game) {
    for (card, times) in &game.tally {
        say(format!("{times:>6} x {card}"));
    }
    let seconds = game.began.elapsed().as_secs();
    say(format!("{seconds} s, seed {}: all is well", game.seed));
}

/// The last words of the newest starts and of the audit.
pub fn show_logs(game: &Game) {
    let newest = game.processes_most + 1;
    let logs = game.logs();
    let newest = logs[logs.len().saturating_sub(newest)..].iter();
    for log in newest.chain([&game.servers.file("audit.log")]) {
        say(format!("---- {}", log.display()));
        say(last_lines(log, 20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_invariant_is_found_in_a_long_log() {
        let path = std::env::temp_dir().join(format!("sessionizer-verdict-{}", std::process::id()));
        let long = "a line of a log\n".repeat(50_000);
        std::fs::write(&path, &long).expect("a file");
        assert!(!contains(&path, BROKEN).expect("read"));
        std::fs::write(&path, long + "ERROR a broken invariant: this is a bug\n").expect("a file");
        assert!(contains(&path, BROKEN).expect("read"));
        std::fs::remove_file(&path).expect("a file");
    }
}
