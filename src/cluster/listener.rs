//! The listener of a process, and the connections that have not yet proved who they are.
//!
//! Anybody may connect, so few connections may be pending, and fewer from each address. If there is
//! no slot, a connection that has been pending for a while and has sent nothing is dropped. If none
//! has been pending for long, connections from addresses of the hostfile wait to be admitted, in
//! order of arrival; others are turned away. So a crowd of silent connections delays a start by a
//! moment and no more: our own processes identify themselves at once.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::ControlFlow::{Break, Continue};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, warn};
use sessionizer_core::fault::Fault;

use crate::cluster::gather;
use crate::cluster::members::{ClusterPhase, Members};
use crate::retry;

/// How many connections may be pending.
const MAX_PENDING: usize = 64;
/// How many of them may come from one address.
const MAX_PENDING_PER_ADDRESS: usize = 16;
/// How long a connection that has sent nothing yet is guaranteed its slot.
const SILENT_GRACE: Duration = Duration::from_millis(100);
/// How long a connection that has begun to send keeps it.
const SENDING_GRACE: Duration = Duration::from_secs(1);
/// How often a connection that waits to be admitted looks for a free slot.
const SLOT_CHECK_INTERVAL: Duration = Duration::from_millis(5);
/// How long the connection that wakes the listener may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause between attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// A port on which this process listens, until it is closed.
pub(super) struct Listener {
    address: SocketAddr,
}

impl Listener {
    /// Wakes the listening thread, which then sees that it is closed.
    pub fn close(&self) {
        drop(TcpStream::connect_timeout(&self.address, CONNECT_TIMEOUT));
    }
}

/// Listens on this process's own address, and on no other. An instance that is just ending may
/// still hold the address, and its host name may resolve only a moment later. Returns `None` if the
/// run is to stop first.
pub(super) fn listen(
    members: &Arc<Members>,
    timeout: Duration,
    loopback_only: bool,
) -> Result<Option<Listener>, Fault> {
    let address = &members.addresses[members.me];
    let Some(listener) = bind(members, timeout)? else { return Ok(None) };
    let failed = |why: io::Error| Fault::environment(format!("cannot listen on {address}: {why}"));
    let local = listener.local_addr().map_err(failed)?;
    if loopback_only && !local.ip().is_loopback() {
        return Err(Fault::config(format!(
            "{address} is {} here, which is not on loopback: {}",
            local.ip(),
            crate::cluster::NEEDS_SECRET
        )));
    }
    let ours = Arc::clone(members);
    let thread = thread::Builder::new().name("cluster-listen".to_owned());
    thread.spawn(move || accept(&ours, &listener)).map_err(failed)?;
    Ok(Some(Listener { address: local }))
}

fn bind(members: &Members, timeout: Duration) -> Result<Option<TcpListener>, Fault> {
    let address = &members.addresses[members.me];
    let mut is_reported = false;
    let attempt = || {
        let why = match TcpListener::bind(address.as_str()) {
            Ok(listener) => return Break(Ok(Some(listener))),
            Err(why) => why,
        };
        if why.kind() == io::ErrorKind::PermissionDenied {
            return Break(Err(why));
        }
        if members.run_state.ending() {
            return Break(Ok(None));
        }
        if !timeout.is_zero() && !std::mem::replace(&mut is_reported, true) {
            warn!("cannot listen on {address}: {why}; trying again for {timeout:?}");
        }
        Continue(why)
    };
    retry::until(timeout, RETRY_INTERVAL, attempt).unwrap_or_else(Err).map_err(|why| {
        let hint = match why.kind() {
            io::ErrorKind::AddrNotAvailable => {
                ". This machine does not have the address: is --process right?"
            }
            io::ErrorKind::AddrInUse => ". Another program has it, or a process of this job",
            _ => "",
        };
        let me = members.me;
        let what = format!(
            "cannot listen on {address}, the address of process {me} in the hostfile: {why}{hint}"
        );
        let is_retryable = why.kind() == io::ErrorKind::AddrInUse;
        if is_retryable { Fault::environment(what) } else { Fault::config(what) }
    })
}

fn accept(members: &Arc<Members>, listener: &TcpListener) {
    let pending = Arc::new(Mutex::new(PendingConnections::default()));
    loop {
        let accepted = listener.accept();
        if members.phase() == ClusterPhase::Closed {
            return;
        }
        let accepted = accepted.and_then(|(stream, from)| Ok((stream.try_clone()?, stream, from)));
        let (handle, stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(why) => {
                // For example, out of file descriptors: that passes, and must not use up the
                // processor.
                warn!("cannot take a connection: {why}");
                thread::sleep(RETRY_INTERVAL);
                continue;
            }
        };
        let mut handle = Some(handle);
        let id = loop {
            let peers = members.peer_ips();
            let admission = lock(&pending).admit(&mut handle, from.ip(), &peers, Instant::now());
            match admission {
                Admission::Admitted(id) => break id,
                Admission::Full => break 0,
                Admission::Wait => thread::sleep(SLOT_CHECK_INTERVAL),
            }
            if members.phase() == ClusterPhase::Closed {
                return;
            }
        };
        if id == 0 {
            members.log_rejected(&from.to_string(), "too many come at once");
            continue;
        }
        let members = Arc::clone(members);
        let mut slot = PendingSlot { pending: Arc::clone(&pending), id: Some(id) };
        let thread = thread::Builder::new().name("cluster-greet".to_owned());
        // If no thread can be started, the stream is dropped with the closure: turned away.
        let _ = thread.spawn(move || {
            if let Err(why) = gather::greet(&members, stream, from, &mut slot) {
                let why = match why.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        "it says nothing".to_owned()
                    }
                    io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
                    _ => why.to_string(),
                };
                members.log_rejected(&from.to_string(), &why);
            }
        });
    }
}

fn lock(pending: &Mutex<PendingConnections>) -> MutexGuard<'_, PendingConnections> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The slot of a pending connection, until it is released.
pub(super) struct PendingSlot {
    pending: Arc<Mutex<PendingConnections>>,
    id: Option<u64>,
}

impl PendingSlot {
    /// Notes that the connection has sent something.
    pub fn note_received(&mut self) {
        for connection in lock(&self.pending).connections.iter_mut() {
            connection.has_sent |= Some(connection.id) == self.id;
        }
    }

    /// A connection that has proved who it is no longer needs a slot.
    pub fn release(&mut self) {
        if let Some(id) = self.id.take() {
            lock(&self.pending).connections.retain(|connection| connection.id != id);
        }
    }
}

impl Drop for PendingSlot {
    fn drop(&mut self) {
        self.release();
    }
}

/// The pending connections, in order of arrival.
#[derive(Default)]
struct PendingConnections {
    connections: Vec<Pending>,
    last_id: u64,
}

struct Pending {
    id: u64,
    from: IpAddr,
    since: Instant,
    has_sent: bool,
    /// Ends the connection, and with it its thread. `None` in tests.
    handle: Option<TcpStream>,
}

impl Pending {
    /// Whether its guaranteed time is over.
    fn may_be_evicted(&self, now: Instant) -> bool {
        let grace = if self.has_sent { SENDING_GRACE } else { SILENT_GRACE };
        now.duration_since(self.since) >= grace
    }
}

/// The answer to a new connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Admission {
    /// Admitted, with this number; numbers count from 1.
    Admitted(u64),
    /// There is no slot yet, but there will be soon.
    Wait,
    /// There is no slot.
    Full,
}

impl PendingConnections {
    /// Gives a slot to a connection from this address, if there is one.
    fn admit(
        &mut self,
        handle: &mut Option<TcpStream>,
        from: IpAddr,
        peers: &BTreeSet<IpAddr>,
        now: Instant,
    ) -> Admission {
        let of_one = self.connections.iter().filter(|connection| connection.from == from).count();
        let crowded = of_one >= MAX_PENDING_PER_ADDRESS;
        if crowded || self.connections.len() >= MAX_PENDING {
            let evicted = self.first_to_evict(crowded.then_some(from), peers, now);
            let Some(evicted) = evicted else {
                return if peers.contains(&from) { Admission::Wait } else { Admission::Full };
            };
            let connection = self.connections.remove(evicted);
            debug!("{} has to make room for others who connect", connection.from);
            if let Some(handle) = connection.handle {
                let _ = handle.shutdown(Shutdown::Both);
            }
        }
        self.last_id += 1;
        let (id, handle) = (self.last_id, handle.take());
        self.connections.push(Pending { id, from, since: now, has_sent: false, handle });
        Admission::Admitted(id)
    }

    /// Which connection to drop to make room, of one address or of all: first those not from the
    /// hostfile, then those that have sent nothing, and among these the one that came first.
    fn first_to_evict(
        &self,
        of: Option<IpAddr>,
        peers: &BTreeSet<IpAddr>,
        now: Instant,
    ) -> Option<usize> {
        let fits = |connection: &Pending| {
            of.is_none_or(|of| of == connection.from) && connection.may_be_evicted(now)
        };
        let all = self.connections.iter().enumerate().filter(|(_, connection)| fits(connection));
        let rank = |(at, connection): &(usize, &Pending)| {
            (peers.contains(&connection.from), connection.has_sent, *at)
        };
        all.min_by_key(rank).map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn ip(last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))
    }

    fn pending_from(pending: &PendingConnections, ip: IpAddr) -> usize {
        pending.connections.iter().filter(|connection| connection.from == ip).count()
    }

    #[test]
    fn a_crowd_from_one_address_evicts_only_its_own() {
        let (mut pending, peers) = (PendingConnections::default(), BTreeSet::from([ip(1)]));
        let begin = Instant::now();
        let mut admit = |who, ms| {
            let now = begin + Duration::from_millis(ms);
            pending.admit(&mut None, ip(who), &peers, now)
        };
        assert_eq!(admit(1, 0), Admission::Admitted(1));
        let (mut admitted, mut full) = (0, 0);
        for ms in 0..1_000 {
            match admit(66, ms) {
                Admission::Admitted(_) => admitted += 1,
                Admission::Full => full += 1,
                Admission::Wait => panic!("a stranger does not wait"),
            }
        }
        assert_eq!((admitted, full), (160, 840), "a slot each for a tenth of a second");
        assert_eq!(
            (pending_from(&pending, ip(1)), pending_from(&pending, ip(66))),
            (1, MAX_PENDING_PER_ADDRESS)
        );
    }

    #[test]
    fn an_address_of_the_hostfile_waits_for_a_slot() {
        let (mut pending, peers) = (PendingConnections::default(), BTreeSet::from([ip(1)]));
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        for _ in 0..MAX_PENDING_PER_ADDRESS {
            assert!(matches!(
                pending.admit(&mut None, ip(1), &peers, begin),
                Admission::Admitted(_)
            ));
        }
        assert_eq!(pending.admit(&mut None, ip(1), &peers, at(99)), Admission::Wait);
        assert_eq!(pending.admit(&mut None, ip(1), &peers, at(100)), Admission::Admitted(17));
        assert_eq!(pending.connections[0].id, 2, "the oldest has gone");
        // A connection that has sent something has more time.
        pending
            .connections
            .iter_mut()
            .for_each(|connection| connection.has_sent = connection.id > 2);
        assert_eq!(pending.admit(&mut None, ip(1), &peers, at(150)), Admission::Admitted(18));
        assert_eq!(pending.admit(&mut None, ip(1), &peers, at(150)), Admission::Wait);
        assert_eq!(pending.admit(&mut None, ip(1), &peers, at(250)), Admission::Admitted(19));
        assert_eq!(pending.connections[0].id, 3, "the silent one has gone");
    }

    #[test]
    fn addresses_of_the_hostfile_come_first() {
        let (mut pending, peers) =
            (PendingConnections::default(), BTreeSet::from([ip(1), ip(2), ip(3), ip(4)]));
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        for stranger in 100..=250 {
            pending.admit(&mut None, ip(stranger), &peers, begin);
        }
        assert_eq!(pending.connections.len(), MAX_PENDING);
        for peer in 1..=4 {
            for _ in 0..MAX_PENDING_PER_ADDRESS {
                let admission = pending.admit(&mut None, ip(peer), &peers, at(200));
                assert!(matches!(admission, Admission::Admitted(_)));
            }
        }
        assert!(pending.connections.iter().all(|connection| peers.contains(&connection.from)));
        assert_eq!(pending.admit(&mut None, ip(100), &peers, at(250)), Admission::Full);
        assert_eq!(pending.admit(&mut None, ip(1), &peers, at(250)), Admission::Wait);
        assert_eq!(pending.connections.len(), MAX_PENDING);
    }
}
