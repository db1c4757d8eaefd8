//! Finding each other: the listener of a process, and the dialers to those before it.
//!
//! Whoever sends something else than a greeting, or is nobody that belongs here, is turned away
//! with a line in the log; each has a thread and five seconds, and there are never many at once.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use log::warn;

use super::greeting::{self, Answer, Hello, Purpose, differences};
use super::link;
use super::members::{Members, Phase};
use crate::control::Fault;

/// How long a greeting may take.
const GREETING: Duration = Duration::from_secs(5);
/// How many may greet at once; whoever comes then is turned away unheard.
const GREETERS: usize = 32;
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a dialer rests between tries.
const REDIAL: Duration = Duration::from_millis(250);

/// A port that is listened on, until it is closed.
pub(super) struct Listener {
    address: SocketAddr,
}

impl Listener {
    /// Wakes the thread that listens, which then finds that it is over.
    pub fn close(&self) {
        drop(TcpStream::connect_timeout(&self.address, CONNECT));
    }
}

/// Listens on this process's own address, and on no other. An instance that ends just now may still
/// have it, and a name may be known a moment later; `None` if the run is to stop meanwhile.
pub(super) fn listen(
    members: &Arc<Members>,
    patience: Duration,
) -> Result<Option<Listener>, Fault> {
    let address = &members.addresses[members.me];
    let began = Instant::now();
    let mut told = false;
    let listener = loop {
        let why = match TcpListener::bind(address.as_str()) {
            Ok(listener) => break listener,
            Err(why) => why,
        };
        let hopeless = why.kind() == io::ErrorKind::PermissionDenied;
        if hopeless || began.elapsed() >= patience {
            let hint = match why.kind() {
                io::ErrorKind::AddrNotAvailable => {
                    ". This machine does not have the address: is --process right?"
                }
                io::ErrorKind::AddrInUse => ". Another program has it, or a process of this job",
                _ => "",
            };
            let what = format!(
                "cannot listen on {address}, the address of process {} in the hostfile: {why}{hint}",
                members.me
            );
            let heals = why.kind() == io::ErrorKind::AddrInUse;
            return Err(if heals { Fault::World(what) } else { Fault::Config(what) });
        }
        if members.control.ending() {
            return Ok(None);
        }
        if !std::mem::replace(&mut told, true) {
            warn!("cannot listen on {address}: {why}; trying again for {patience:?}");
        }
        thread::sleep(REDIAL);
    };
    let ails = |why: io::Error| Fault::World(format!("cannot listen on {address}: {why}"));
    let place = listener.local_addr().map_err(ails)?;
    let ours = Arc::clone(members);
    let thread = thread::Builder::new().name("cluster-listen".to_owned());
    thread.spawn(move || accept(&ours, &listener)).map_err(ails)?;
    Ok(Some(Listener { address: place }))
}

fn accept(members: &Arc<Members>, listener: &TcpListener) {
    let greeters = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = listener.accept();
        if members.phase() == Phase::Closed {
            return;
        }
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(why) => {
                // Out of file descriptors, say: that passes, and must not take the processor.
                warn!("cannot take a connection: {why}");
                thread::sleep(REDIAL);
                continue;
            }
        };
        if greeters.fetch_add(1, Relaxed) >= GREETERS {
            greeters.fetch_sub(1, Relaxed);
            members.stranger(&from.to_string(), "too many come at once");
            continue;
        }
        let (members, greeters) = (Arc::clone(members), Arc::clone(&greeters));
        let thread = thread::Builder::new().name("cluster-greet".to_owned());
        // If no thread can be had, the stream is dropped with the closure: turned away.
        let _ = thread.spawn(move || {
            if let Err(why) = greet(&members, stream, from) {
                let why = match why.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        "it says nothing".to_owned()
                    }
                    io::ErrorKind::UnexpectedEof => "it has gone again".to_owned(),
                    _ => why.to_string(),
                };
                members.stranger(&from.to_string(), &why);
            }
            greeters.fetch_sub(1, Relaxed);
        });
    }
}

/// Hears who has come, and answers. Errors are about the connection, or say that it is a stranger.
fn greet(members: &Arc<Members>, mut stream: TcpStream, from: SocketAddr) -> io::Result<()> {
    let hello: Hello = {
        let mut patient = Patient::new(&stream);
        greeting::receive(&mut patient)?
    };
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(Some(GREETING))?;
    stream.set_nodelay(true)?;
    if hello.incarnation == members.incarnation {
        return Err(io::Error::other("it is this very process: the hostfile names it twice"));
    }
    let differences = differences(&members.settings, &hello.settings);
    if !differences.is_empty() {
        members.differs(hello.process, &differences);
        return greeting::send(&mut stream, &Answer::Differs(members.settings.clone()));
    }
    if hello.purpose == Purpose::Data {
        stream.set_write_timeout(None)?;
        return members
            .accept_data(&hello, stream, |mut stream, answer| greeting::send(&mut stream, answer));
    }
    match members.admit(hello.process, hello.incarnation, from) {
        Err(why) => {
            members.stranger(&format!("process {} from {from}", hello.process), &why);
            greeting::send(&mut stream, &Answer::Busy(why))
        }
        Ok(token) => {
            members.compare_clocks(hello.process, hello.clock_ms);
            let begun = greeting::send(&mut stream, &members.welcome())
                .and_then(|()| link::start(members, hello.process, token, stream));
            if let Err(why) = &begun {
                members.left(hello.process, token, &why.to_string());
            }
            begun
        }
    }
}

/// Dials every process before this one until it is here, and again if it goes before all are.
pub(super) fn dial(members: &Arc<Members>) {
    for process in 0..members.me {
        let members = Arc::clone(members);
        let work = move || {
            while members.phase() == Phase::Gathering && !members.control.failed() {
                if !members.is_here(process)
                    && let Err(why) = call(&members, process)
                {
                    members.trouble(process, why);
                }
                members.pause(REDIAL);
                thread::sleep(Duration::from_millis(20));
            }
        };
        thread::Builder::new()
            .name(format!("cluster-dial-{process}"))
            .spawn(work)
            .expect("a thread can be started");
    }
}

/// One try to get both connections to a process.
fn call(members: &Arc<Members>, process: usize) -> Result<(), String> {
    let (stream, place) = greet_at(members, process, Purpose::Watch)?;
    let token = members.admit(process, 0, place)?;
    let began = link::start(members, process, token, stream).map_err(|why| why.to_string());
    let data = began.and_then(|()| greet_at(members, process, Purpose::Data));
    match data {
        Ok((stream, _)) => {
            members.keep_data(process, token, stream);
            Ok(())
        }
        Err(why) => {
            members.left(process, token, &why);
            Err(why)
        }
    }
}

/// A connection on which the other side has said welcome.
fn greet_at(
    members: &Members,
    process: usize,
    purpose: Purpose,
) -> Result<(TcpStream, SocketAddr), String> {
    let (mut stream, place) = connect(&members.addresses[process])?;
    let ails = |why: io::Error| match why.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            "it takes the connection and does not answer".to_owned()
        }
        io::ErrorKind::InvalidData => format!("something else answers there: {why}"),
        _ => link::reason(&why, GREETING),
    };
    stream.set_nodelay(true).map_err(ails)?;
    stream.set_write_timeout(Some(GREETING)).map_err(ails)?;
    greeting::send(&mut stream, &members.hello(purpose)).map_err(ails)?;
    let answer = greeting::receive::<Answer>(&mut Patient::new(&stream)).map_err(ails)?;
    stream.set_read_timeout(None).map_err(ails)?;
    stream.set_write_timeout(None).map_err(ails)?;
    match answer {
        Answer::Welcome { clock_ms } => {
            // Once is enough: the data connection follows at once.
            if purpose == Purpose::Watch {
                members.compare_clocks(process, clock_ms);
            }
            Ok((stream, place))
        }
        Answer::Busy(why) => Err(format!("it does not take this process: {why}")),
        Answer::Differs(theirs) => {
            let differences = differences(&members.settings, &theirs);
            members.differs(process, &differences);
            Err("its settings are others".to_owned())
        }
    }
}

/// A connection to the first of the addresses of a name that takes one.
fn connect(address: &str) -> Result<(TcpStream, SocketAddr), String> {
    let mut last = "the name has no address".to_owned();
    for place in address.to_socket_addrs().map_err(|why| why.to_string())? {
        match TcpStream::connect_timeout(&place, CONNECT) {
            Ok(stream) => return Ok((stream, place)),
            Err(why) => last = why.to_string(),
        }
    }
    Err(last)
}

/// Reads with a limit on the whole, however slowly the bytes drip.
struct Patient<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl<'a> Patient<'a> {
    fn new(stream: &'a TcpStream) -> Self {
        Patient { stream, until: Instant::now() + GREETING }
    }
}

impl io::Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}
