//! A wire: the connection over which timely sends between two processes.
//!
//! Timely's network threads panic when a connection ends, and its workers wait for ever. Here
//! nothing of the kind gets as far as timely: the end of a connection is held back, and
//! [`Members`] ends the run instead, with a message that names the process.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use timely::communication::allocator::zero_copy::stream::Stream;

use super::link::reason;
use super::members::Members;

/// How long a process whose data connection has ended has to say that all is well, or for its
/// link to say what is not.
const EXPLANATION: Duration = Duration::from_secs(1);

/// A connection to one process.
pub struct Wire {
    stream: TcpStream,
    process: usize,
    members: Arc<Members>,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, process: usize, members: &Arc<Members>) -> Self {
        Wire { stream, process, members: Arc::clone(members) }
    }

    /// The connection has ended without need: the run ends, and this thread of timely's never
    /// hears of it.
    fn broken(&self, why: &io::Error) -> ! {
        thread::sleep(EXPLANATION); // The link knows better; it is heard first.
        self.members.lost(self.process, &reason(why, self.members.peer_timeout));
        loop {
            thread::park();
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stream.read(buffer) {
            Ok(0) if !buffer.is_empty() => {
                if self.members.is_done_soon(self.process, EXPLANATION) {
                    return Ok(0);
                }
                self.broken(&io::ErrorKind::UnexpectedEof.into())
            }
            Err(why) if why.kind() != io::ErrorKind::Interrupted => self.broken(&why),
            read => read,
        }
    }
}

impl Write for Wire {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self.stream.write(buffer) {
            Err(why) if why.kind() != io::ErrorKind::Interrupted => self.broken(&why),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Stream for Wire {
    fn try_clone(&self) -> io::Result<Self> {
        let stream = self.stream.try_clone()?;
        Ok(Wire { stream, process: self.process, members: Arc::clone(&self.members) })
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.stream.set_nonblocking(nonblocking)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        // Who has gone already needs no goodbye.
        self.stream.shutdown(how).or(Ok(()))
    }
}
