//! How values are written: numbers, durations, yes and no; and the files that settings name.

use std::fs::File;
use std::io::{Error, Read, Result as IoResult};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use crate::ui::text;

/// The longest file that a setting may name.
const LONGEST_FILE: u64 = 1 << 20;

/// Reads a short file that a setting names. A longer one was named by mistake, and a device may have no
/// end at all.
pub fn read_file(path: impl AsRef<Path>) -> IoResult<Vec<u8>> {
    let bytes = read_beginning(path, LONGEST_FILE + 1)?;
    match bytes.len() as u64 > LONGEST_FILE {
        true => Err(Error::other("it has more than 1 MiB: is it the right file?")),
        false => Ok(bytes),
    }
}

/// How long a setting that is a pipe may take.
const PIPE_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads at most this many bytes of a file. A pipe, such as `<(...)` in a shell, must have been
/// written to its end within a few seconds.
pub fn read_beginning(path: impl AsRef<Path>, most: u64) -> IoResult<Vec<u8>> {
    let read = move |path: &Path| {
        let mut bytes = Vec::new();
        File::open(path)?.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let path = path.as_ref();
    if !is_pipe(path) {
        return read(path);
    }
    // Opening a pipe waits until somebody writes into it. The thread goes with the process, which
    // ends because of this error.
    let (sender, receiver) = channel();
    let path = path.to_owned();
    thread::spawn(move || sender.send(read(&path)));
    receiver.recv_timeout(PIPE_TIMEOUT).unwrap_or_else(|_| {
        let waited = text::setting(PIPE_TIMEOUT.as_millis() as u64);
        Err(Error::other(format!("it is a pipe that nobody has written to its end for {waited}")))
    })
}

/// Whether a path leads to a named pipe.
pub fn is_pipe(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo())
}

/// A whole number within bounds.
pub fn whole(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = text.trim().parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("is {text:?}: it must be a whole number from {least} to {most}"))
}

/// A number within bounds.
pub fn number(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number = text.trim().parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("is {text:?}: it must be a number from {least} to {most}"))
}

/// A duration as people write it, in milliseconds, within bounds.
pub fn duration_ms(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let parsed = humantime::parse_duration(text.trim()).ok();
    // Of units in upper case it knows only M, for months, and no one means those.
    let duration = parsed
        .filter(|_| !text.contains('M'))
        .ok_or_else(|| format!("is {text:?}: it must be a duration like 300s, 5m or 250ms"))?;
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if (least..=most).contains(&ms) && duration.subsec_nanos().is_multiple_of(1_000_000) {
        return Ok(ms);
    }
    let show = |ms| text::setting(ms);
    Err(format!(
        "is {text:?}: it must be from {} to {}, in whole milliseconds",
        show(least),
        show(most)
    ))
}

/// The units of a size, and how many bytes each is.
const UNITS: [(&str, u64); 6] = [
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
];

/// A size as people write it, in bytes, within bounds in MiB.
pub fn size(text: &str, least_mib: u64, most_mib: u64) -> Result<u64, String> {
    let trimmed = text.trim().to_ascii_lowercase();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let unit = UNITS.into_iter().find(|(name, _)| *name == unit.trim_start());
    let bytes = unit.and_then(|(_, bytes)| number.parse::<u64>().ok()?.checked_mul(bytes));
    let bytes = bytes.ok_or_else(|| {
        format!("is {text:?}: it must be a size with its unit, like 256MiB, 1GiB or 500MB")
    })?;
    if (least_mib << 20..=most_mib << 20).contains(&bytes) {
        return Ok(bytes);
    }
    let show = |mib: u64| {
        if mib.is_multiple_of(1_024) { format!("{}GiB", mib / 1_024) } else { format!("{mib}MiB") }
    };
    Err(format!("is {text:?}: it must be from {} to {}", show(least_mib), show(most_mib)))
}

/// The value of a variable that stands for a flag without a value.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(format!("is {text:?}: it must be true or false (or yes, no, on, off, 1, 0)")),
    }
}

/// The parts of a list that was written with commas. A part without a text is a slip: something is
/// missing there.
pub fn list(parts: &[String]) -> Result<Vec<&str>, String> {
    let parts: Vec<&str> = parts.iter().map(|part| part.trim()).collect();
    match parts.contains(&"") {
        true => Err("has a comma with nothing before or after it".to_owned()),
        false => Ok(parts),
    }
}

/// Checks a name that can be shown and sent: at most `most` bytes, and without control characters.
pub fn name(text: &str, most: usize) -> Result<String, String> {
    if text.len() > most {
        return Err(format!("is {} bytes long: at most {most} are possible", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err("holds a control character, for example a line break".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_for_yes_and_no_are_a_boolean() {
        for yes in ["true", "YES", "On", "1", " yes "] {
            assert_eq!(boolean(yes), Ok(true), "{yes}");
        }
        for no in ["false", "NO", "off", "0"] {
            assert_eq!(boolean(no), Ok(false), "{no}");
        }
        for neither in ["never", "2", "y", "n", "disabled", ""] {
            assert!(boolean(neither).expect_err(neither).contains("true or false"), "{neither}");
        }
    }

    #[test]
    fn a_duration_has_a_unit_and_bounds() {
        assert_eq!(duration_ms(" 1m 30s ", 0, 100_000), Ok(90_000));
        for bad in ["-5m", "5", "soon", "", "1ns", "2m"] {
            assert!(duration_ms(bad, 1, 100_000).expect_err(bad).contains("it must be"), "{bad}");
        }
    }

    #[test]
    fn a_size_has_a_unit_and_bounds() {
        for (text, want) in [
            ("256MiB", 256 << 20),
            (" 1 GiB ", 1 << 30),
            ("500MB", 500_000_000),
            ("16384kib", 16 << 20),
        ] {
            assert_eq!(size(text, 16, 1_024), Ok(want), "{text}");
        }
        for bad in ["", "256", "MiB", "1.5GiB", "-1GiB", "256M", "1 GiB more", "99999999999999GB"] {
            assert!(size(bad, 16, 1_024).expect_err(bad).contains("with its unit"), "{bad}");
        }
        for bad in ["15MiB", "0kB", "2GiB"] {
            let why = size(bad, 16, 1_024).expect_err(bad);
            assert!(why.ends_with("it must be from 16MiB to 1GiB"), "{why}");
        }
    }

    #[test]
    fn no_part_of_a_list_is_empty() {
        let read = |parts: &[&str]| {
            let parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
            list(&parts).map(|parts| parts.join("|"))
        };
        assert_eq!(read(&[]), Ok(String::new()));
        assert_eq!(read(&["a", " b "]), Ok("a|b".to_owned()));
        for slip in [&["a", "", "b"][..], &["", "a"], &["a", " "], &[""]] {
            assert!(read(slip).expect_err("a slip").contains("a comma with nothing"), "{slip:?}");
        }
    }

    #[test]
    fn a_name_has_a_length_and_no_control_character() {
        assert_eq!(name("web é", 63), Ok("web é".to_owned()));
        assert!(name(&"x".repeat(64), 63).expect_err("long").contains("64 bytes"));
        assert!(name("a\nb", 63).expect_err("a line break").contains("control"));
    }

    #[test]
    fn fuzz_values() {
        let seeds: [&[u8]; 5] = [b"1d 5m", b"256MiB", b"-1.5e3", b"300s", b"yes"];
        let pieces: [&[u8]; 8] = [
            b"99999999999999999999",
            b"y",
            b"ms",
            b".",
            b"e400",
            b"NaN",
            b" ",
            "\u{b5}s".as_bytes(),
        ];
        crate::shared::mutate::fuzz(&seeds, &pieces, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            if let Ok(ms) = duration_ms(&text, 1, 86_400_000) {
                assert!((1..=86_400_000).contains(&ms), "{text}");
            }
            if let Ok(bytes) = size(&text, 1, 1_024) {
                assert!((1 << 20..=1 << 30).contains(&bytes), "{text}");
            }
            if let Ok(number) = number(&text, -1.0, 1.0) {
                assert!((-1.0..=1.0).contains(&number), "{text}");
            }
            let _ = (boolean(&text), whole(&text, 0, u64::MAX));
        });
    }
}
