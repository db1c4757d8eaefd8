//! Clients of a job's HTTP port: an open page, a scraper, and a flood of requests.
//!
//! They speak HTTP/1.1 over plain sockets, to use as little CPU as possible. They connect as soon
//! as the port is open, and run until they are ended.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::failure::{Result, While, fail};

/// The timeout for connecting and for each read. Clients notice within this time that they are to
/// end.
const PATIENCE: Duration = Duration::from_secs(2);
/// The pause before connecting again while nothing listens.
const AGAIN: Duration = Duration::from_millis(20);
/// How often a scraper asks.
const SCRAPES: Duration = Duration::from_secs(1);

/// The paths that a flood requests in turn: all kinds of answers, and one path that does not exist.
const PATHS: [&str; 9] =
    ["/", "/app.js", "/uplot.js", "/status", "/events", "/metrics", "/livez", "/readyz", "/none"];
/// The threads that send the requests of a flood.
const ASKING: u32 = 4;
/// How often the half-open connections are checked.
const LOOK: Duration = Duration::from_millis(100);

/// What has happened so far.
#[derive(Default)]
struct Counts {
    ended: AtomicBool,
    /// When the first client connected.
    connected: OnceLock<Instant>,
    answers: AtomicU64,
    /// Connections that the job closed before it had answered.
    dropped: AtomicU64,
    /// Messages received by the page.
    messages: AtomicU64,
    message_bytes: AtomicU64,
    /// Half-open connections: how many were opened, and how many are still open.
    opened: AtomicU64,
    held: AtomicU64,
}

/// A set of running clients.
#[derive(Default)]
pub struct Clients {
    counts: Arc<Counts>,
    has_page: bool,
    threads: Vec<JoinHandle<()>>,
}

/// What they have seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub seconds: f64,
    pub answers: f64,
    pub dropped: f64,
    pub message_bytes: f64,
    pub opened: f64,
    /// Half-open connections at the end.
    pub held: f64,
}

impl Clients {
    /// One page that stays open, and a scraper that asks for `/metrics` once a second.
    pub fn watch(port: u16) -> Clients {
        let mut clients = Clients { has_page: true, ..Clients::default() };
        clients.spawn(move |counts| page(port, counts));
        clients.spawn(move |counts| ask(port, counts, &["/metrics"], SCRAPES));
        clients
    }

    /// Sends this many requests a second over all paths, and holds this many connections that have
    /// sent half a request.
    pub fn flood(port: u16, requests_per_s: u32, held: usize) -> Clients {
        let mut clients = Clients::default();
        let every = Duration::from_secs(1) * ASKING / requests_per_s;
        for _ in 0..ASKING {
            clients.spawn(move |counts| ask(port, counts, &PATHS, every));
        }
        clients.spawn(move |counts| hold(port, counts, held));
        clients
    }

    fn spawn(&mut self, work: impl FnOnce(&Counts) + Send + 'static) {
        let counts = Arc::clone(&self.counts);
        self.threads.push(thread::spawn(move || work(&counts)));
    }

    /// Ends the clients and closes their connections. Fails if no request was answered or the page
    /// received nothing: then nothing was measured.
    pub fn end(self) -> Result<Seen> {
        let Clients { counts, has_page, threads } = self;
        let seconds = counts.connected.get().map_or(0.0, |at| at.elapsed().as_secs_f64());
        let of = |count: &AtomicU64| count.load(Relaxed) as f64;
        let held = of(&counts.held);
        counts.ended.store(true, Relaxed);
        for thread in threads {
            if thread.join().is_err() {
                return fail("a client of the HTTP port has panicked");
            }
        }
        let answers = of(&counts.answers);
        if answers == 0.0 {
            return fail("the HTTP port of the job has answered no request");
        }
        if has_page && of(&counts.messages) == 0.0 {
            return fail("the page has received no message");
        }
        let (dropped, message_bytes) = (of(&counts.dropped), of(&counts.message_bytes));
        let opened = of(&counts.opened);
        Ok(Seen { seconds, answers, dropped, message_bytes, opened, held })
    }
}

impl Counts {
    fn ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// Connects, as soon as the port is open. Returns `None` once the clients are to end.
    fn connect(&self, port: u16) -> Option<TcpStream> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        while !self.ended() {
            let stream = TcpStream::connect_timeout(&address, PATIENCE).and_then(|stream| {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(stream)
            });
            match stream {
                Ok(stream) => {
                    self.connected.get_or_init(Instant::now);
                    return Some(stream);
                }
                Err(_) => thread::sleep(AGAIN),
            }
        }
        None
    }
}

/// Sends one request and reads the whole response.
pub fn ask_once(port: u16, path: &str) -> Result<()> {
    let asked = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).and_then(|stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        request(&stream, path)?;
        answer(&mut BufReader::new(stream))
    });
    asked.map(|_| ()).during(format!("asking the job for {path}"))
}

fn request(mut stream: &TcpStream, path: &str) -> io::Result<()> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

/// Reads the messages of `/events`, and reconnects when the stream ends.
fn page(port: u16, counts: &Counts) {
    while let Some(stream) = counts.connect(port) {
        if request(&stream, "/events").is_err() {
            continue;
        }
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while !counts.ended() {
            line.clear();
            match lines.read_until(b'\n', &mut line) {
                Ok(read) if read > 0 => {
                    counts.message_bytes.fetch_add(read as u64, Relaxed);
                    counts.messages.fetch_add(line.starts_with(b"event: ").into(), Relaxed);
                }
                _ => break,
            }
        }
    }
}

/// Requests these paths in turn, at this pace, on one connection for as long as the job keeps it.
/// Requests that could not be sent in time are not made up for.
fn ask(port: u16, counts: &Counts, paths: &[&str], every: Duration) {
    let mut kept: Option<BufReader<TcpStream>> = None;
    let mut next = Instant::now();
    for path in paths.iter().cycle() {
        let Some(mut connection) = kept.take().or_else(|| counts.connect(port).map(BufReader::new))
        else {
            return;
        };
        let answer = request(connection.get_ref(), path).and_then(|()| answer(&mut connection));
        match answer {
            Ok(again) => {
                counts.answers.fetch_add(1, Relaxed);
                kept = again.then_some(connection);
            }
            Err(_) => {
                counts.dropped.fetch_add(1, Relaxed);
            }
        }
        next = (next + every).max(Instant::now());
        while Instant::now() < next {
            if counts.ended() {
                return;
            }
            thread::sleep(AGAIN.min(next.saturating_duration_since(Instant::now())));
        }
        if counts.ended() {
            return;
        }
    }
}

/// Reads a response. Returns whether another request may follow on the connection, which is not the
/// case for a stream, as it has no end.
fn answer(connection: &mut impl BufRead) -> io::Result<bool> {
    let mut length = None;
    let mut line = String::new();
    loop {
        line.clear();
        if connection.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let header = line.trim_end();
        if header.is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse::<u64>().ok();
        }
    }
    let Some(length) = length else { return Ok(false) };
    let read = io::copy(&mut connection.take(length), &mut io::sink())?;
    if read == length { Ok(true) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// Holds this many connections that have sent half a request. It replaces those that the job
/// closes, up to the same number a second.
fn hold(port: u16, counts: &Counts, held: usize) {
    let mut connections: Vec<TcpStream> = Vec::new();
    let at_once = (held as u128 * LOOK.as_millis() / 1_000) as usize;
    while !counts.ended() {
        connections.retain(is_open);
        for _ in 0..(held - connections.len()).min(at_once) {
            let Some(mut stream) = counts.connect(port) else { return };
            let half = stream.write_all(b"GET / HTTP/1.1\r\nHost: local");
            if half.and_then(|()| stream.set_nonblocking(true)).is_ok() {
                connections.push(stream);
                counts.opened.fetch_add(1, Relaxed);
            }
        }
        counts.held.store(connections.len() as u64, Relaxed);
        thread::sleep(LOOK);
    }
}

fn is_open(stream: &TcpStream) -> bool {
    matches!(stream.peek(&mut [0]), Err(why) if why.kind() == ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_answer_ends_at_its_length_and_a_stream_has_no_end() {
        let read = |text: &str| {
            let mut bytes = text.as_bytes();
            let again = answer(&mut bytes).map_err(|why| why.kind());
            (again, bytes.len())
        };
        let whole = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nlive\nHTTP/1.1 200";
        assert_eq!(read(whole), (Ok(true), 12));
        let stream = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(read(stream), (Ok(false), 0));
        for cut in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nliv"] {
            assert_eq!(read(cut).0, Err(ErrorKind::UnexpectedEof), "{cut:?}");
        }
    }

    #[test]
    fn clients_that_were_never_answered_have_measured_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let why = Clients::flood(port, 100, 10).end().expect_err("nobody listens");
        assert!(why.0.contains("answered no request"), "{why}");
    }

    #[test]
    fn connections_that_are_closed_are_opened_again() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let counts = Arc::new(Counts::default());
        let of_thread = Arc::clone(&counts);
        let thread = thread::spawn(move || hold(port, &of_thread, 20));
        // Close the first ten at once, and keep the others.
        let accept = || listener.accept().expect("a connection").0;
        (0..10).for_each(|_| drop(accept()));
        let _kept: Vec<TcpStream> = (0..20).map(|_| accept()).collect();
        let began = Instant::now();
        while counts.held.load(Relaxed) < 20 {
            assert!(began.elapsed().as_secs() < 30, "{} held", counts.held.load(Relaxed));
            thread::sleep(AGAIN);
        }
        counts.ended.store(true, Relaxed);
        thread.join().expect("it ends");
    }
}
