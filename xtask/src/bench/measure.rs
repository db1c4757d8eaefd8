//! Figures: medians, ratios of the same turn, units, and how numbers are written. No I/O.

/// The unit of a figure, and how many decimals are meaningful.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unit {
    pub name: &'static str,
    pub decimals: usize,
}

const fn unit(name: &'static str, decimals: usize) -> Unit {
    Unit { name, decimals }
}

pub const EVENTS_PER_S: Unit = unit("events/s", 0);
pub const ROWS_PER_S: Unit = unit("rows/s", 0);
pub const MB_PER_S: Unit = unit("MB/s", 1);
pub const BYTES_PER_S: Unit = unit("bytes/s", 0);
pub const PER_S: Unit = unit("/s", 0);
/// Elapsed time.
pub const SECONDS: Unit = unit("s", 3);
/// CPU time.
pub const CPU_SECONDS: Unit = unit("s", 2);
pub const MILLIS: Unit = unit("ms", 0);
pub const MICROS: Unit = unit("µs", 3);
pub const MB: Unit = unit("MB", 0);
pub const TENTHS_OF_MB: Unit = unit("MB", 1);
pub const BYTES: Unit = unit("bytes", 1);
pub const TIMES: Unit = unit("×", 3);
pub const PERCENT: Unit = unit("%", 2);
pub const COUNT: Unit = unit("", 0);

impl Unit {
    /// A number for people, with separators from 10,000 on.
    pub fn show(self, value: f64) -> String {
        let text = format!("{value:.*}", self.decimals);
        match text.parse::<u64>() {
            Ok(whole) if whole >= 10_000 => thousands(whole),
            _ => text,
        }
    }

    /// A number rounded as it is shown.
    pub fn round(self, value: f64) -> f64 {
        let scale = 10f64.powi(self.decimals as i32);
        (value * scale).round() / scale
    }
}

/// `1,234,567`
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The minimum, the median and the maximum. For an even number of values the median is the lower of
/// the two in the middle, so that it is the value of an actual run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

pub fn summary(values: &[f64]) -> Option<Summary> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (least, most) = (*sorted.first()?, *sorted.last()?);
    Some(Summary { least, median: sorted[(sorted.len() - 1) / 2], most })
}

/// The median; 0 if nothing was measured.
pub fn median(values: &[f64]) -> f64 {
    summary(values).map_or(0.0, |summary| summary.median)
}

/// The quotients of two lists, turn by turn.
pub fn ratios(these: &[f64], those: &[f64]) -> Vec<f64> {
    assert_eq!(these.len(), those.len(), "a ratio is that of two runs of the same turn");
    these.iter().zip(those).map(|(this, that)| this / that).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_a_run_that_there_was() {
        let of = |values: &[f64]| summary(values).map(|s| (s.least, s.median, s.most));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[3.0]), Some((3.0, 3.0, 3.0)));
        assert_eq!(of(&[10.0, 9.0]), Some((9.0, 9.0, 10.0)));
        assert_eq!(of(&[10.0, 9.0, 100.0]), Some((9.0, 10.0, 100.0)));
        assert_eq!(of(&[4.0, 1.0, 3.0, 2.0]), Some((1.0, 2.0, 4.0)));
        assert_eq!(median(&[5.0, 1.0, 4.0, 2.0, 3.0]), 3.0);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn a_ratio_is_one_of_each_turn() {
        // The machine was half as fast in the second turn, which does not change the quotients.
        assert_eq!(ratios(&[30.0, 15.0], &[20.0, 10.0]), [1.5, 1.5]);
    }

    #[test]
    #[should_panic(expected = "the same turn")]
    fn a_ratio_of_other_turns_is_refused() {
        ratios(&[1.0, 2.0], &[1.0]);
    }

    #[test]
    fn numbers_are_written_as_exactly_as_they_are_worth() {
        for (unit, value, want) in [
            (EVENTS_PER_S, 1_812_345.6, "1,812,346"),
            (EVENTS_PER_S, 9_999.0, "9999"),
            (COUNT, 10_000.0, "10,000"),
            (MICROS, 0.6567, "0.657"),
            (SECONDS, 12_345.0, "12345.000"),
            (TIMES, 10.0, "10.000"),
            (MB, 124.5, "124"),
        ] {
            assert_eq!(unit.show(value), want, "{value} {}", unit.name);
        }
        assert_eq!(MICROS.round(0.6567), 0.657);
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(123_456), "123,456");
        assert_eq!(thousands(1_000_000), "1,000,000");
    }
}
