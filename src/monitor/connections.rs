//! The open connections. Their number is bounded: when there are too many, the oldest is closed.
//! Streams are never closed to make room; they have a smaller bound of their own.

use std::collections::{BTreeMap, VecDeque};

use hyper::body::Bytes;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::AbortHandle;

/// The most connections.
pub const CONNECTIONS: usize = 128;
/// The most streams among them.
pub const STREAMS: usize = 32;
/// How many messages may wait for a slow reader; there is one a second.
const MESSAGES: usize = 10;

/// The connections of a port.
#[derive(Default)]
pub struct Connections {
    next: u64,
    /// The oldest first.
    all: VecDeque<u64>,
    tasks: BTreeMap<u64, AbortHandle>,
    streams: BTreeMap<u64, Sender<Bytes>>,
}

impl Connections {
    /// Adds a connection and returns its number. Another connection may be closed for it.
    pub fn enter(&mut self) -> u64 {
        while self.all.len() >= CONNECTIONS {
            let oldest = self.all.iter().position(|id| !self.streams.contains_key(id));
            let Some(oldest) = oldest.and_then(|at| self.all.get(at).copied()) else { break };
            self.end(oldest);
        }
        self.next += 1;
        self.all.push_back(self.next);
        self.next
    }

    /// Registers the task that serves a connection.
    pub fn driven_by(&mut self, id: u64, task: AbortHandle) {
        self.tasks.insert(id, task);
    }

    /// Removes a connection that has ended.
    pub fn left(&mut self, id: u64) {
        self.all.retain(|other| *other != id);
        self.tasks.remove(&id);
        self.streams.remove(&id);
    }

    fn end(&mut self, id: u64) {
        if let Some(task) = self.tasks.get(&id) {
            task.abort();
        }
        self.left(id);
    }

    /// Makes a connection a stream that begins with `first`; `None` if there are too many.
    pub fn stream(&mut self, id: u64, first: Bytes) -> Option<Receiver<Bytes>> {
        if self.streams.len() >= STREAMS {
            return None;
        }
        let (sender, receiver) = channel(MESSAGES);
        sender.try_send(first).ok()?;
        self.streams.insert(id, sender);
        Some(receiver)
    }

    /// Whether a connection is a stream.
    pub fn is_stream(&self, id: u64) -> bool {
        self.streams.contains_key(&id)
    }

    /// How many streams there are.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Sends a message to all streams. A reader that lags too far behind is disconnected.
    pub fn send(&mut self, bytes: &Bytes) {
        let slow = |(id, stream): (&u64, &Sender<Bytes>)| {
            stream.try_send(bytes.clone()).is_err().then_some(*id)
        };
        let slow: Vec<u64> = self.streams.iter().filter_map(slow).collect();
        slow.into_iter().for_each(|id| self.end(id));
    }

    /// Ends all streams, once everything sent so far has been delivered.
    pub fn end_streams(&mut self) {
        self.streams.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_but_no_stream() {
        let mut connections = Connections::default();
        let first = connections.enter();
        let _stream = connections.stream(first, Bytes::new()).expect("room for a stream");
        let ids: Vec<u64> = (0..2 * CONNECTIONS).map(|_| connections.enter()).collect();
        assert_eq!(connections.all.len(), CONNECTIONS);
        assert!(connections.all.contains(&first));
        assert!(!connections.all.contains(&ids[0]));
        assert!(connections.all.contains(&ids[ids.len() - 1]));
    }

    #[test]
    fn streams_are_few_and_a_slow_reader_is_dropped() {
        let mut connections = Connections::default();
        let ids: Vec<u64> = (0..=STREAMS).map(|_| connections.enter()).collect();
        let open = ids.iter().filter_map(|id| connections.stream(*id, Bytes::new()));
        let mut open: Vec<Receiver<Bytes>> = open.collect();
        assert_eq!((open.len(), connections.streams()), (STREAMS, STREAMS));
        for _ in 0..MESSAGES {
            connections.send(&Bytes::from_static(b"x"));
            while open[0].try_recv().is_ok() {}
        }
        assert_eq!(connections.streams(), 1);
    }
}
