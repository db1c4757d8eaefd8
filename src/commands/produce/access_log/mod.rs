//! Access logs: turns a line of Apache's or nginx's common or combined format into a web event.
//!
//! A line becomes either an event or an error that names the field and the column. Only what an
//! event needs is checked: a garbled request or user agent is taken as it is, a client or a time is
//! not. `input.rs` reads the lines from a file, and `records.rs` makes records of them. The parser
//! does not know which host the log belongs to (the format does not say), nor what Kafka is.

mod compressed;
mod input;
mod records;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::net::Ipv6Addr;

use chrono::{DateTime, Datelike};
pub use input::{Lines, ReadError, reader};
pub use records::AccessLog;

use crate::commands::produce::event::WebEvent;

const USER_AGENT: &str = "user agent";
/// The format of the time: `17/May/2015:10:05:03 +0000`, with an optional fraction.
const TIME_FORMAT: &str = "%d/%b/%Y:%H:%M:%S%.f %z";

/// Why a line is not an event. Displayed as `time at column 17: ...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineError {
    /// The field that could not be read, in words.
    pub field: &'static str,
    /// Where that field begins, in bytes from the start of the line, counted from 1.
    pub column: usize,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at column {}: {}", self.field, self.column, self.problem)
    }
}

impl Error for LineError {}

/// Parses one line (without its line ending) of a log that belongs to `host`.
///
/// `-` and fields that the common format lacks become empty strings. In text that is not UTF-8,
/// invalid bytes are replaced by U+FFFD. Whatever follows the user agent is ignored.
///
/// # Errors
/// If the line is not in the format, or has no client or no time.
pub fn parse_line<'a>(line: &'a [u8], host: &'a str) -> Result<WebEvent<'a>, LineError> {
    let mut parser = LineParser { line: line.trim_ascii_end(), at: 0 };
    let ip = parser.client()?;
    let event_time_ms = parser.time()?;
    let request = parser.quoted("request")?;
    parser.number("status")?;
    parser.number("size")?;
    let (referrer, user_agent) = match parser.rest() {
        [] => ("".into(), "".into()),
        _ => (parser.quoted("referrer")?, parser.quoted(USER_AGENT)?),
    };
    Ok(WebEvent {
        url: requested(request),
        referrer,
        user_agent,
        host: host.into(),
        ip: ip.into(),
        headers: Vec::new(),
        event_time_ms,
    })
}

/// A line and the position of the parser: `at` is the first byte of the next field.
struct LineParser<'a> {
    line: &'a [u8],
    at: usize,
}

impl<'a> LineParser<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.line[self.at..]
    }

    fn error(&self, field: &'static str, problem: impl Into<String>) -> LineError {
        LineError { field, column: self.at + 1, problem: problem.into() }
    }

    /// The text up to the next space, for messages; shortened if it is long.
    fn found(&self) -> String {
        let word = self.rest().split(|&byte| byte == b' ').next().unwrap_or_default();
        shown(word)
    }

    fn skip_spaces(&mut self) {
        let spaces = self.rest().iter().take_while(|&&byte| byte == b' ').count();
        self.at += spaces;
    }

    /// The address or host name in the first column.
    fn client(&mut self) -> Result<&'a str, LineError> {
        if self.line.is_empty() {
            return Err(self.error("client", "the line is empty"));
        }
        let rest = self.rest();
        let word = rest.split(|&byte| byte == b' ').next().unwrap_or_default();
        let Some(client) = std::str::from_utf8(word).ok().filter(|text| is_client(text)) else {
            let problem = format!("{} is neither an address nor a host name", shown(word));
            return Err(self.error("client", problem));
        };
        self.at += word.len();
        Ok(client)
    }

    /// The time in milliseconds since 1970. A user name may contain spaces and brackets, so the
    /// time is the first bracketed text that is one; if there is none, the error is about the first
    /// bracket.
    fn time(&mut self) -> Result<i64, LineError> {
        let mut first_error = None;
        let from = self.at;
        while let Some(space) = self.rest().windows(2).position(|pair| pair == b" [") {
            self.at += space + 1;
            match self.bracketed_time() {
                Ok(millis) => return Ok(millis),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        self.at = from;
        let missing = || self.error("time", "no time in brackets follows, is this an access log?");
        Err(first_error.unwrap_or_else(missing))
    }

    fn bracketed_time(&mut self) -> Result<i64, LineError> {
        let inner = &self.rest()[1..];
        let Some(length) = inner.iter().position(|&byte| byte == b']') else {
            return Err(self.error("time", "the bracket is never closed"));
        };
        let text = &inner[..length];
        let time = std::str::from_utf8(text)
            .ok()
            .and_then(|text| DateTime::parse_from_str(text, TIME_FORMAT).ok())
            .map(|time| time.to_utc())
            .filter(|time| (1..=9999).contains(&time.year()));
        let Some(time) = time else {
            let problem = format!("{} is not a time like 17/May/2015:10:05:03 +0000", shown(text));
            return Err(self.error("time", problem));
        };
        self.at += length + 2;
        self.skip_spaces();
        Ok(time.timestamp_millis())
    }

    /// A quoted field with its escapes undone; `-` is empty.
    ///
    /// A quote ends the field only before a space or at the end of the line: servers that do not
    /// escape have written quotes into requests, and no server writes two fields without a space
    /// between. The closing quote of the user agent may be missing: a line cut short there has
    /// everything that an event needs.
    fn quoted(&mut self, field: &'static str) -> Result<Cow<'a, str>, LineError> {
        let Some(inner) = self.rest().strip_prefix(b"\"") else {
            let problem = match self.rest() {
                [] => "missing, the line ends before it".to_string(),
                _ => format!("a quote should open it, but there is {}", self.found()),
            };
            return Err(self.error(field, problem));
        };
        let length = match closing_quote(inner) {
            Some(length) => length,
            None if field == USER_AGENT => inner.len(),
            None => return Err(self.error(field, "the quote is never closed")),
        };
        self.at = self.line.len().min(self.at + length + 2);
        self.skip_spaces();
        Ok(match &inner[..length] {
            b"-" => "".into(),
            text if text.contains(&b'\\') => {
                Cow::Owned(String::from_utf8_lossy(&unescaped(text)).into_owned())
            }
            text => String::from_utf8_lossy(text),
        })
    }

    /// Skips digits or `-`.
    fn number(&mut self, field: &'static str) -> Result<(), LineError> {
        let word = self.rest().split(|&byte| byte == b' ').next().unwrap_or_default();
        if word.is_empty() {
            return Err(self.error(field, "missing, the line ends before it"));
        }
        if word != b"-" && !word.iter().all(u8::is_ascii_digit) {
            return Err(self.error(field, format!("{} is neither a number nor -", self.found())));
        }
        self.at += word.len();
        self.skip_spaces();
        Ok(())
    }
}

/// Whether this is an IPv4 or IPv6 address (with a zone), or may be a host name. A colon means
/// IPv6: a first column like `example.org:443` is the *virtual host* of another log format, and
/// treating it as the visitor would merge all visitors into one.
fn is_client(text: &str) -> bool {
    if text.contains(':') {
        let address = text.split('%').next().unwrap_or_default();
        return address.parse::<Ipv6Addr>().is_ok();
    }
    text != "-" && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The position of the quote that closes `text`.
fn closing_quote(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'\\' => at += 1,
            b'"' if matches!(text.get(at + 1), None | Some(b' ')) => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

/// Undoes `\"`, `\\`, `\xhh` and C's `\n`, `\r`, `\t`, `\b`, `\v`, `\f`; any other backslash stays.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let (byte, length) = match (first, after) {
            (b'\\', [b'x', high, low, ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, 4),
                _ => (b'\\', 1),
            },
            (b'\\', [b'"', ..]) => (b'"', 2),
            (b'\\', [b'\\', ..]) => (b'\\', 2),
            (b'\\', [b'n', ..]) => (b'\n', 2),
            (b'\\', [b'r', ..]) => (b'\r', 2),
            (b'\\', [b't', ..]) => (b'\t', 2),
            (b'\\', [b'b', ..]) => (0x08, 2),
            (b'\\', [b'v', ..]) => (0x0b, 2),
            (b'\\', [b'f', ..]) => (0x0c, 2),
            (byte, _) => (*byte, 1),
        };
        out.push(byte);
        rest = &rest[length..];
    }
    out
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).map(|value| value as u8)
}

/// The target of a request line, without method and protocol but with any spaces. Text that does
/// not begin with a method is not a request, and is kept whole.
fn requested(request: Cow<'_, str>) -> Cow<'_, str> {
    let Some((method, target)) = request.split_once(' ') else { return request };
    if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') {
        return request;
    }
    let target = match target.rsplit_once(' ') {
        Some((target, protocol)) if protocol.starts_with("HTTP/") => target,
        _ => target,
    };
    match &request {
        Cow::Borrowed(whole) => {
            let from = method.len() + 1;
            Cow::Borrowed(&whole[from..from + target.len()])
        }
        Cow::Owned(_) => Cow::Owned(target.to_string()),
    }
}

/// Bytes of a log for a message: quoted, escaped, at most 40 characters.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(160)]);
    let mut start: String = text.chars().take(40).collect();
    if start.len() < bytes.len() {
        start.push('…');
    }
    format!("{start:?}")
}
