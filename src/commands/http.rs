//! Queries a running job over HTTP: one HTTP/1.0 request per connection, which needs no client
//! library.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use sessionizer_core::fault::Fault;

use crate::cli::AskedJobArgs;
use crate::config;
use crate::config::{Environment, Problems};
use crate::monitor::job_header;

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
    /// What was asked for, without the path that every job has, for messages.
    pub shown: String,
    pub path: String,
    /// The job that must answer, if that is known.
    expected: Option<ExpectedJob>,
}

/// A job that was configured, by name.
#[derive(Clone, PartialEq, Eq, Debug)]
struct ExpectedJob {
    name: String,
    /// The flag or the variable that names it.
    set_by: String,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpReply {
    pub status: u16,
    /// The job whose answer it is, if it says so: older versions do not.
    pub job: Option<String>,
    pub body: String,
}

/// The variables that say which job to ask, where and how.
const READ: [&str; 8] = [
    "KAFKA_GROUP",
    "SESSIONIZER_ENV_FILE",
    "SESSIONIZER_HTTP",
    "SESSIONIZER_JOB",
    "SESSIONIZER_JSON",
    "SESSIONIZER_LIVE",
    "SESSIONIZER_LOG_FORMAT",
    "SESSIONIZER_WATCH",
];

impl Endpoint {
    /// The address that was typed, or the one on which a job with these variables listens.
    pub fn find(
        url: Option<&str>,
        job: &AskedJobArgs,
        path: &str,
        env: &Environment,
    ) -> Result<Self, Fault> {
        let mut problems = Problems::new(env);
        let name = config::read_job(&mut problems, job.name.as_deref(), env);
        problems.keep(|name| name.starts_with('-') || READ.contains(&name));
        if !problems.is_empty() {
            return Err(problems.fault());
        }
        let endpoint = match url {
            Some(url) => Endpoint::typed(url, path)?,
            None => Endpoint::configured(path, env)?,
        };
        // Whoever types a URL means whatever answers there, unless the job is typed as well.
        let origin = env.origin("--job");
        let was_typed = job.name.is_some() && origin == "--job";
        let set_by = if job.name.is_some() { origin } else { "KAFKA_GROUP".to_owned() };
        let expected = name.filter(|_| url.is_none() || was_typed);
        Ok(Endpoint { expected: expected.map(|name| ExpectedJob { name, set_by }), ..endpoint })
    }

    fn at(authority: String, path: &str) -> Self {
        let shown = format!("http://{authority}");
        Endpoint { authority, shown, path: path.to_owned(), expected: None }
    }

    /// Where a job with these variables listens.
    fn configured(path: &str, env: &Environment) -> Result<Self, Fault> {
        let nobody = |what: &str| {
            Err(Fault::config(format!(
                "SESSIONIZER_HTTP {what}. Give it an address, or give the URL of another job"
            )))
        };
        let authority = match env.value("SESSIONIZER_HTTP") {
            None => DEFAULT_AUTHORITY.to_owned(),
            Some(address) if address.eq_ignore_ascii_case("none") => {
                return nobody("is none: this job answers nobody");
            }
            Some(address) if address.ends_with(":0") => {
                return nobody("has port 0, any free one: the log of the job names it");
            }
            // A job that listens on all addresses also listens on loopback.
            Some(address) => address
                .strip_prefix("0.0.0.0:")
                .map(|port| format!("127.0.0.1:{port}"))
                .or_else(|| address.strip_prefix("[::]:").map(|port| format!("[::1]:{port}")))
                .unwrap_or(address),
        };
        Ok(Endpoint::at(authority, path))
    }

    fn typed(url: &str, path: &str) -> Result<Self, Fault> {
        let wrong = |how: &str| {
            // Before an @ there may be a password.
            let shown = url.rsplit_once('@').map_or(url, |(_, place)| place);
            Fault::config(format!(
                "{shown:?} is not the URL of a job: it must be like http://{DEFAULT_AUTHORITY}{how}"
            ))
        };
        let rest = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return Err(wrong("")),
            None => url,
        };
        if rest.contains(['?', '#']) {
            return Err(wrong(", without a query or a fragment"));
        }
        let (authority, given) = rest.split_once('/').unwrap_or((rest, ""));
        let legal = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if authority.contains('@') || !legal(rest) {
            return Err(wrong(""));
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (authority, "80"),
        };
        let is_address = host.starts_with('[') && host.ends_with(']');
        let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
        if host.is_empty()
            || (host.contains(':') && !is_address)
            || !is_number
            || !port.parse::<u16>().is_ok_and(|port| port > 0)
        {
            return Err(wrong(""));
        }
        let bare = Endpoint::at(format!("{host}:{port}"), path);
        // A prefix of a proxy, or the whole path.
        let given = format!("/{}", given.trim_end_matches('/'));
        let prefix = given.strip_suffix(path).unwrap_or(&given).trim_end_matches('/');
        let shown = format!("{}{prefix}", bare.shown);
        Ok(Endpoint { shown, path: format!("{prefix}{path}"), ..bare })
    }

    /// Asks, and makes sure that the right job has answered.
    pub fn ask(&self) -> Result<HttpReply, Fault> {
        let Endpoint { shown, .. } = self;
        let reply = self
            .get()
            .map_err(|why| Fault::environment(format!("no job answers at {shown}: {why}")))?;
        match self.another(&reply) {
            Some(why) => Err(Fault::config(why)),
            None => Ok(reply),
        }
    }

    /// What to say if another job has answered.
    fn another(&self, reply: &HttpReply) -> Option<String> {
        let ExpectedJob { name, set_by } = self.expected.as_ref()?;
        let other = reply.job.as_ref().filter(|job| *job != name)?;
        let (shown, other, name) = (&self.shown, printable(other), printable(name));
        Some(format!(
            "the job {other} answers at {shown}, not {name} ({set_by}): if both run on this machine, \
             start {name} with an --http of its own, and name that here, by SESSIONIZER_HTTP or as a \
             URL; if {other} is meant, name it by --job or give the URL {shown}"
        ))
    }

    /// Waits for the whole answer.
    fn get(&self) -> io::Result<HttpReply> {
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
        let Endpoint { authority, path, .. } = self;
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
    let header = |wanted: &str| {
        let mut named = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        named.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
    };
    let length = header("content-length").and_then(|value| value.parse::<usize>().ok());
    let job = header(job_header::JOB_HEADER).map(job_header::decode);
    // A connection that broke must not pass for a short answer.
    length.is_none_or(|length| bytes.len() == end + 4 + length).then_some(HttpReply {
        status,
        job,
        body,
    })
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

    fn find(
        url: Option<&str>,
        job: Option<&str>,
        variables: &[(&str, &str)],
    ) -> Result<Endpoint, Fault> {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        let mut env = Environment::new(variables);
        // As the command line does it.
        let job = job.map(str::to_owned).or_else(|| {
            let job = env.value("SESSIONIZER_JOB")?;
            env.set_by("--job", "SESSIONIZER_JOB");
            Some(job)
        });
        Endpoint::find(url, &AskedJobArgs { name: job }, "/readyz", &env)
    }

    #[test]
    fn a_job_is_found_by_its_url_or_its_variable() {
        for (url, variable, authority, shown, path) in [
            (None, "", "127.0.0.1:9464", "http://127.0.0.1:9464", "/readyz"),
            (None, "0.0.0.0:8080", "127.0.0.1:8080", "http://127.0.0.1:8080", "/readyz"),
            (None, "[::]:8080", "[::1]:8080", "http://[::1]:8080", "/readyz"),
            (None, "10.8.0.1:9464", "10.8.0.1:9464", "http://10.8.0.1:9464", "/readyz"),
            (Some("http://job:9464"), "none", "job:9464", "http://job:9464", "/readyz"),
            (Some("HTTP://job:9464"), "none", "job:9464", "http://job:9464", "/readyz"),
            (Some("job:9464/"), "", "job:9464", "http://job:9464", "/readyz"),
            (
                Some("http://job/jobs/web/"),
                "",
                "job:80",
                "http://job:80/jobs/web",
                "/jobs/web/readyz",
            ),
            (Some("job/web/readyz"), "", "job:80", "http://job:80/web", "/web/readyz"),
            (Some("job/notreadyz"), "", "job:80", "http://job:80/notreadyz", "/notreadyz/readyz"),
            (Some("http://[::1]:9464/readyz"), "", "[::1]:9464", "http://[::1]:9464", "/readyz"),
            (Some("http://[::1]"), "", "[::1]:80", "http://[::1]:80", "/readyz"),
        ] {
            let found = find(url, None, &[("SESSIONIZER_HTTP", variable)]).expect("it is found");
            let got = (&*found.authority, &*found.shown, &*found.path);
            assert_eq!(got, (authority, shown, path), "{url:?} {variable:?}");
        }
        for (url, variable, says) in [
            (None, "none", "SESSIONIZER_HTTP is none"),
            (None, "NONE", "SESSIONIZER_HTTP is none"),
            (None, "127.0.0.1:0", "SESSIONIZER_HTTP has port 0"),
            (Some("https://job:9464"), "", "must be like http://127.0.0.1:9464"),
            (Some("http://u:geheim@job:9464"), "", "\"job:9464\" is not the URL"),
            (Some("http://"), "", "is not the URL"),
            (Some("http://:9464"), "", "is not the URL"),
            (Some("http://job:0"), "", "is not the URL"),
            (Some("http://job:+1"), "", "is not the URL"),
            (Some("http://job:"), "", "is not the URL"),
            (Some("::1:9464"), "", "is not the URL"),
            (Some("http://job:1/x y"), "", "is not the URL"),
            (Some("http://job:1/\r\nX: y"), "", "is not the URL"),
            (Some("http://job:1/x?y=1"), "", "without a query or a fragment"),
            (Some("http://job:1?y"), "", "without a query or a fragment"),
            (Some("http://job:1/x#y"), "", "without a query or a fragment"),
            (Some("job:1#y"), "", "without a query or a fragment"),
        ] {
            let why = find(url, None, &[("SESSIONIZER_HTTP", variable)]).expect_err("refused");
            assert_eq!(why.exit_code(), 2, "{url:?}");
            let why = why.to_string();
            assert!(why.contains(says) && !why.contains("geheim"), "{url:?} {variable:?}: {why}");
        }
    }

    #[test]
    fn another_job_is_refused_if_one_is_configured_and_no_url_was_typed() {
        let (group, job) = (("KAFKA_GROUP", "sx2"), ("SESSIONIZER_JOB", "sx3"));
        let url = Some("http://127.0.0.1:9464");
        let of = |job: Option<&str>| HttpReply {
            status: 200,
            job: job.map(str::to_owned),
            body: String::new(),
        };
        for (url, typed, variables, expected, set_by) in [
            (None, None, &[group][..], Some("sx2"), "KAFKA_GROUP"),
            (None, None, &[group, job], Some("sx3"), "SESSIONIZER_JOB"),
            (None, Some("sx4"), &[group, job], Some("sx4"), "--job"),
            (url, Some("sx4"), &[group, job], Some("sx4"), "--job"),
            (url, None, &[group, job], None, ""),
            (None, None, &[], None, ""),
        ] {
            let found = find(url, typed, variables).expect("it is found");
            let why = found.another(&of(Some("sx\x1b")));
            assert_eq!(why.is_some(), expected.is_some(), "{url:?} {typed:?} {variables:?}");
            if let (Some(why), Some(expected)) = (why, expected) {
                let says = format!(
                    "the job sx\u{fffd} answers at http://127.0.0.1:9464, not {expected} ({set_by}): "
                );
                assert!(why.starts_with(&says) && why.contains("--http"), "{why}");
            }
            // An older version does not say whose answer it is.
            assert_eq!(found.another(&of(None)), None);
            assert_eq!(found.another(&of(expected)), None);
        }
    }

    #[test]
    fn a_mistake_in_a_setting_that_is_read_is_not_passed_over() {
        let mut env = Environment::new([]);
        env.note("POSTGRES_PASSWORD_FILE", "cannot be read");
        let none = AskedJobArgs { name: None };
        assert!(Endpoint::find(None, &none, "/readyz", &env).is_ok());
        env.note("--env-file", "job.env cannot be read");
        let why = Endpoint::find(None, &none, "/readyz", &env).expect_err("a mistake").to_string();
        assert!(why.contains("--env-file") && !why.contains("PASSWORD"), "{why}");
    }

    #[test]
    fn an_answer_is_taken_as_a_whole_or_not_at_all() {
        let good = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno";
        let want = HttpReply { status: 503, job: None, body: "no".to_owned() };
        assert_eq!(parse(good), Some(want));
        assert_eq!(parse(&good[..good.len() - 1]), None);
        let named = b"HTTP/1.1 200 OK\r\nSessionizer-Job: web%20events\r\n\r\n";
        let job = parse(named).and_then(|reply| reply.job);
        assert_eq!(job.as_deref(), Some("web events"));
        assert_eq!(parse(b"SSH-2.0-OpenSSH\r\n\r\n"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn a_text_from_outside_does_not_move_the_cursor() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
