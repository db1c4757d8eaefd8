//! Queries a running job over HTTP: one HTTP/1.0 request per connection, which needs no client
//! library.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use sessionizer_core::fault::Fault;

use crate::config::Environment;

/// How long a whole answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Where a job listens by default.
const DEFAULT_AUTHORITY: &str = "127.0.0.1:9464";

/// The address of a job's HTTP port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// `host:port`.
    pub authority: String,
    pub path: String,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpReply {
    pub status: u16,
    pub body: String,
}

impl Endpoint {
    /// The address that was typed, or the one on which a job with these variables listens.
    pub fn find(url: Option<&str>, path: &str, env: &Environment) -> Result<Self, Fault> {
        let listens = env.value("SESSIONIZER_HTTP");
        let Some(url) = url else {
            let authority = match listens.as_deref().map(str::trim) {
                None | Some("") => DEFAULT_AUTHORITY.to_owned(),
                Some("none") => {
                    return Err(Fault::config(
                        "SESSIONIZER_HTTP is none: this job answers nobody. Give it an address, or \
                         give the URL of another job"
                            .to_owned(),
                    ));
                }
                // A job that listens on all addresses also listens on loopback.
                Some(address) => address
                    .strip_prefix("0.0.0.0:")
                    .map(|port| format!("127.0.0.1:{port}"))
                    .or_else(|| address.strip_prefix("[::]:").map(|port| format!("[::1]:{port}")))
                    .unwrap_or_else(|| address.to_owned()),
            };
            return Ok(Endpoint { authority, path: path.to_owned() });
        };
        let wrong = || {
            // Before an @ there may be a password.
            let shown = url.rsplit_once('@').map_or(url, |(_, place)| place);
            Fault::config(format!(
                "{shown:?} is not the URL of a job: it must be like http://{DEFAULT_AUTHORITY}"
            ))
        };
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some(_) => return Err(wrong()),
            None => url,
        };
        let (authority, given) = rest.split_once('/').unwrap_or((rest, ""));
        let legal = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if authority.is_empty() || authority.contains('@') || !legal(rest) {
            return Err(wrong());
        }
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let authority = match has_port {
            true => {
                let port = authority.rsplit_once(':').map_or("", |(_, port)| port);
                port.parse::<u16>().map_err(|_| wrong())?;
                authority.to_owned()
            }
            false => format!("{authority}:80"),
        };
        let given = given.trim_end_matches('/');
        let path = match given.is_empty() {
            true => path.to_owned(),
            // A prefix of a proxy, or the whole path.
            false if given.ends_with(path.trim_start_matches('/')) => format!("/{given}"),
            false => format!("/{given}{path}"),
        };
        Ok(Endpoint { authority, path })
    }

    /// Asks, and waits for the whole answer.
    pub fn get(&self) -> io::Result<HttpReply> {
        let until = Instant::now() + ANSWER_TIMEOUT;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name resolves to no address");
        for address in self.authority.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, ANSWER_TIMEOUT) {
                Ok(stream) => return self.exchange(stream, until),
                Err(why) => last = why,
            }
        }
        Err(last)
    }

    fn exchange(&self, mut stream: TcpStream, until: Instant) -> io::Result<HttpReply> {
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let Endpoint { authority, path } = self;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {authority}\r\n\r\n")?;
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if bytes.len() > MAX_ANSWER_BYTES {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
            }
            stream.set_read_timeout(Some(left))?;
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => bytes.extend_from_slice(&buffer[..read]),
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(why) => return Err(why),
            }
        }
        parse(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "this is not HTTP"))
    }
}

fn parse(bytes: &[u8]) -> Option<HttpReply> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let body = String::from_utf8_lossy(&bytes[end + 4..]).into_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    // A connection that broke must not pass for a short answer.
    length
        .is_none_or(|length| bytes.len() == end + 4 + length)
        .then_some(HttpReply { status, body })
}

/// A text from outside without what could move the cursor or change colours.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if is_hidden(c) { '\u{fffd}' } else { c }).collect()
}

/// Whether a terminal obeys a character instead of showing it: controls, ends of lines, and what
/// changes the direction of writing.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: Option<&str>, variable: Option<&str>) -> Result<(String, String), Fault> {
        let variables = variable.map(|value| ("SESSIONIZER_HTTP".into(), value.into()));
        let env = Environment::new(variables);
        Endpoint::find(url, "/readyz", &env).map(|endpoint| (endpoint.authority, endpoint.path))
    }

    #[test]
    fn a_job_is_found_by_its_url_or_its_variable() {
        for (url, variable, authority, path) in [
            (None, None, "127.0.0.1:9464", "/readyz"),
            (None, Some("0.0.0.0:8080"), "127.0.0.1:8080", "/readyz"),
            (None, Some("[::]:8080"), "[::1]:8080", "/readyz"),
            (None, Some("10.8.0.1:9464"), "10.8.0.1:9464", "/readyz"),
            (Some("http://job:9464"), Some("none"), "job:9464", "/readyz"),
            (Some("job:9464/"), None, "job:9464", "/readyz"),
            (Some("http://job/jobs/web/"), None, "job:80", "/jobs/web/readyz"),
            (Some("http://[::1]:9464/readyz"), None, "[::1]:9464", "/readyz"),
            (Some("http://[::1]"), None, "[::1]:80", "/readyz"),
        ] {
            let want = (authority.to_owned(), path.to_owned());
            assert_eq!(endpoint(url, variable), Ok(want), "{url:?} {variable:?}");
        }
        for (url, variable) in [
            (None, Some("none")),
            (Some("https://job:9464"), None),
            (Some("http://user@job:9464"), None),
            (Some("http://"), None),
            (Some("http://job:1/x y"), None),
            (Some("http://job:1/\r\nX: y"), None),
        ] {
            assert_eq!(endpoint(url, variable).map_err(|why| why.exit_code()), Err(2), "{url:?}");
        }
    }

    #[test]
    fn an_answer_is_taken_as_a_whole_or_not_at_all() {
        let good = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno";
        assert_eq!(parse(good), Some(HttpReply { status: 503, body: "no".to_owned() }));
        assert_eq!(parse(&good[..good.len() - 1]), None);
        assert_eq!(parse(b"SSH-2.0-OpenSSH\r\n\r\n"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn a_text_from_outside_does_not_move_the_cursor() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
