//! The standard `process_*` metrics, from the operating system.

use rustix::process::{Resource, getrlimit};

/// The figures; `None` where the system does not provide one.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct ProcessFigures {
    pub cpu_seconds: Option<f64>,
    pub resident_bytes: Option<u64>,
    pub open_files: Option<u64>,
    pub most_files: Option<u64>,
    pub started_seconds: Option<f64>,
}

/// Reads them.
pub fn read() -> ProcessFigures {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let system = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let page = rustix::param::page_size() as u64;
    let files = std::fs::read_dir("/proc/self/fd").ok();
    ProcessFigures {
        // Do not count the descriptor that reads the directory.
        open_files: files.map(|files| (files.count() as u64).saturating_sub(1)),
        most_files: getrlimit(Resource::Nofile).current,
        ..parse(&stat, &system, ticks, page)
    }
}

fn parse(stat: &str, system: &str, ticks: f64, page: u64) -> ProcessFigures {
    // The name in parentheses may contain blanks. The state, field 3, follows it.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<f64>().ok());
    let boot = system.lines().find_map(|line| line.strip_prefix("btime "));
    let boot = boot.and_then(|text| text.trim().parse::<f64>().ok());
    ProcessFigures {
        cpu_seconds: number(14).zip(number(15)).map(|(user, system)| (user + system) / ticks),
        resident_bytes: number(24).map(|pages| pages as u64 * page),
        started_seconds: number(22).zip(boot).map(|(since, boot)| boot + since / ticks),
        ..ProcessFigures::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_the_kernel_are_read() {
        let stat = "42 (a b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 9 0 6000 1000000 250 0";
        let figures = parse(stat, "cpu 1 2\nbtime 1000\n", 100.0, 4_096);
        assert_eq!(figures.cpu_seconds, Some(2.0));
        assert_eq!(figures.started_seconds, Some(1_060.0));
        assert_eq!(figures.resident_bytes, Some(250 * 4_096));
        assert_eq!(parse("", "", 100.0, 1), ProcessFigures::default());
    }

    #[test]
    fn this_process_has_all_of_them() {
        let figures = read();
        assert!(figures.cpu_seconds.is_some() && figures.resident_bytes > Some(1_000_000));
        assert!(figures.open_files > Some(2) && figures.started_seconds > Some(1.6e9));
    }
}
