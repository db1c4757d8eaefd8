//! The door of a process: its listener, and the hall, where connections wait until they have proved
//! who they are.
//!
//! Anybody may connect, so the hall has few places, and fewer for each address. If there is no
//! place, a connection that has been there for a while and has sent nothing is dropped. If none has
//! been there for long, connections from addresses of the hostfile wait outside, in order of
//! arrival; others are turned away. So a crowd of silent connections delays a start by a moment and
//! no more: our own processes identify themselves at once.

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
use crate::cluster::members::{Members, Phase};
use crate::retry;

/// How many connections the hall holds.
const PLACES: usize = 64;
/// How many of them from one address.
const PLACES_EACH: usize = 16;
/// How long a connection that has sent nothing yet is guaranteed its place.
const SILENT_GRACE: Duration = Duration::from_millis(100);
/// How long a connection that has begun to send keeps it.
const SPEAKING_GRACE: Duration = Duration::from_secs(1);
/// How often a connection outside looks for a free place.
const OUTSIDE: Duration = Duration::from_millis(5);
/// How long the connection that wakes the listener may take.
const CONNECT: Duration = Duration::from_secs(2);
/// The pause between tries.
const AGAIN: Duration = Duration::from_millis(250);

/// A port on which this process listens, until it is closed.
pub(super) struct Listener {
    address: SocketAddr,
}

impl Listener {
    /// Wakes the listening thread, which then sees that it is closed.
    pub fn close(&self) {
        drop(TcpStream::connect_timeout(&self.address, CONNECT));
    }
}

/// Listens on this process's own address, and on no other. An instance that is just ending may
/// still hold the address, and its host name may resolve only a moment later. Returns `None` if the
/// run is to stop first.
pub(super) fn listen(
    members: &Arc<Members>,
    patience: Duration,
    loopback_only: bool,
) -> Result<Option<Listener>, Fault> {
    let address = &members.addresses[members.me];
    let Some(listener) = bind(members, patience)? else { return Ok(None) };
    let failed = |why: io::Error| Fault::Environment(format!("cannot listen on {address}: {why}"));
    let place = listener.local_addr().map_err(failed)?;
    if loopback_only && !place.ip().is_loopback() {
        return Err(Fault::Config(format!(
            "{address} is {} here, which is not on loopback: {}",
            place.ip(),
            crate::cluster::NEEDS_SECRET
        )));
    }
    let ours = Arc::clone(members);
    let thread = thread::Builder::new().name("cluster-listen".to_owned());
    thread.spawn(move || accept(&ours, &listener)).map_err(failed)?;
    Ok(Some(Listener { address: place }))
}

fn bind(members: &Members, patience: Duration) -> Result<Option<TcpListener>, Fault> {
    let address = &members.addresses[members.me];
    let mut told = false;
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
        if !patience.is_zero() && !std::mem::replace(&mut told, true) {
            warn!("cannot listen on {address}: {why}; trying again for {patience:?}");
        }
        Continue(why)
    };
    retry::until(patience, AGAIN, attempt).unwrap_or_else(Err).map_err(|why| {
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
        if is_retryable { Fault::Environment(what) } else { Fault::Config(what) }
    })
}

fn accept(members: &Arc<Members>, listener: &TcpListener) {
    let hall = Arc::new(Mutex::new(Hall::default()));
    loop {
        let accepted = listener.accept();
        if members.phase() == Phase::Closed {
            return;
        }
        let entered = accepted.and_then(|(stream, from)| Ok((stream.try_clone()?, stream, from)));
        let (handle, stream, from) = match entered {
            Ok(entered) => entered,
            Err(why) => {
                // For example, out of file descriptors: that passes, and must not use up the
                // processor.
                warn!("cannot take a connection: {why}");
                thread::sleep(AGAIN);
                continue;
            }
        };
        let mut handle = Some(handle);
        let place = loop {
            let peers = members.peer_ips();
            let entry = lock(&hall).enter(&mut handle, from.ip(), &peers, Instant::now());
            match entry {
                Entry::Place(place) => break place,
                Entry::Full => break 0,
                Entry::Wait => thread::sleep(OUTSIDE),
            }
            if members.phase() == Phase::Closed {
                return;
            }
        };
        if place == 0 {
            members.stranger(&from.to_string(), "too many come at once");
            continue;
        }
        let members = Arc::clone(members);
        let mut place = Place { hall: Arc::clone(&hall), place: Some(place) };
        let thread = thread::Builder::new().name("cluster-greet".to_owned());
        // If no thread can be started, the stream is dropped with the closure: turned away.
        let _ = thread.spawn(move || {
            if let Err(why) = gather::greet(&members, stream, from, &mut place) {
                let why = match why.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        "it says nothing".to_owned()
                    }
                    io::ErrorKind::UnexpectedEof => "it has gone again".to_owned(),
                    _ => why.to_string(),
                };
                members.stranger(&from.to_string(), &why);
            }
        });
    }
}

fn lock(hall: &Mutex<Hall>) -> MutexGuard<'_, Hall> {
    hall.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place in the hall, until it is left.
pub(super) struct Place {
    hall: Arc<Mutex<Hall>>,
    place: Option<u64>,
}

impl Place {
    /// Notes that the connection has sent something.
    pub fn spoke(&mut self) {
        for guest in lock(&self.hall).guests.iter_mut() {
            guest.spoke |= Some(guest.place) == self.place;
        }
    }

    /// A connection that has proved who it is no longer needs a place.
    pub fn leave(&mut self) {
        if let Some(place) = self.place.take() {
            lock(&self.hall).guests.retain(|guest| guest.place != place);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The connections in the hall, in order of arrival.
#[derive(Default)]
struct Hall {
    guests: Vec<Guest>,
    places: u64,
}

struct Guest {
    place: u64,
    from: IpAddr,
    since: Instant,
    spoke: bool,
    /// Ends the connection, and with it its thread. `None` in tests.
    handle: Option<TcpStream>,
}

impl Guest {
    /// Whether its guaranteed time is over.
    fn may_go(&self, now: Instant) -> bool {
        let grace = if self.spoke { SPEAKING_GRACE } else { SILENT_GRACE };
        now.duration_since(self.since) >= grace
    }
}

/// The answer to a new connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    /// A place; places are numbered from 1.
    Place(u64),
    /// No place yet, but soon.
    Wait,
    /// No place.
    Full,
}

impl Hall {
    /// Gives a place to a connection from this address, if there is one.
    fn enter(
        &mut self,
        handle: &mut Option<TcpStream>,
        from: IpAddr,
        peers: &BTreeSet<IpAddr>,
        now: Instant,
    ) -> Entry {
        let of_one = self.guests.iter().filter(|guest| guest.from == from).count();
        let crowded = of_one >= PLACES_EACH;
        if crowded || self.guests.len() >= PLACES {
            let leaves = self.who_leaves(crowded.then_some(from), peers, now);
            let Some(leaves) = leaves else {
                return if peers.contains(&from) { Entry::Wait } else { Entry::Full };
            };
            let guest = self.guests.remove(leaves);
            debug!("{} has to make room for others who connect", guest.from);
            if let Some(handle) = guest.handle {
                let _ = handle.shutdown(Shutdown::Both);
            }
        }
        self.places += 1;
        let (place, handle) = (self.places, handle.take());
        self.guests.push(Guest { place, from, since: now, spoke: false, handle });
        Entry::Place(place)
    }

    /// Which connection must leave to make room, of one address or of all: first those not from the
    /// hostfile, then those that have sent nothing, and among these the one that came first.
    fn who_leaves(
        &self,
        of: Option<IpAddr>,
        peers: &BTreeSet<IpAddr>,
        now: Instant,
    ) -> Option<usize> {
        let fits = |guest: &Guest| of.is_none_or(|of| of == guest.from) && guest.may_go(now);
        let all = self.guests.iter().enumerate().filter(|(_, guest)| fits(guest));
        let rank = |(at, guest): &(usize, &Guest)| (peers.contains(&guest.from), guest.spoke, *at);
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

    fn from(hall: &Hall, ip: IpAddr) -> usize {
        hall.guests.iter().filter(|guest| guest.from == ip).count()
    }

    #[test]
    fn a_crowd_from_one_address_drives_only_itself_out() {
        let (mut hall, peers) = (Hall::default(), BTreeSet::from([ip(1)]));
        let begin = Instant::now();
        let mut enter = |who, ms| {
            let now = begin + Duration::from_millis(ms);
            hall.enter(&mut None, ip(who), &peers, now)
        };
        assert_eq!(enter(1, 0), Entry::Place(1));
        let (mut places, mut full) = (0, 0);
        for ms in 0..1_000 {
            match enter(66, ms) {
                Entry::Place(_) => places += 1,
                Entry::Full => full += 1,
                Entry::Wait => panic!("a stranger holds up nobody"),
            }
        }
        assert_eq!((places, full), (160, 840), "a place each for a tenth of a second");
        assert_eq!((from(&hall, ip(1)), from(&hall, ip(66))), (1, PLACES_EACH));
    }

    #[test]
    fn whoever_comes_from_an_address_of_the_hostfile_waits_for_its_turn() {
        let (mut hall, peers) = (Hall::default(), BTreeSet::from([ip(1)]));
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        for _ in 0..PLACES_EACH {
            assert!(matches!(hall.enter(&mut None, ip(1), &peers, begin), Entry::Place(_)));
        }
        assert_eq!(hall.enter(&mut None, ip(1), &peers, at(99)), Entry::Wait);
        assert_eq!(hall.enter(&mut None, ip(1), &peers, at(100)), Entry::Place(17));
        assert_eq!(hall.guests[0].place, 2, "the oldest has gone");
        // A connection that has sent something has more time.
        hall.guests.iter_mut().for_each(|guest| guest.spoke = guest.place > 2);
        assert_eq!(hall.enter(&mut None, ip(1), &peers, at(150)), Entry::Place(18));
        assert_eq!(hall.enter(&mut None, ip(1), &peers, at(150)), Entry::Wait);
        assert_eq!(hall.enter(&mut None, ip(1), &peers, at(250)), Entry::Place(19));
        assert_eq!(hall.guests[0].place, 3, "the silent one has gone");
    }

    #[test]
    fn addresses_of_the_hostfile_come_first() {
        let (mut hall, peers) = (Hall::default(), BTreeSet::from([ip(1), ip(2), ip(3), ip(4)]));
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        for stranger in 100..=250 {
            hall.enter(&mut None, ip(stranger), &peers, begin);
        }
        assert_eq!(hall.guests.len(), PLACES);
        for peer in 1..=4 {
            for _ in 0..PLACES_EACH {
                let entry = hall.enter(&mut None, ip(peer), &peers, at(200));
                assert!(matches!(entry, Entry::Place(_)));
            }
        }
        assert!(hall.guests.iter().all(|guest| peers.contains(&guest.from)));
        assert_eq!(hall.enter(&mut None, ip(100), &peers, at(250)), Entry::Full);
        assert_eq!(hall.enter(&mut None, ip(1), &peers, at(250)), Entry::Wait);
        assert_eq!(hall.guests.len(), PLACES);
    }
}
