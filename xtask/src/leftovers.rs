//! Whatever would outlive this program: the processes it has started, its servers and its
//! directory.
//!
//! However the program ends, even by a signal, none of them remains. Each process leads a process
//! group, so that its children end with it, and so that Ctrl-C in the terminal reaches this program
//! alone.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, test_kill_process_group,
    waitid,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use wait4::{ResUse, Wait4};

use crate::failure::{Result, While};
use crate::screen;

#[derive(Default)]
struct Leftovers {
    /// Process groups to kill at the end.
    groups: Vec<Pid>,
    /// Scripts that are starting or stopping a server. They are waited for at the end, because a
    /// server whose start was interrupted could not be found any more.
    scripts: Vec<Pid>,
    /// The script that is installing or building something. It is asked to end.
    foreground: Option<Pid>,
    directory: Option<PathBuf>,
}

static LEFTOVERS: Mutex<Leftovers> = Mutex::new(Leftovers {
    groups: Vec::new(),
    scripts: Vec::new(),
    foreground: None,
    directory: None,
});

/// How long a script that starts or stops a server may still take at the end.
const SCRIPT_PATIENCE: Duration = Duration::from_secs(20);

fn leftovers() -> MutexGuard<'static, Leftovers> {
    LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a process as the leader of a group.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    let mut leftovers = leftovers();
    let child = command.stdin(Stdio::null()).process_group(0).spawn()?;
    leftovers.groups.push(Pid::from_child(&child));
    Ok(child)
}

/// How a process has ended and what it has used, if it has ended. Returns it only once.
pub fn reap(child: &mut Child) -> io::Result<Option<ResUse>> {
    // Under the lock: once the process is reaped, its number may be reused.
    let mut leftovers = leftovers();
    let id = Pid::from_child(child);
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    if waitid(WaitId::Pid(id), look)?.is_none() {
        return Ok(None);
    }
    leftovers.groups.retain(|group| *group != id);
    child.wait4().map(Some)
}

/// Sends a signal to a process and its children.
pub fn signal(child: &Child, signal: Signal) {
    let id = Pid::from_child(child);
    if leftovers().groups.contains(&id) {
        let _ = kill_process_group(id, signal);
    }
}

/// Runs a script that starts or stops a server, and returns what it has printed.
pub fn run_script(command: &mut Command) -> io::Result<(ExitStatus, String)> {
    let child = {
        let mut leftovers = leftovers();
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        let child = command.spawn()?;
        leftovers.scripts.push(Pid::from_child(&child));
        child
    };
    let id = Pid::from_child(&child);
    let output = child.wait_with_output();
    leftovers().scripts.retain(|script| *script != id);
    let output = output?;
    Ok((output.status, String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Runs a script that installs or builds something, and returns what it has printed. It may ask for
/// a password, so it stays in the foreground of the terminal.
pub fn run_in_foreground(command: &mut Command) -> io::Result<(ExitStatus, String)> {
    let child = {
        let mut leftovers = leftovers();
        let child = command.stdout(Stdio::piped()).spawn()?;
        leftovers.foreground = Some(Pid::from_child(&child));
        child
    };
    let output = child.wait_with_output();
    leftovers().foreground = None;
    let output = output?;
    Ok((output.status, String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Creates a directory for servers and logs, which is removed when this program ends.
pub fn make_directory(name: &str) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let mut leftovers = leftovers();
    let temporary = std::env::temp_dir();
    let mut number = std::process::id();
    loop {
        let path = temporary.join(format!("sessionizer-{name}.{number}"));
        match std::fs::create_dir(&path) {
            Ok(()) => {
                leftovers.directory = Some(path.clone());
                // PostgreSQL may run as another user, who needs access whatever the umask is.
                let passable = std::fs::Permissions::from_mode(0o711);
                std::fs::set_permissions(&path, passable).during(path.display())?;
                return Ok(path);
            }
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(why) => return Err(why).during(format!("cannot make {}", path.display())),
        }
    }
}

/// Ends the processes, but keeps the servers and the directory for inspection.
pub fn keep_directory() {
    leftovers().directory = None;
}

/// Ends and removes everything.
pub fn clear() {
    clear_locked(&mut leftovers());
}

fn clear_locked(leftovers: &mut Leftovers) {
    for group in std::mem::take(&mut leftovers.groups) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    for script in std::mem::take(&mut leftovers.scripts) {
        let began = Instant::now();
        while test_kill_process_group(script).is_ok() && began.elapsed() < SCRIPT_PATIENCE {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = kill_process_group(script, Signal::KILL);
    }
    if let Some(script) = leftovers.foreground.take() {
        let _ = kill_process(script, Signal::TERM);
    }
    let Some(directory) = leftovers.directory.take() else { return };
    if !sweep(&directory) {
        let directory = directory.display();
        screen::say(format!("warning: `scripts/services sweep {directory}` failed"));
    }
    if let Err(why) = std::fs::remove_dir_all(&directory) {
        screen::say(format!("warning: cannot remove {}: {why}", directory.display()));
    }
}

fn sweep(directory: &Path) -> bool {
    let mut command = Command::new(crate::root().join("scripts/services"));
    command.arg("sweep").arg(directory).stdin(Stdio::null()).stdout(Stdio::null());
    // In a group of its own, so that another Ctrl-C does not cut it short.
    command.process_group(0).status().is_ok_and(|status| status.success())
}

/// From here on SIGINT, SIGTERM and SIGHUP clean up and end this program with 128 plus the number
/// of the signal, as in a shell. A signal that was ignored before stays ignored (`nohup`).
pub fn end_on_signals() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").during("/proc/self/status")?;
    let ignored = ignored_signals(&status);
    let wanted = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|at| ignored & (1 << (at - 1)) == 0);
    let mut signals = Signals::new(wanted).during("cannot handle signals")?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // Held to the end, so that nothing else is started. Further signals are not handled.
            let mut leftovers = leftovers();
            screen::say("interrupted");
            clear_locked(&mut leftovers);
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// The ignored signals as bits, from `/proc/PID/status`.
fn ignored_signals(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_nohup_ignores_is_seen() {
        let status = "Name:\tcat\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000001\n";
        assert_eq!(ignored_signals(status), 1 << (SIGHUP - 1));
        assert_eq!(ignored_signals("Name:\tcat\n"), 0);
    }

    #[test]
    fn what_a_process_has_started_ends_with_it() {
        // A shell that waits for a grandchild, whose number it prints.
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo $!; wait"]).stdout(Stdio::piped());
        let mut child = spawn(&mut command).expect("sh is here");
        let mut line = String::new();
        let mut out = io::BufReader::new(child.stdout.take().expect("piped"));
        io::BufRead::read_line(&mut out, &mut line).expect("a line");
        let grandchild = Path::new("/proc").join(line.trim());
        assert!(grandchild.exists());
        signal(&child, Signal::KILL);
        let patience = Instant::now() + Duration::from_secs(10);
        while reap(&mut child).expect("it can be waited for").is_none() {
            assert!(Instant::now() < patience, "the shell ignores SIGKILL");
        }
        let gone = || match std::fs::read_to_string(grandchild.join("stat")) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        while !gone() {
            assert!(Instant::now() < patience, "the grandchild goes on");
        }
    }
}
