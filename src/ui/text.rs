//! How numbers are written for people: counts, plurals and durations, the same everywhere.

use std::time::Duration;

use indicatif::HumanCount;

/// A count with thousands separators: `1,234,567`.
pub fn count(n: impl TryInto<u64>) -> String {
    HumanCount(n.try_into().unwrap_or(0)).to_string()
}

/// A count and what is counted: `1 line`, `1,234 lines`. The plural adds an `s`.
pub fn plural(n: impl TryInto<u64>, what: &str) -> String {
    let n = n.try_into().unwrap_or(0);
    let s = if n == 1 { "" } else { "s" };
    format!("{} {what}{s}", count(n))
}

/// A measured time, in its two largest units: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let two = |large: u64, unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{} {unit}", count(large)),
        small => format!("{} {unit} {small} {small_unit}", count(large)),
    };
    match seconds {
        0..10 => {
            let tenths = (time.as_secs_f64() * 10.0).round() / 10.0;
            if tenths.fract() == 0.0 { format!("{tenths:.0} s") } else { format!("{tenths:.1} s") }
        }
        10..60 => format!("{seconds} s"),
        60..3_600 => two(seconds / 60, "min", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// A duration as it is typed for a flag: `250ms`, `90s`, `5m`, `1h`, `30d`.
pub fn setting(millis: impl TryInto<u64>) -> String {
    let millis = millis.try_into().unwrap_or(0);
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let unit = units.into_iter().find(|(unit, _)| millis > 0 && millis % unit == 0);
    match unit {
        Some((unit, name)) => format!("{}{name}", millis / unit),
        None => format!("{millis}ms"),
    }
}

/// A measured number of bytes: `900 B`, `12 KiB`, `1.5 GiB`.
pub fn bytes(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let Some((unit, name)) = units.into_iter().find(|(unit, _)| bytes >= *unit) else {
        return format!("{bytes} B");
    };
    let tenths = (bytes as f64 / unit as f64 * 10.0).round() / 10.0;
    match tenths {
        ..10.0 if tenths.fract() > 0.0 => format!("{tenths:.1} {name}"),
        _ => format!("{tenths:.0} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_in_their_largest_unit() {
        let shown = [0, 1_023, 1_024, 12_000, 64 << 20, 3 << 29].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1 KiB", "12 KiB", "64 MiB", "1.5 GiB"]);
    }

    #[test]
    fn counts_and_plurals_read_well() {
        assert_eq!(count(1_234_567u64), "1,234,567");
        assert_eq!(count(-1i64), "0");
        let lines = [0u64, 1, 2, 1_000].map(|n| plural(n, "line"));
        assert_eq!(lines, ["0 lines", "1 line", "2 lines", "1,000 lines"]);
    }

    #[test]
    fn a_measured_time_has_two_units_at_most() {
        for (millis, want) in [
            (0, "0 s"),
            (40, "0 s"),
            (440, "0.4 s"),
            (1_000, "1 s"),
            (9_940, "9.9 s"),
            (9_990, "10 s"),
            (12_900, "12 s"),
            (60_000, "1 min"),
            (200_000, "3 min 20 s"),
            (7_200_000, "2 h"),
            (7_500_999, "2 h 5 min"),
            (93_600_000, "1 d 2 h"),
            (1_234 * 86_400_000, "1,234 d"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), want, "{millis} ms");
        }
    }

    #[test]
    fn a_setting_is_written_as_it_is_typed() {
        for (millis, want) in [
            (0u64, "0ms"),
            (250, "250ms"),
            (1_500, "1500ms"),
            (90_000, "90s"),
            (300_000, "5m"),
            (3_600_000, "1h"),
            (30 * 86_400_000, "30d"),
        ] {
            assert_eq!(setting(millis), want);
        }
    }
}
