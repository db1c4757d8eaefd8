//! Reads the lines of a log file: opening, decompressing, splitting.
//!
//! Memory is bounded by the longest line allowed, and only a broken file ends the reading, never a
//! bad line. This module does not look at what a line says.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::compressed::{Format, MAGIC_BYTES};

/// The longest line that is read, in bytes, without its line ending.
pub const MAX_LINE_BYTES: usize = 1 << 20;

const READ_BYTES: usize = 1 << 16;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Opens a log, plain or gzip (one member or many), told apart by its first bytes; `-` is the
/// standard input.
///
/// # Errors
/// If it cannot be opened or its first bytes cannot be read, or if it is compressed in another way.
/// A truncated or damaged gzip file is an error later, from the reader, at the point of the damage.
pub fn reader(path: &Path) -> io::Result<Box<dyn BufRead + Send>> {
    match path.to_str() {
        Some("-") => decompressed(io::stdin(), path),
        _ => decompressed(File::open(path)?, path),
    }
}

fn decompressed(
    mut input: impl Read + Send + 'static,
    path: &Path,
) -> io::Result<Box<dyn BufRead + Send>> {
    // A pipe may deliver a single byte at first, so the magic is read, not peeked at.
    let mut start = Vec::with_capacity(MAGIC_BYTES);
    input.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut start)?;
    if let Some(format) = Format::of(&start) {
        let remedy = format.remedy(&path.to_string_lossy());
        return Err(io::Error::other(format!("it is compressed with {}: {remedy}", format.name)));
    }
    let gzip = start.starts_with(&GZIP_MAGIC);
    let whole = BufReader::with_capacity(READ_BYTES, Cursor::new(start).chain(input));
    Ok(match gzip {
        true => Box::new(BufReader::with_capacity(READ_BYTES, MultiGzDecoder::new(whole))),
        false => Box::new(whole),
    })
}

/// Why a line could not be read.
#[derive(Debug)]
pub enum ReadError {
    /// The line is longer than `MAX_LINE_BYTES`. It was skipped; the next one follows.
    TooLong,
    /// The input broke in this line (a truncated gzip is `UnexpectedEof`); nothing follows.
    Io(io::Error),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::TooLong => write!(f, "it is longer than {MAX_LINE_BYTES} bytes"),
            ReadError::Io(error) => write!(f, "cannot read further: {error}"),
        }
    }
}

impl Error for ReadError {}

/// The lines of a log with their numbers, counted from 1, without `\n` or `\r\n`. The last line
/// needs no line ending. Memory is bounded by the longest line that is read.
pub struct Lines<R> {
    input: R,
    number: u64,
    broken: bool,
}

impl<R: BufRead> Lines<R> {
    /// The lines of `input` from its current position.
    pub fn new(input: R) -> Self {
        Lines { input, number: 0, broken: false }
    }

    /// The next line, or `None` at the end.
    fn read(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        let limit = MAX_LINE_BYTES + b"\r\n".len();
        let mut line = Vec::new();
        let mut bounded = self.input.by_ref().take(limit as u64);
        if bounded.read_until(b'\n', &mut line).map_err(ReadError::Io)? == 0 {
            return Ok(None);
        }
        let ended = line.pop_if(|last| *last == b'\n').is_some();
        if ended || line.len() < limit {
            line.pop_if(|last| *last == b'\r');
        } else {
            self.input.skip_until(b'\n').map_err(ReadError::Io)?;
        }
        if line.len() > MAX_LINE_BYTES {
            return Err(ReadError::TooLong);
        }
        Ok(Some(line))
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = (u64, Result<Vec<u8>, ReadError>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.broken {
            return None;
        }
        let line = self.read().transpose()?;
        self.number += 1;
        self.broken = matches!(line, Err(ReadError::Io(_)));
        Some((self.number, line))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn lines(input: &[u8]) -> Vec<(u64, Option<Vec<u8>>)> {
        Lines::new(input).map(|(number, line)| (number, line.ok())).collect()
    }

    #[test]
    fn lines_are_numbered_and_lose_their_ends() {
        let text = |number, line: &str| (number, Some(line.as_bytes().to_vec()));
        assert_eq!(lines(b""), []);
        assert_eq!(lines(b"\n"), [text(1, "")]);
        assert_eq!(lines(b"a"), [text(1, "a")]);
        assert_eq!(
            lines(b"a\n\nb\r\nc\r"),
            [text(1, "a"), text(2, ""), text(3, "b"), text(4, "c")]
        );
        assert_eq!(lines(b"a\rb\r\r\nc"), [text(1, "a\rb\r"), text(2, "c")]);
    }

    #[test]
    fn a_line_beyond_the_bound_is_skipped_and_the_next_one_read() {
        for (length, fits) in [
            (MAX_LINE_BYTES - 1, true),
            (MAX_LINE_BYTES, true),
            (MAX_LINE_BYTES + 1, false),
            (MAX_LINE_BYTES + 2, false),
            (MAX_LINE_BYTES + 3, false),
            (3 * MAX_LINE_BYTES, false),
        ] {
            for end in ["\n", "\r\n"] {
                let input = format!("first{end}{}{end}last", "x".repeat(length));
                let got = lines(input.as_bytes());
                let numbers: Vec<u64> = got.iter().map(|(number, _)| *number).collect();
                assert_eq!(numbers, [1, 2, 3], "{length}");
                assert_eq!(got[1].1.as_ref().map(Vec::len), fits.then_some(length), "{length}");
                assert_eq!(got[2].1.as_deref(), Some(&b"last"[..]), "{length}");
            }
            let at_the_end = lines("x".repeat(length).as_bytes());
            assert_eq!(at_the_end.len(), 1);
            assert_eq!(at_the_end[0].1.is_some(), fits, "{length} without an end");
        }
    }

    /// A file of this test run, removed when dropped.
    struct TestFile(PathBuf);

    impl TestFile {
        fn new(name: &str, content: &[u8]) -> Self {
            let name = format!("sessionizer-access-log-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::write(&path, content).expect("the temporary directory is writable");
            TestFile(path)
        }

        fn read(&self) -> Vec<(u64, Result<Vec<u8>, ReadError>)> {
            Lines::new(reader(&self.0).expect("the file opens")).collect()
        }
    }

    impl Drop for TestFile {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).expect("memory");
        encoder.finish().expect("memory")
    }

    #[test]
    fn gzip_is_recognised_by_its_magic_and_may_have_many_members() {
        let members = [gzip(b"one\ntw"), gzip(b""), gzip(b"o\nthree")].concat();
        let cases: [(&str, &[u8], &[&str]); 6] = [
            ("plain.gz", b"one\ntwo", &["one", "two"]),
            ("one.log", &gzip(b"one\n"), &["one"]),
            ("many", &members, &["one", "two", "three"]),
            ("empty", b"", &[]),
            ("one-byte", b"\x1f", &["\x1f"]),
            ("empty-gzip", &gzip(b""), &[]),
        ];
        for (name, content, want) in cases {
            let got = TestFile::new(name, content).read();
            let got: Vec<String> = got
                .into_iter()
                .map(|(_, line)| String::from_utf8(line.expect("whole")).expect("text"))
                .collect();
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn a_cut_gzip_ends_with_one_error_at_its_line() {
        let text: String =
            (0..20_000).map(|i| format!("line {i} {}\n", i * 7_919 % 65_521)).collect();
        let whole = gzip(text.as_bytes());
        for keep in [whole.len() / 2, whole.len() - 9, whole.len() - 1] {
            let got = TestFile::new(&format!("cut-{keep}"), &whole[..keep]).read();
            let (last, before) = got.split_last().expect("lines");
            assert!(before.iter().all(|(_, line)| line.is_ok()));
            assert_eq!(last.0, before.len() as u64 + 1);
            let Err(ReadError::Io(error)) = &last.1 else { panic!("{keep}: {last:?}") };
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn what_cannot_be_opened_is_an_error_at_once() {
        assert!(reader(Path::new("/nonexistent/access.log")).is_err());
        assert!(reader(&std::env::temp_dir()).is_err());
        let zstd = TestFile::new("zstd", b"\x28\xb5\x2f\xfd\x04\x00");
        let why = reader(&zstd.0).err().expect("not read").to_string();
        let says =
            format!("it is compressed with zstd: zstd -dc {} | sessionizer", zstd.0.display());
        assert!(why.starts_with(&says), "{why}");
    }
}
