//! A link: the connection on which two processes watch each other. Each side sends a sign of life a
//! few times a second, and whatever the other must know at once: that it stops, fails or is done.
//!
//! A process that dies closes the connection; one that hangs or is cut off falls silent. Either way
//! [`Members`] is notified, and decides what that means.

use std::io::{self, Read};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, info};
use serde::{Deserialize, Serialize};

use crate::cluster::channel::Channel;
use crate::cluster::greeting;
use crate::cluster::members::{Members, Reported};
use crate::cluster::stage::StartStage;

/// How often a sign of life is sent.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(200);
/// How soon a change is sent.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How much of a fault's message is sent.
const MAX_WHY: usize = 4_000;

/// A message on a link.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Notice {
    /// A sign of life.
    Beat,
    /// Whether the sender is connected to all others.
    Ready(bool),
    /// How far the sender's start has come.
    Stage(StartStage),
    /// The sender stops cleanly, and the whole cluster stops with it.
    Stop,
    /// The sender ends without a last commit.
    Abandon,
    /// The sender fails: the exit code and the reason.
    Fault(u8, String),
    /// The sender has done its work.
    Done,
    /// What the displays show of the sender; sent only to process 0.
    Figures(String),
}

/// Starts the thread of a link.
pub(super) fn start(
    members: &Arc<Members>,
    process: usize,
    token: u64,
    mut channel: Channel,
) -> io::Result<()> {
    channel.greeted(Some(POLL_INTERVAL), Some(members.peer_timeout))?;
    let members = Arc::clone(members);
    thread::Builder::new().name(format!("link-{process}")).spawn(move || {
        let why = Link::new(&members, process, token).run(&mut channel);
        if let Some(why) = why {
            members.left(process, token, &reason(&why, members.peer_timeout));
        }
        channel.close();
    })?;
    Ok(())
}

/// One side of a link.
struct Link<'a> {
    members: &'a Members,
    process: usize,
    token: u64,
    reported: Reported,
    last_heartbeat: Option<Instant>,
    last_received: Instant,
    /// Whether nothing more can be sent. What arrived before the end still has to be read.
    cannot_send: bool,
    received: Vec<u8>,
}

impl<'a> Link<'a> {
    fn new(members: &'a Members, process: usize, token: u64) -> Self {
        Link {
            members,
            process,
            token,
            reported: Reported::default(),
            last_heartbeat: None,
            last_received: Instant::now(),
            cannot_send: false,
            received: Vec::new(),
        }
    }

    /// Sends and receives until the process is no longer a member (`None`), the connection ends, or
    /// nothing arrives for too long.
    fn run(mut self, channel: &mut Channel) -> Option<io::Error> {
        loop {
            let notices = self.next_notices()?;
            for notice in notices.iter().filter(|_| !self.cannot_send) {
                if let Err(why) = greeting::send(channel, notice) {
                    debug!("{}: {notice:?} was not sent: {why}", self.members.name(self.process));
                    self.cannot_send = true;
                    break;
                }
            }
            if !self.cannot_send {
                self.members.reported(self.process, self.token, self.reported);
            }
            if let Err(why) = self.receive(channel) {
                return Some(why);
            }
        }
    }

    /// The notices to send; `None` once the process is no longer a member.
    fn next_notices(&mut self) -> Option<Vec<Notice>> {
        let (now, fault) = self.members.to_report(self.process, self.token)?;
        let reported = std::mem::replace(&mut self.reported, now);
        let mut notices = Vec::new();
        if now.ready != reported.ready {
            notices.push(Notice::Ready(now.ready));
        }
        if now.stage != reported.stage {
            notices.push(Notice::Stage(now.stage));
        }
        if now.stop && !reported.stop {
            notices.push(Notice::Stop);
        }
        if now.abandon && !reported.abandon {
            notices.push(Notice::Abandon);
        }
        if let Some(fault) = fault.filter(|_| !reported.fault) {
            let why: String = fault.to_string().chars().take(MAX_WHY).collect();
            notices.push(Notice::Fault(fault.exit_code(), why));
        }
        if now.done && !reported.done {
            notices.push(Notice::Done);
        }
        if self.process == 0
            && let Some(figures) = self.members.run_state.metrics.figures.peers.take_outgoing()
        {
            notices.push(Notice::Figures(figures));
        }
        if self.last_heartbeat.is_none_or(|at| at.elapsed() >= HEARTBEAT_INTERVAL) {
            self.last_heartbeat = Some(Instant::now());
            notices.push(Notice::Beat);
        }
        Some(notices)
    }

    /// Takes in what arrives within a moment.
    fn receive(&mut self, channel: &mut Channel) -> io::Result<()> {
        let mut buffer = [0; 4_096];
        match channel.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                self.received.extend_from_slice(&buffer[..read]);
                while let Some(notice) = greeting::take(&mut self.received)? {
                    self.last_received = Instant::now();
                    self.handle(notice);
                }
            }
            Err(why) => match why.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {}
                _ => return Err(why),
            },
        }
        match self.last_received.elapsed() < self.members.peer_timeout {
            true => Ok(()),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn handle(&self, notice: Notice) {
        let Link { members, process, token, .. } = *self;
        match notice {
            Notice::Beat => members.run_state.metrics.figures.peers.record_heartbeat(process),
            Notice::Figures(text) => {
                members.run_state.metrics.figures.peers.record_report(process, text)
            }
            Notice::Ready(ready) => members.ready(process, token, ready),
            Notice::Stage(stage) => members.at_stage(process, token, stage),
            Notice::Stop => {
                if !members.run_state.stopping() {
                    info!("{} stops, and so does this one", members.name(process));
                    members.run_state.request_stop();
                }
            }
            Notice::Abandon => members.run_state.abandon(),
            Notice::Fault(code, why) => members.peer_failed(process, code, &why),
            Notice::Done => members.done(process, token),
        }
    }
}

/// Explains the end of a connection to a person.
pub(super) fn reason(why: &io::Error, timeout: Duration) -> String {
    match why.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("it has not answered for {timeout:?} (it hangs, or the network does)")
        }
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => {
            "it has closed the connection (it has ended, or was killed)".to_owned()
        }
        _ => why.to_string(),
    }
}
