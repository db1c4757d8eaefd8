//! A wire: the connection over which timely sends between two processes.
//!
//! Timely's network threads panic when a connection ends, and its workers wait for ever. Here
//! nothing of the kind gets as far as timely: the end of a connection is held back, and
//! [`Members`] ends the run instead, with a message that names the process.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread;

use timely::communication::allocator::zero_copy::stream::Stream;

use super::link::reason;
use super::members::Members;

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

    /// The connection has ended. If the process has done its work, or is about to say so, all is
    /// well. If its link ends as well, that ends the run, with what the link knows. If neither
    /// happens, only this connection was cut, and that ends the run, too. Then this thread of
    /// timely's never hears of it.
    fn ended(&self, why: &io::Error) {
        let patience = self.members.peer_timeout;
        if !self.members.is_done_within(self.process, patience) {
            self.members.lost(self.process, &reason(why, patience));
            loop {
                thread::park();
            }
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stream.read(buffer) {
            Ok(0) if !buffer.is_empty() => {
                self.ended(&io::ErrorKind::UnexpectedEof.into());
                Ok(0)
            }
            Err(why) if why.kind() != io::ErrorKind::Interrupted => {
                self.ended(&why);
                Ok(0)
            }
            read => read,
        }
    }
}

impl Write for Wire {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self.stream.write(buffer) {
            Err(why) if why.kind() != io::ErrorKind::Interrupted => {
                self.ended(&why);
                Ok(buffer.len()) // Whoever has done its work needs nothing any more.
            }
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
