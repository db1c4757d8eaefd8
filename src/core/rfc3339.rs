//! Parses points in time as people write them: RFC 3339, and the variants web servers make of it.
//! Written by hand, because every event has one; the tests compare it with chrono.

/// Parses `2023-11-14T22:13:20.123Z` into milliseconds since 1970. It accepts any fraction (cut to
/// milliseconds), any offset (`Z`, `+02:00`, `+0200`, `+02`), and `T` or a space; no zone means
/// UTC. A leap second is the first moment of the next minute.
pub fn parse_rfc3339(text: &[u8]) -> Option<i64> {
    let (head, rest) = text.split_first_chunk::<19>()?;
    let separators = [head[4], head[7], head[13], head[16]] == *b"--::";
    if !separators || !matches!(head[10], b'T' | b't' | b' ') {
        return None;
    }
    // One check at the end covers all fourteen digits: a byte that is not a digit has a bit above
    // the low four, either in itself or after six is added.
    let mut doubt = 0;
    let mut number = |at: usize| {
        let (tens, ones) = (head[at].wrapping_sub(b'0'), head[at + 1].wrapping_sub(b'0'));
        doubt |= (tens | tens.wrapping_add(6)) | (ones | ones.wrapping_add(6));
        u32::from(tens) * 10 + u32::from(ones)
    };
    let year = number(0) * 100 + number(2);
    let (month, day) = (number(5), number(8));
    let (hour, minute, second) = (number(11), number(14), number(17));
    if doubt & 0xf0 != 0 || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = days_since_1970(year, month, day)?;
    let (fraction_ms, zone) = fraction(rest)?;
    // A leap second counts like any other: it is the first of the next minute.
    let seconds = i64::from((hour * 60 + minute) * 60 + second);
    Some((days * 86_400 + seconds) * 1_000 + fraction_ms - zone_ms(zone)?)
}

/// The number of a day since 1970 in the Gregorian calendar, extended to all times; `None` if there
/// is no such day.
pub(super) fn days_since_1970(year: u32, month: u32, day: u32) -> Option<i64> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u32::from(leap),
        _ => return None,
    };
    if day == 0 || day > length {
        return None;
    }
    // Years that begin in March have their leap day at the end and 153 days in five months.
    // Counting starts 400 years before the year 0, so that nothing is negative.
    let (year, month) = if month > 2 { (year + 400, month - 3) } else { (year + 399, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    Some(i64::from(days) - DAYS_TO_1970)
}

/// Days from 1 March of the year -400 to 1970.
const DAYS_TO_1970: i64 = 146_097 + 719_468;

/// Parses `.123456…` into milliseconds, and returns what follows; without a decimal point, the
/// fraction is zero.
fn fraction(rest: &[u8]) -> Option<(i64, &[u8])> {
    let Some((b'.' | b',', digits)) = rest.split_first() else { return Some((0, rest)) };
    let count = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    if count == 0 {
        return None;
    }
    let digit = |at: usize| if at < count { i64::from(digits[at] - b'0') } else { 0 };
    Some((digit(0) * 100 + digit(1) * 10 + digit(2), &digits[count..]))
}

/// The zone's offset from UTC, in milliseconds.
fn zone_ms(zone: &[u8]) -> Option<i64> {
    let (sign, rest) = match zone {
        [] | [b'Z' | b'z'] => return Some(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = match rest.len() {
        2 => (digits_at(rest, 0, 2)?, 0),
        4 => (digits_at(rest, 0, 2)?, digits_at(rest, 2, 2)?),
        5 if rest[2] == b':' => (digits_at(rest, 0, 2)?, digits_at(rest, 3, 2)?),
        _ => return None,
    };
    (hours < 24 && minutes < 60).then(|| sign * i64::from(hours * 60 + minutes) * 60_000)
}

fn digits_at(bytes: &[u8], at: usize, digits: usize) -> Option<u32> {
    bytes[at..at + digits].iter().try_fold(0, |sum, byte| match byte {
        b'0'..=b'9' => Some(sum * 10 + u32::from(byte - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_every_shape_are_read_to_the_millisecond() {
        let second = 1_700_000_000_000;
        let cases = [
            ("2023-11-14T22:13:20.123Z", second + 123),
            ("2023-11-14T22:13:20Z", second),
            ("2023-11-14t22:13:20z", second),
            ("2023-11-14 22:13:20", second),
            ("2023-11-14T22:13:20.1", second + 100),
            ("2023-11-14T22:13:20.123999999999Z", second + 123),
            ("2023-11-15T00:13:20.5+02:00", second + 500),
            ("2023-11-14T16:43:20-0530", second),
            ("2023-11-15 00:13:20+02", second),
            ("1970-01-01T00:00:00Z", 0),
            ("1969-12-31T23:59:59.999Z", -1),
            ("2016-12-31T23:59:60Z", 1_483_228_800_000),
            ("2024-02-29T00:00:00Z", 1_709_164_800_000),
        ];
        for (text, want) in cases {
            assert_eq!(parse_rfc3339(text.as_bytes()), Some(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        let cases = [
            "",
            "2023",
            "2023-11-14",
            "2023-11-14T22:13",
            "2023-11-14T22:13:20.",
            "2023-11-14T24:00:00Z",
            "2023-02-29T00:00:00Z",
            "2023-13-01T00:00:00Z",
            "2023-11-14T22:13:61Z",
            "2023-11-14T22:13:20ZZ",
            "2023-11-14T22:13:20+25:00",
            "2023-11-14T22:13:20+24:00",
            "2023-11-14T22:13:20-02:60",
            "2023-11-14T22:13:20+1:00",
            "2023-11-14_22:13:20Z",
            "+023-11-14T22:13:20Z",
            "2023-11-14T22:13:20 UTC",
            "1700000000000",
            "２０２３-11-14T22:13:20Z",
        ];
        for text in cases {
            assert_eq!(parse_rfc3339(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_byte_that_is_no_digit_is_refused_wherever_a_digit_must_be() {
        let time = *b"2023-11-14T22:13:20Z";
        for byte in (0..=u8::MAX).filter(|byte| !byte.is_ascii_digit()) {
            for at in [0, 2, 5, 8, 11, 14, 17] {
                for wrong in [at..at + 1, at + 1..at + 2, at..at + 2] {
                    let mut text = time;
                    text[wrong.clone()].fill(byte);
                    assert_eq!(parse_rfc3339(&text), None, "{byte} at {wrong:?}");
                }
            }
        }
    }

    #[test]
    fn every_day_of_the_calendar_has_its_number_and_no_other_day_has_one() {
        for year in 0..=9_999 {
            for month in 0..=13 {
                for day in 0..=32 {
                    let want = chrono::NaiveDate::from_ymd_opt(year as i32, month, day)
                        .map(|date| date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp());
                    let got = days_since_1970(year, month, day).map(|days| days * 86_400);
                    assert_eq!(got, want, "{year}-{month}-{day}");
                }
            }
        }
    }
}
