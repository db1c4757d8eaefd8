//! What the kernel knows about processes: CPU time and memory, from `/proc`.

use std::fs;

/// `/proc` counts in hundredths of a second on every architecture.
const TICKS_PER_S: f64 = 100.0;

/// The fields of `/proc/PID/stat` that are used here.
#[derive(Debug, PartialEq)]
struct Stat {
    parent: u32,
    /// User and system time of all threads.
    own_s: f64,
    /// The same for children that have been waited for.
    children_s: f64,
}

fn read_stat(text: &str) -> Option<Stat> {
    // The name of the program comes before, in parentheses, and may itself hold some.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_whitespace().collect();
    let seconds = |at: usize| Some(fields.get(at)?.parse::<f64>().ok()? / TICKS_PER_S);
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        own_s: seconds(11)? + seconds(12)?,
        children_s: seconds(13)? + seconds(14)?,
    })
}

fn stat(pid: u32) -> Option<Stat> {
    read_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The CPU time of a process so far, in all its threads; 0 if there is no such process.
pub fn cpu_seconds(pid: u32) -> f64 {
    stat(pid).map_or(0.0, |stat| stat.own_s)
}

/// The CPU time of the threads of a process that have this name; `None` if it has none.
pub fn thread_cpu_seconds(pid: u32, name: &str) -> Option<f64> {
    let named = format!("({name}) ");
    let mut sum = None;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        // A thread may end after it was listed.
        let text = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        if let Some(stat) = read_stat(&text).filter(|_| text.contains(&named)) {
            *sum.get_or_insert(0.0) += stat.own_s;
        }
    }
    sum
}

/// The CPU time of a server that works in child processes: its own, and that of its children,
/// including those that have ended.
pub fn cpu_seconds_with_children(pid: u32) -> f64 {
    let mut sum = stat(pid).map_or(0.0, |stat| stat.own_s + stat.children_s);
    let Ok(all) = fs::read_dir("/proc") else { return sum };
    for other in all.flatten() {
        let Some(other) = other.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end after it was listed.
        if let Some(stat) = stat(other).filter(|stat| stat.parent == pid) {
            sum += stat.own_s;
        }
    }
    sum
}

/// A line of `/proc/PID/status` in bytes, such as `VmHWM` or `VmRSS`.
pub fn memory_bytes(pid: u32, name: &str) -> Option<u64> {
    read_memory(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, name)
}

fn read_memory(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// The number of open file descriptors of a process; 0 if there is no such process.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |files| files.count())
}

/// Cores, memory, processor, kernel and load, for the head of a table.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let memory = read_memory(&read("/proc/meminfo"), "MemTotal").unwrap_or(0) as f64;
    let model = after(&read("/proc/cpuinfo"), "model name");
    let load = read("/proc/loadavg");
    format!(
        "{cores} cores, {:.0} GiB, {}, {} {}, load before {}",
        memory / f64::from(1 << 30),
        model.unwrap_or_else(|| "CPU unknown".to_owned()),
        read("/proc/sys/kernel/ostype").trim(),
        read("/proc/sys/kernel/osrelease").trim(),
        load.split_whitespace().next().unwrap_or("unknown"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_whatever_the_program_is_called() {
        let text = "4711 (a) b (c)) S 12 4711 4711 0 -1 4194304 100 0 0 0 150 50 7 3 20 0 1 0 99";
        let want = Stat { parent: 12, own_s: 2.0, children_s: 0.1 };
        assert_eq!(read_stat(text), Some(want));
        assert_eq!(read_stat("4711 (a"), None);
    }

    #[test]
    fn memory_is_read_by_its_whole_name() {
        let status = "VmHWMx:\t1 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\n";
        assert_eq!(read_memory(status, "VmHWM"), Some(2 << 20));
        assert_eq!(read_memory(status, "VmSwap"), None);
    }

    #[test]
    fn this_process_uses_memory_and_time() {
        let me = std::process::id();
        assert!(memory_bytes(me, "VmHWM").expect("Linux has /proc") > 1 << 20);
        assert!(open_files(me) >= 3, "standard input, output and error");
        let this = std::thread::current();
        let name = this.name().expect("tests run in threads that are named after them");
        // The kernel keeps fifteen characters of a name, and counts time in hundredths of a second.
        let of_this_thread = || thread_cpu_seconds(me, &name[..15]);
        let began = std::time::Instant::now();
        while of_this_thread().is_none_or(|seconds| seconds == 0.0) {
            assert!(began.elapsed().as_secs() < 60, "no CPU time is counted");
        }
        let alone = cpu_seconds(me);
        assert!(alone > 0.0);
        assert!(cpu_seconds_with_children(me) >= alone);
        assert_eq!(thread_cpu_seconds(me, "none"), None);
    }
}
