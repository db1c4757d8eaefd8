//! A wire carries timely's data between two processes. It has two connections, one for each
//! direction, because an encrypted connection has one owner at a time.
//!
//! Timely's network threads panic when a connection ends before timely's own end marker, and its
//! workers then wait for ever. The wire never passes such an end on to timely: it holds it back,
//! and [`Members`] ends the run instead, with a message that names the process. If the work was
//! done by then, nothing is missing, and the run ends normally.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use timely::communication::allocator::zero_copy::stream::Stream;

use crate::cluster::channel::Channel;
use crate::cluster::link::reason;
use crate::cluster::members::Members;

/// The size of timely's message header, and where in it the length of the rest is.
const HEADER_BYTES: usize = 48;
const LENGTH_AT: usize = 32;

/// The connections to one process, shared by the sending and the receiving thread.
#[derive(Clone)]
pub struct Wire {
    outbound: Arc<Mutex<Channel>>,
    inbound: Arc<Mutex<Inbound>>,
    /// Stops the reading thread from another thread.
    stop_reading: Arc<TcpStream>,
    process: usize,
    members: Arc<Members>,
}

struct Inbound {
    channel: Channel,
    frames: Frames,
}

/// Both connections of a wire, before timely takes them.
#[derive(Debug)]
pub(super) struct Ends {
    pub outbound: Channel,
    pub inbound: Channel,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wire {
    pub(super) fn new(ends: Ends, process: usize, members: &Arc<Members>) -> io::Result<Self> {
        let Ends { mut outbound, mut inbound } = ends;
        outbound.greeted(None, None)?;
        inbound.greeted(None, None)?;
        let stop_reading = Arc::new(inbound.handle()?);
        let inbound = Inbound { channel: inbound, frames: Frames::new() };
        Ok(Wire {
            outbound: Arc::new(Mutex::new(outbound)),
            inbound: Arc::new(Mutex::new(inbound)),
            stop_reading,
            process,
            members: Arc::clone(members),
        })
    }

    /// A connection has ended before timely's own end marker. If this process has done its work, or
    /// is about to, all is well. If the link ends too, the run ends with the reason that the link
    /// knows. Otherwise only this connection was cut, and that ends the run as well. In every case,
    /// this timely thread never hears of it.
    fn cut(&self, why: &io::Error) -> ! {
        let timeout = self.members.peer_timeout;
        // Data that does not decrypt needs no further explanation.
        let forged = why.kind() == io::ErrorKind::InvalidData;
        if forged || !self.members.is_finished_within(timeout) {
            self.members.lost(self.process, &reason(why, timeout));
        }
        loop {
            thread::park();
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let why = {
            let Inbound { channel, frames } = &mut *lock(&self.inbound);
            if frames.ended() || buffer.is_empty() {
                return Ok(0); // Nothing follows timely's end marker.
            }
            loop {
                match channel.read(buffer) {
                    Ok(0) => break io::Error::from(io::ErrorKind::UnexpectedEof),
                    Ok(read) => {
                        frames.pass(&buffer[..read]);
                        return Ok(read);
                    }
                    // Timely would panic.
                    Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                    Err(why) => break why,
                }
            }
        };
        self.cut(&why)
    }
}

impl Write for Wire {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = lock(&self.outbound).write(buffer);
        match written {
            Err(why) if why.kind() != io::ErrorKind::Interrupted => {
                // A process that has done its work needs nothing more, and one that misses the last
                // data of this process will notice by itself.
                if self.members.is_finished() || self.members.is_done(self.process) {
                    return Ok(buffer.len());
                }
                self.cut(&why)
            }
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Wire {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(self.clone())
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match nonblocking {
            false => Ok(()),
            true => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Read {
            lock(&self.outbound).close();
        }
        if how != Shutdown::Write {
            // Shutting down fails if the peer has already left.
            let _ = self.stop_reading.shutdown(Shutdown::Both);
        }
        Ok(())
    }
}

/// Follows timely's messages, to tell timely's own end from a cut connection. A message is a header
/// and as many bytes as it announces; the end is a header that announces none.
struct Frames {
    header: [u8; HEADER_BYTES],
    /// How much of the header has arrived.
    known: usize,
    /// How much of the message is still to come.
    rest: usize,
    ended: bool,
}

impl Frames {
    fn new() -> Self {
        Frames { header: [0; HEADER_BYTES], known: 0, rest: 0, ended: false }
    }

    /// Whether the end marker has arrived.
    fn ended(&self) -> bool {
        self.ended
    }

    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.ended {
            if self.rest > 0 {
                let passed = self.rest.min(bytes.len());
                self.rest -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            let taken = (HEADER_BYTES - self.known).min(bytes.len());
            self.header[self.known..self.known + taken].copy_from_slice(&bytes[..taken]);
            self.known += taken;
            bytes = &bytes[taken..];
            if self.known == HEADER_BYTES {
                self.known = 0;
                let length = self.header[LENGTH_AT..].first_chunk().expect("a header is longer");
                self.rest = u64::from_be_bytes(*length) as usize;
                self.ended = self.rest == 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use timely::communication::networking::MessageHeader;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (target_lower, target_upper) = (1, 2);
        let header =
            MessageHeader { channel: 3, source: 0, target_lower, target_upper, length, seqno: 7 };
        header.write_to(&mut bytes).expect("writing to a vector cannot fail");
        bytes.resize(bytes.len() + length, 0);
        bytes
    }

    #[test]
    fn timelys_end_is_known_however_its_messages_are_cut_into_pieces() {
        let mut all = Vec::new();
        // A message of zeros looks like the end marker but is not.
        for length in [1, 48, 5_000, 96] {
            all.extend(message(length));
        }
        let before = all.len();
        all.extend(message(0));
        for piece in [1, 7, 47, 48, 49, 4_096, 10_000] {
            let mut frames = Frames::new();
            all[..all.len() - 1].chunks(piece).for_each(|bytes| frames.pass(bytes));
            assert!(!frames.ended(), "pieces of {piece}: not before the last byte");
            frames.pass(&all[all.len() - 1..]);
            assert!(frames.ended(), "pieces of {piece}");
        }
        let mut frames = Frames::new();
        frames.pass(&all[..before]);
        assert!(!frames.ended());
    }

    #[test]
    fn fuzz_frames() {
        let seed: Vec<u8> = (0..200u8).collect();
        crate::shared::mutate::fuzz(&[&seed, &[0; 120]], &[&[0; 8], &[0xff; 8]], |bytes| {
            let (mut at_once, mut in_pieces) = (Frames::new(), Frames::new());
            at_once.pass(bytes);
            bytes.chunks(7).for_each(|piece| in_pieces.pass(piece));
            assert_eq!(at_once.ended(), in_pieces.ended(), "{bytes:?}");
        });
    }
}
