//! How processes find each other: answering those that connect, and dialing the others.
//!
//! A connection that cannot prove that it belongs to the cluster is turned away with a line in the
//! log, and changes nothing. It has half a second for its first byte and five seconds for its whole
//! greeting.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::channel::{Channel, Socket};
use crate::cluster::greeting;
use crate::cluster::greeting::{GreetingReply, Hello, Purpose, differences, shown};
use crate::cluster::link;
use crate::cluster::listener::PendingSlot;
use crate::cluster::members::{ClusterPhase, Members};
use crate::cluster::wire::Ends;

/// How long a greeting may take.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long its first byte may take.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a dialer waits between tries.
const REDIAL_INTERVAL: Duration = Duration::from_millis(250);
/// How often the addresses of the hostfile are resolved while processes are missing.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(10);
/// How many characters are shown of a reason that another process gives.
const MAX_REASON: usize = 300;

/// Receives a greeting and answers it. An error means that the connection failed, or that the peer
/// is a stranger.
pub(super) fn greet(
    members: &Arc<Members>,
    stream: TcpStream,
    from: SocketAddr,
    slot: &mut PendingSlot,
) -> io::Result<()> {
    let socket = Socket::new(stream, GREETING_TIMEOUT)?;
    let first = socket.first_byte(FIRST_BYTE_TIMEOUT)?;
    slot.note_received();
    let (mut channel, proved) = members.protection.accept(socket, first)?;
    if proved.is_some() {
        slot.release();
    }
    if members.phase() != ClusterPhase::Gathering {
        // The cluster is complete: whatever the greeting holds, it is refused.
        greeting::receive_bytes(&mut channel)?;
        let why = format!("{} runs in a cluster that is complete", members.name(members.me));
        members.log_rejected(&from.to_string(), &why);
        return greeting::send(&mut channel, &GreetingReply::Busy(why));
    }
    let hello: Hello = greeting::receive(&mut channel)?;
    greeting::check(&hello.settings)?;
    slot.release();
    if hello.incarnation == members.incarnation {
        return Err(io::Error::other("it is this very process: the hostfile names it twice"));
    }
    if proved.is_some_and(|proved| proved != hello.process) {
        return Err(io::Error::other("it has the key of another process than it says it is"));
    }
    let differences = differences(&members.settings, &hello.settings);
    if !differences.is_empty() {
        members.claims_other_settings(hello.process, &differences);
        return greeting::send(&mut channel, &GreetingReply::Differs(members.settings.clone()));
    }
    match hello.purpose {
        Purpose::Watch => watch(members, &hello, channel, from),
        Purpose::Send | Purpose::Receive => members.accept_data(&hello, channel),
        Purpose::Compare => greeting::send(&mut channel, &members.welcome()),
    }
}

/// A process asks to watch this one, and to be watched.
fn watch(
    members: &Arc<Members>,
    hello: &Hello,
    mut channel: Channel,
    from: SocketAddr,
) -> io::Result<()> {
    match members.admit(hello.process, hello.incarnation, from) {
        Err(why) => {
            members.log_rejected(&format!("process {} from {from}", hello.process), &why);
            greeting::send(&mut channel, &GreetingReply::Busy(why))
        }
        Ok(token) => {
            members.compare_clocks(hello.process, hello.clock_ms);
            let begun = greeting::send(&mut channel, &members.welcome())
                .and_then(|()| link::start(members, hello.process, token, channel));
            if let Err(why) = &begun {
                members.left(hello.process, token, &why.to_string());
            }
            begun
        }
    }
}

/// Dials every process before this one until it is connected, and again if it leaves before the
/// cluster is complete. Processes after this one dial by themselves; they are dialed only when a
/// connection that claims to be one of them has other settings, to verify that.
pub(super) fn dial(members: &Arc<Members>) {
    let spawn = |name: String, work: Box<dyn FnOnce() + Send>| {
        let thread = thread::Builder::new().name(name);
        thread.spawn(work).expect("a thread can be started");
    };
    for process in 0..members.me {
        let members = Arc::clone(members);
        let work = move || {
            while members.phase() == ClusterPhase::Gathering && !members.run_state.failed() {
                if !members.is_here(process)
                    && let Err(why) = call(&members, process)
                {
                    members.trouble(process, why);
                }
                members.pause(REDIAL_INTERVAL);
                thread::sleep(Duration::from_millis(20));
            }
        };
        spawn(format!("cluster-dial-{process}"), Box::new(work));
    }
    let members = Arc::clone(members);
    let work = move || {
        let mut resolved: Option<Instant> = None;
        while members.phase() == ClusterPhase::Gathering && !members.run_state.failed() {
            if resolved.is_none_or(|since| since.elapsed() >= RESOLVE_INTERVAL) {
                let ip = |address: &String| address.to_socket_addrs().ok();
                let all = members.addresses.iter().filter_map(ip).flatten();
                members.set_peer_ips(all.map(|address| address.ip()).collect());
                resolved = Some(Instant::now());
            }
            for process in members.me + 1..members.addresses.len() {
                if members.is_to_be_compared(process) {
                    compare(&members, process);
                }
            }
            thread::sleep(REDIAL_INTERVAL);
        }
    };
    spawn("cluster-compare".to_owned(), Box::new(work));
}

/// Tries once to make all connections to a process.
fn call(members: &Arc<Members>, process: usize) -> Result<(), String> {
    let (channel, address) = greet_at(members, process, Purpose::Watch)?;
    let token = members.admit(process, 0, address)?;
    let began = link::start(members, process, token, channel).map_err(|why| why.to_string());
    let both = || {
        let (outbound, _) = greet_at(members, process, Purpose::Send)?;
        let (inbound, _) = greet_at(members, process, Purpose::Receive)?;
        Ok(Ends { outbound, inbound })
    };
    match began.and_then(|()| both()) {
        Ok(ends) => {
            members.keep_data(process, token, ends);
            Ok(())
        }
        Err(why) => {
            members.left(process, token, &why);
            Err(why)
        }
    }
}

/// Asks the address of a process whether its settings are the same.
fn compare(members: &Members, process: usize) {
    if greet_at(members, process, Purpose::Compare).is_ok() {
        members.has_same_settings(process);
    }
}

/// Opens a connection, and returns it once the other side has welcomed it.
fn greet_at(
    members: &Members,
    process: usize,
    purpose: Purpose,
) -> Result<(Channel, SocketAddr), String> {
    let (stream, address) = connect(&members.addresses[process])?;
    let failed = |why: io::Error| match why.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            "it takes the connection and does not answer".to_owned()
        }
        io::ErrorKind::InvalidData => why.to_string(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "it closes the connection without an answer (it is shutting down, or only one of the \
             two has a cluster secret)"
                .to_owned()
        }
        _ => link::reason(&why, GREETING_TIMEOUT),
    };
    let socket = Socket::new(stream, GREETING_TIMEOUT).map_err(failed)?;
    let mut channel = members.protection.connect(socket, members.me, process).map_err(failed)?;
    greeting::send(&mut channel, &members.hello(purpose)).map_err(failed)?;
    match greeting::receive::<GreetingReply>(&mut channel).map_err(failed)? {
        GreetingReply::Welcome { clock_ms } => {
            // Comparing once is enough: the data connections follow at once.
            if purpose == Purpose::Watch {
                members.compare_clocks(process, clock_ms);
            }
            Ok((channel, address))
        }
        GreetingReply::Busy(why) => {
            Err(format!("it does not take this process: {}", shown(&why, MAX_REASON)))
        }
        GreetingReply::Differs(theirs) => {
            greeting::check(&theirs).map_err(failed)?;
            let differences = differences(&members.settings, &theirs);
            members.has_other_settings(process, &differences);
            Err(format!("its settings differ: {}", differences.join("; ")))
        }
    }
}

/// Connects to the first address of a name that accepts.
fn connect(address: &str) -> Result<(TcpStream, SocketAddr), String> {
    let mut last = "the name has no address".to_owned();
    for address in address.to_socket_addrs().map_err(|why| why.to_string())? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok((stream, address)),
            Err(why) => last = why.to_string(),
        }
    }
    Err(last)
}
