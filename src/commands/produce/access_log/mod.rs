//! Access logs: turns a line of Apache's or nginx's common or combined format into a web event.
//!
//! A line becomes either an event or an error that names the field and the column. Only what an
//! event needs is checked: a garbled request or user agent is taken as it is, a client or a time is
//! not. `input.rs` reads the lines from a file. This module does not know which host the log
//! belongs to (the format does not say), nor what Kafka is.

mod input;

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::net::Ipv6Addr;

use chrono::{DateTime, Datelike};
pub use input::{Lines, ReadError, reader};

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

#[cfg(test)]
mod tests {
    use super::*;

    // Every line here is made up.
    const GOOD: &str = "203.0.113.9 - - [17/May/2015:10:05:03 +0000] \
                        \"GET /a?b=c HTTP/1.1\" 200 12 \
                        \"https://example.net/x\" \"Browser/1.0 (X; Y)\"";
    const GOOD_MS: i64 = 1_431_857_103_000;

    fn parse(line: &[u8]) -> Result<WebEvent<'_>, LineError> {
        parse_line(line, "example.org")
    }

    /// [`GOOD`] with its request, including `"..."`, replaced.
    fn with_request(request: &str) -> String {
        GOOD.replace("\"GET /a?b=c HTTP/1.1\"", request)
    }

    #[test]
    fn a_combined_line_becomes_an_event() {
        let event = parse(GOOD.as_bytes()).expect("a good line");
        let want = WebEvent {
            url: "/a?b=c".into(),
            referrer: "https://example.net/x".into(),
            user_agent: "Browser/1.0 (X; Y)".into(),
            host: "example.org".into(),
            ip: "203.0.113.9".into(),
            headers: vec![],
            event_time_ms: GOOD_MS,
        };
        assert_eq!(event, want);
    }

    #[test]
    fn the_common_format_has_no_referrer_and_no_user_agent() {
        let line = GOOD.split(" \"https").next().expect("a first part");
        for line in [
            line.to_string(),
            format!("{line} "),
            format!("{line}\r\n"),
            format!("{line} \"-\" \"-\""),
        ] {
            let event = parse(line.as_bytes()).expect("a good line");
            assert_eq!((&*event.referrer, &*event.user_agent), ("", ""), "{line}");
        }
    }

    #[test]
    fn clients_are_addresses_or_host_names() {
        for client in [
            "203.0.113.9",
            "2001:db8::7",
            "::ffff:203.0.113.9",
            "fe80::1%eth0",
            "dial-up.example.com",
            "localhost",
            "under_score.example",
        ] {
            let line = GOOD.replace("203.0.113.9", client);
            assert_eq!(parse(line.as_bytes()).expect("a good client").ip, client);
        }
    }

    #[test]
    fn times_keep_their_zone_and_their_fraction() {
        for (time, want) in [
            ("17/May/2015:10:05:03 +0000", GOOD_MS),
            ("17/May/2015:10:05:03 -0000", GOOD_MS),
            ("17/May/2015:12:05:03 +0200", GOOD_MS),
            ("17/May/2015:15:35:03 +0530", GOOD_MS),
            ("16/May/2015:22:20:03 -1145", GOOD_MS),
            ("17/may/2015:10:05:03 +0000", GOOD_MS),
            ("17/May/2015:10:05:03.250 +0000", GOOD_MS + 250),
            ("01/Jan/1970:00:00:00 +0000", 0),
            ("29/Feb/2024:23:59:59 +0000", 1_709_251_199_000),
            ("30/Jun/2015:23:59:60 +0000", 1_435_708_800_000),
        ] {
            let line = GOOD.replace("17/May/2015:10:05:03 +0000", time);
            assert_eq!(parse(line.as_bytes()).map(|event| event.event_time_ms), Ok(want), "{time}");
        }
    }

    #[test]
    fn users_may_hold_spaces_and_brackets() {
        for user in ["- alice", "- Bob the [builder]", "id [17/May/2015] x", "-  -", "- [ [x]"] {
            let line = GOOD.replace("- -", user);
            assert_eq!(
                parse(line.as_bytes()).map(|event| event.event_time_ms),
                Ok(GOOD_MS),
                "{user}"
            );
        }
    }

    #[test]
    fn requests_are_taken_as_they_are() {
        for (request, want) in [
            (r#""GET / HTTP/1.0""#, "/"),
            (r#""GET /a b HTTP/1.1""#, "/a b"),
            (r#""GET /zero-nine""#, "/zero-nine"),
            (r#""VERSION-CONTROL /x HTTP/1.1""#, "/x"),
            (r#""CONNECT example.org:443 HTTP/1.1""#, "example.org:443"),
            (r#""GET http://example.org/full HTTP/1.1""#, "http://example.org/full"),
            (r#""-""#, ""),
            (r#""""#, ""),
            (r#""GET""#, "GET"),
            (r#""hello world""#, "hello world"),
            (r#""\x16\x03\x01\x02""#, "\u{16}\u{3}\u{1}\u{2}"),
            (r#""GET /caf\xc3\xa9 HTTP/1.1""#, "/café"),
            (r#""GET /caf\xe9 HTTP/1.1""#, "/caf\u{fffd}"),
            (r#""GET /\"quoted\" HTTP/1.1""#, "/\"quoted\""),
            (r#""GET /back\\ HTTP/1.1""#, "/back\\"),
            (r#""GET /tail\\""#, "/tail\\"),
            (r#""GET /\t\n\r\b\v\f HTTP/1.1""#, "/\t\n\r\u{8}\u{b}\u{c}"),
            (r#""GET /\x4 \xzz \q HTTP/1.1""#, "/\\x4 \\xzz \\q"),
            (r#""GET /raw"quote HTTP/1.1""#, "/raw\"quote"),
        ] {
            let line = with_request(request);
            let event = parse(line.as_bytes()).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!(event.url, want, "{line}");
            assert_eq!(event.user_agent, "Browser/1.0 (X; Y)", "{line}");
        }
    }

    #[test]
    fn a_line_cut_in_the_user_agent_is_still_an_event() {
        for (end, want) in [(99, ""), (106, "Browser"), (117, "Browser/1.0 (X; Y)")] {
            assert_eq!(parse(&GOOD.as_bytes()[..end]).expect("good").user_agent, want);
        }
    }

    #[test]
    fn bytes_that_are_not_utf_8_become_replacement_characters() {
        let mut line = GOOD.replace("Browser", "Br#wser").into_bytes();
        let at = line.iter().position(|&byte| byte == b'#').expect("the mark");
        line[at] = 0xff;
        assert_eq!(parse(&line).expect("a good line").user_agent, "Br\u{fffd}wser/1.0 (X; Y)");
    }

    #[test]
    fn what_follows_the_user_agent_is_ignored() {
        for extra in [" \"203.0.113.1, 10.0.0.1\"", " 0.003", " \"unclosed", " - - x=1 [no] \"\""] {
            let line = format!("{GOOD}{extra}");
            assert_eq!(
                parse(line.as_bytes()).expect("a good line").user_agent,
                "Browser/1.0 (X; Y)"
            );
        }
    }

    #[test]
    fn status_and_size_may_be_missing_values() {
        for numbers in ["304 -", "- -", "000 0", "200 18446744073709551616"] {
            let line = GOOD.replace("200 12", numbers);
            assert!(parse(line.as_bytes()).is_ok(), "{line}");
        }
    }

    #[test]
    fn errors_name_the_field_the_column_and_the_problem() {
        let long = format!("{}:80 - - [x]", "v".repeat(300));
        let cut = |end: usize| GOOD[..end].to_string();
        for (line, want) in [
            ("".to_string(), "client at column 1: the line is empty"),
            (" \t ".to_string(), "client at column 1: the line is empty"),
            (GOOD.replace("203.0.113.9", "-"), "client at column 1: \"-\" is neither"),
            (GOOD.replace("203.0.113.9", "unix:"), "client at column 1: \"unix:\" is neither"),
            (
                GOOD.replace("203.0.113.9", "a.example:80"),
                "client at column 1: \"a.example:80\" is",
            ),
            (GOOD.replace("203.0.113.9", "a\0b"), "client at column 1: \"a\\0b\" is neither"),
            (GOOD.replace("203.0.113.9", "\u{feff}::1"), "client at column 1: \"\\u{feff}::1\" is"),
            (long, "client at column 1: \"vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv…\" is neither"),
            ("hello".to_string(), "time at column 6: no time in brackets follows"),
            (
                GOOD.replace("May", "Mai"),
                "time at column 17: \"17/Mai/2015:10:05:03 +0000\" is not",
            ),
            (
                GOOD.replace("17/", "32/"),
                "time at column 17: \"32/May/2015:10:05:03 +0000\" is not",
            ),
            (GOOD.replace(" +0000", ""), "time at column 17: \"17/May/2015:10:05:03\" is not"),
            (
                GOOD.replace("2015", "-015"),
                "time at column 17: \"17/May/-015:10:05:03 +0000\" is not",
            ),
            (
                GOOD.replace("2015", "+12015"),
                "time at column 17: \"17/May/+12015:10:05:03 +0000\" is",
            ),
            (cut(30), "time at column 17: the bracket is never closed"),
            (cut(44), "request at column 45: missing, the line ends before it"),
            (cut(50), "request at column 46: the quote is never closed"),
            (
                with_request("GET /"),
                "request at column 46: a quote should open it, but there is \"GET\"",
            ),
            (
                GOOD.replace("200 12", "OK 12"),
                "status at column 68: \"OK\" is neither a number nor -",
            ),
            (
                GOOD.replace("200 12", "200 1k"),
                "size at column 72: \"1k\" is neither a number nor -",
            ),
            (
                GOOD.replace("200 12", "200"),
                "size at column 72: \"\\\"https://example.net/x\\\"\" is",
            ),
            (cut(66), "status at column 67: missing, the line ends before it"),
            (GOOD.replace("\"https", "https"), "referrer at column 75: a quote should open it"),
            (cut(98), "user agent at column 98: missing, the line ends before it"),
            (cut(90), "referrer at column 75: the quote is never closed"),
        ] {
            let error = parse(line.as_bytes()).expect_err(&line).to_string();
            assert!(error.starts_with(want), "{line}\n said {error}\n not  {want}");
        }
    }

    #[test]
    fn no_line_makes_the_parser_panic() {
        for end in 0..=GOOD.len() {
            for byte in [b'"', b'\\', b'[', b' ', b'-', 0xff, 0] {
                let mut line = GOOD.as_bytes()[..end].to_vec();
                line.push(byte);
                let _ = parse(&line);
                line.extend_from_slice(&GOOD.as_bytes()[end..]);
                let _ = parse(&line);
            }
        }
    }

    #[test]
    fn fuzz_access_log() {
        let pieces: [&[u8]; 8] =
            [b"\"", b"\\x22", b"[", b"] ", b" ", b"-", b"\xff", b"31/Feb/2026:24:61:61 +9999"];
        crate::shared::mutate::fuzz(&[GOOD.as_bytes()], &pieces, |line| {
            if let Ok(event) = parse(line) {
                let json: serde_json::Value =
                    serde_json::from_slice(&event.to_json()).expect("an event is JSON");
                assert!(json["ip"].as_str().is_some_and(|ip| !ip.is_empty()), "{json}");
            }
        });
    }
}
