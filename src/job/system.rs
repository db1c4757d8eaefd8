//! What the operating system has given this process: which signals are ignored, how many files it
//! may open and how long they may be, how many threads it may start, and whether it may leave core
//! dumps.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::thread::{Builder, scope};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sessionizer_core::fault::{Fault, Message};
use signal_hook::consts::SIGXFSZ;

use crate::config::Config;

/// What a run needs in addition to its workers: the log, sockets to brokers, threads of the
/// clients.
const FILES_AT_LEAST: u64 = 64;
/// A worker has a consumer, with sockets to the brokers; a connection to Postgres has a runtime.
const FILES_A_WORKER: u64 = 16;
const FILES_A_CONNECTION: u64 = 8;
/// For each worker and each other process.
const FILES_A_PEER: u64 = 4;

/// A rough estimate of how many files the job opens: more than it needs with three brokers.
fn files_needed(config: &Config) -> u64 {
    let (workers, peers) = (config.workers as u64, config.processes as u64 - 1);
    // In a cluster, each process opens its share of the connections.
    let connections = u64::from(config.writers).div_ceil(config.processes as u64);
    FILES_AT_LEAST
        + FILES_A_WORKER * workers
        + FILES_A_CONNECTION * connections
        + FILES_A_PEER * peers
}

/// Raises the limit on open files if possible, and refuses to start if it is too low: code that
/// hits the limit later cannot report the cause.
pub fn check_open_files(config: &Config) -> Result<(), Fault> {
    let needed = files_needed(config);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if maximum.is_none_or(|maximum| maximum >= needed) {
        let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum });
        if raised.is_ok() {
            return Ok(());
        }
    }
    let limit = maximum.or(current).unwrap_or(needed);
    let problem = format!("this process may open {limit} files, and needs {needed}");
    let remedy = format!("raise the limit (ulimit -n {needed}; LimitNOFILE= in a systemd unit)");
    Err(Fault::config(Message::new(problem).remedy(": ", remedy)))
}

/// The threads that a run starts beside its workers, with one broker: the clients that look for
/// partitions and lag, and what watches. A little less than was counted (16 more with one worker, 33
/// with four, 57 with eight), so that nothing is refused that would work.
const THREADS_AT_LEAST: usize = 8;
/// A worker has a consumer and its threads, and half a connection.
const THREADS_A_WORKER: usize = 5;
const THREADS_A_PEER: usize = 2;

/// Refuses to start if there is no room for the threads that are started later: failing then would
/// end the program without a reason. It tries, because the limit may come from `ulimit -u`, a systemd
/// unit or a container.
pub fn check_threads(config: &Config) -> Result<(), Fault> {
    let needed = THREADS_AT_LEAST
        + THREADS_A_WORKER * config.workers
        + THREADS_A_PEER * (config.processes - 1);
    let gate = Mutex::new(());
    let started = scope(|scope| {
        let _closed = gate.lock();
        let waits = || drop(gate.lock());
        let start =
            |_: &usize| Builder::new().stack_size(16 << 10).spawn_scoped(scope, waits).is_ok();
        (0..needed).take_while(start).count()
    });
    if started == needed {
        return Ok(());
    }
    let problem =
        format!("this process may start only {started} more threads, and needs at least {needed}");
    let remedy = "raise the limit (ulimit -u; TasksMax= in a systemd unit; --pids-limit of a \
                  container), or use fewer workers (-w)";
    Err(Fault::config(Message::new(problem).remedy(": ", remedy)))
}

/// Prevents core dumps, because they would hold the passwords. A limit of one byte, unlike zero,
/// also keeps the kernel from passing a dump to a program (core(5)). Whoever wants one raises the
/// limit of the running process: `prlimit --core=unlimited --pid PID`.
pub fn prevent_core_dumps() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Core);
    let wanted = Rlimit { current: Some(maximum.unwrap_or(1).min(1)), maximum };
    if let Err(why) = setrlimit(Resource::Core, wanted) {
        log::debug!("core dumps cannot be prevented: {why}");
    }
}

/// Lets a write beyond the limit on the size of files (`ulimit -f`, `LimitFSIZE=`) fail like any
/// other that fails. Otherwise SIGXFSZ would end the process without a word, even if only its log
/// has become too long.
pub fn outlive_file_size_limit() {
    // Nobody asks whether it has come: the write returns an error.
    let come = Arc::new(AtomicBool::new(false));
    if let Err(why) = signal_hook::flag::register(SIGXFSZ, come) {
        log::debug!("SIGXFSZ cannot be handled: {why}");
    }
}

/// Whether SIGHUP was already ignored when the program started, as under nohup. It then stays
/// ignored.
pub fn ignores_hangup() -> bool {
    // Without this file, there is no way to tell.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored(&status) & 1 == 1
}

/// The ignored signals, one bit each, beginning with SIGHUP.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_of_ignored_signals_is_read() {
        let status = "SigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        assert_eq!(ignored(status), 0x1001);
        assert_eq!(ignored("Name: x\n"), 0);
    }
}
