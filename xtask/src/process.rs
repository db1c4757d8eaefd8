//! Child processes: starting, watching and ending them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::failure::{Failure, Result, While, fail};
use crate::{leftovers, proc};

/// How often to check whether a process has ended.
const GLANCE: Duration = Duration::from_millis(5);

/// A child process. It is killed with all its children when this is dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<Ended>,
}

#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// The exit code, or 128 plus the number of the signal.
    pub status: i32,
    /// The CPU time of all its threads, and of the children it has waited for.
    pub cpu_s: f64,
    /// Peak resident memory.
    pub peak_mb: f64,
}

impl Process {
    /// Starts it with a new log for both standard output and standard error.
    pub fn start(name: impl Into<String>, command: Command, log: &Path) -> Result<Process> {
        Self::start_with_output(name, command, log, log)
    }

    /// Starts it with a new log for standard error, and a file for standard output.
    pub fn start_with_output(
        name: impl Into<String>,
        mut command: Command,
        log: &Path,
        output: &Path,
    ) -> Result<Process> {
        let name = name.into();
        let file = File::create(log).during(log.display())?;
        match output == log {
            true => command.stdout(file.try_clone().during(log.display())?),
            false => command.stdout(File::create(output).during(output.display())?),
        };
        command.stderr(file);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = leftovers::spawn(&mut command);
        let child = child.during(format!("{name} cannot be started, {program}"))?;
        Ok(Process { name, child, log: log.to_owned(), ended: None })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Result<Option<Ended>> {
        if self.ended.is_none() {
            let ended = leftovers::reap(&mut self.child).during(&self.name)?;
            self.ended = ended.map(|ended| Ended {
                status: code(ended.status),
                cpu_s: (ended.rusage.utime + ended.rusage.stime).as_secs_f64(),
                peak_mb: ended.rusage.maxrss as f64 / 1e6,
            });
        }
        Ok(self.ended)
    }

    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.ended()?.is_some())
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, patience: Duration) -> Result<Ended> {
        let until = Instant::now() + patience;
        loop {
            if let Some(ended) = self.ended()? {
                return Ok(ended);
            }
            if Instant::now() >= until {
                let (name, pid) = (&self.name, self.pid());
                return fail(format!("{name} ({pid}) has not ended after {patience:?}"));
            }
            thread::sleep(GLANCE);
        }
    }

    /// Waits until it has ended; it is an error unless it ends with 0.
    pub fn finish(&mut self, patience: Duration) -> Result<Ended> {
        let ended = self.wait(patience)?;
        if ended.status == 0 { Ok(ended) } else { Err(self.failed(ended)) }
    }

    /// The error for a process that should not have ended like this.
    pub fn failed(&self, ended: Ended) -> Failure {
        let (name, status, words) = (&self.name, ended.status, last_lines(&self.log, 3));
        Failure(format!("{name} ended with {status}: {words}"))
    }

    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            leftovers::signal(&self.child, signal);
        }
    }

    /// Kills it.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL);
        self.wait(Duration::from_secs(60)).map(|_| ())
    }

    pub fn cpu_seconds(&self) -> f64 {
        proc::cpu_seconds(self.pid())
    }

    /// A line of its status, `VmRSS` or `VmHWM`, in MB.
    pub fn memory_mb(&self, name: &str) -> Result<f64> {
        match proc::memory_bytes(self.pid(), name) {
            Some(bytes) => Ok(bytes as f64 / 1e6),
            None => fail(format!("{} ended: {}", self.name, last_lines(&self.log, 3))),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The status as a shell reports it.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// The last lines of a file of any size.
pub fn last_lines(path: &Path, count: usize) -> String {
    const MOST_BYTES: u64 = 64 << 10;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(MOST_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let name = format!("sessionizer-xtask-test-{}-{log}", std::process::id());
        Process::start("a shell", command, &std::env::temp_dir().join(name)).expect("sh is here")
    }

    #[test]
    fn a_process_ends_with_its_code_and_what_it_has_used() {
        let burn = "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done; echo word >&2; exit 7";
        let mut process = shell(burn, "code");
        let ended = process.wait(Duration::from_secs(60)).expect("it ends");
        assert_eq!(ended.status, 7);
        assert!(ended.cpu_s > 0.001, "{} s", ended.cpu_s);
        assert!(ended.peak_mb > 0.1, "{} MB", ended.peak_mb);
        assert!(process.failed(ended).0.contains("ended with 7: word"));
        std::fs::remove_file(process.log()).expect("a log");
    }

    #[test]
    fn a_killed_process_ends_as_a_shell_has_it() {
        let mut process = shell("sleep 1000", "killed");
        assert!(process.wait(Duration::from_millis(20)).is_err());
        process.signal(Signal::TERM);
        assert_eq!(process.wait(Duration::from_secs(60)).expect("it ends").status, 143);
        std::fs::remove_file(process.log()).expect("a log");
    }

    #[test]
    fn the_end_of_a_large_file_is_found() {
        let path = std::env::temp_dir().join(format!("sessionizer-xtask-{}", std::process::id()));
        let text = "line\n".repeat(100_000) + "last but one\nlast\n";
        std::fs::write(&path, text).expect("a file");
        assert_eq!(last_lines(&path, 2), "last but one\nlast");
        std::fs::remove_file(&path).expect("a file");
        assert_eq!(last_lines(&path, 2), "");
    }
}
