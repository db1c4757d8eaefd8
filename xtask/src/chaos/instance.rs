//! An instance of the job: one process, or several that are one cluster.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::failure::{Result, While, fail};
use crate::process::Process;

/// How often to check whether a process has ended, and what it has logged.
pub const GLANCE: Duration = Duration::from_millis(50);
/// A start may have to wait until a server is back.
const START_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
pub struct Instance {
    /// By index; those that were killed are removed.
    pub members: BTreeMap<usize, Member>,
    /// Processes and workers, as options.
    pub shape: String,
    /// How many processes it had when it was started.
    pub processes: usize,
    /// The hostfile of a cluster.
    pub hosts: PathBuf,
}

pub struct Member {
    pub process: Process,
    log: Log,
}

impl Member {
    pub fn new(process: Process) -> Member {
        let log = Log::default();
        Member { process, log }
    }
}

/// A log that is read incrementally, so that a check costs only as much as was added.
#[derive(Default)]
struct Log {
    read_bytes: u64,
    /// It has logged that its sessions are loaded.
    runs: bool,
    /// It was the first start of the job.
    first: bool,
}

impl Log {
    fn read_on(&mut self, path: &Path) -> std::io::Result<()> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(self.read_bytes))?;
        let mut lines = BufReader::new(file);
        let mut line = Vec::new();
        // The last line may not be whole yet.
        while lines.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
            self.read_bytes += line.len() as u64;
            let text = String::from_utf8_lossy(&line);
            self.runs |= text.contains("reading begins");
            self.first |= text.contains("first start of the job");
            line.clear();
        }
        Ok(())
    }
}

impl Instance {
    pub fn is_gone(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether any process has ended.
    pub fn has_ended(&mut self) -> Result<bool> {
        for member in self.members.values_mut() {
            if member.process.has_ended()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether every process has logged that its sessions are loaded.
    fn runs(&mut self) -> Result<bool> {
        self.read_logs()?;
        Ok(self.members.values().all(|member| member.log.runs))
    }

    /// Whether any process has logged that this is the first start of the job.
    pub fn was_first(&mut self) -> Result<bool> {
        self.read_logs()?;
        Ok(self.members.values().any(|member| member.log.first))
    }

    fn read_logs(&mut self) -> Result<()> {
        for Member { process, log } in self.members.values_mut() {
            log.read_on(process.log()).during(process.log().display())?;
        }
        Ok(())
    }

    /// Waits until it runs. A start gives up when a server goes away in the middle of it; a running
    /// job waits.
    pub fn started(&mut self) -> Result<()> {
        let until = Instant::now() + START_PATIENCE;
        while !self.runs()? {
            if Instant::now() > until {
                let seconds = START_PATIENCE.as_secs();
                return fail(format!("after {seconds} seconds the job does not run"));
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }

    pub fn signal(&self, signal: Signal) {
        self.members.values().for_each(|member| member.process.signal(signal));
    }

    /// Kills all its processes.
    pub fn kill(&mut self) -> Result<()> {
        // All at once, so that none sees another end first.
        self.signal(Signal::KILL);
        self.members.values_mut().try_for_each(|member| member.process.kill())?;
        self.members.clear();
        Ok(())
    }

    /// Kills one process.
    pub fn kill_one(&mut self, index: usize) -> Result<()> {
        let mut member = self.members.remove(&index).expect("one of its processes");
        member.process.kill()
    }

    /// Waits until all processes have ended by themselves, each with one of these statuses. Returns
    /// the statuses.
    pub fn ended_by_itself(&mut self, patience_s: u64, allowed: &[i32]) -> Result<Vec<i32>> {
        let until = Instant::now() + Duration::from_secs(patience_s);
        let mut ends = Vec::new();
        for (index, member) in &mut self.members {
            let left = until.saturating_duration_since(Instant::now());
            let status = member.process.wait(left)?.status;
            if !allowed.contains(&status) {
                return fail(format!("process {index} ended with {status}, not {}", or(allowed)));
            }
            ends.push(status);
        }
        self.members.clear();
        Ok(ends)
    }
}

/// `0 or 143`
pub fn or(statuses: &[i32]) -> String {
    statuses.iter().map(i32::to_string).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_log_that_outgrows_any_pipe_is_read_once() {
        let path = std::env::temp_dir().join(format!("sessionizer-chaos-{}", std::process::id()));
        let mut file = File::create(&path).expect("a file");
        let mut log = Log::default();
        writeln!(file, "first start of the job chaos").expect("written");
        write!(file, "reading beg").expect("written");
        log.read_on(&path).expect("read");
        // Half a line is no line yet.
        assert!(log.first && !log.runs);
        write!(file, "ins\n{}", "another line\n".repeat(100_000)).expect("written");
        log.read_on(&path).expect("read");
        assert!(log.runs);
        assert_eq!(log.read_bytes, file.metadata().expect("a file").len());
        std::fs::remove_file(&path).expect("a file");
    }
}
