//! A link: the connection by which two processes watch each other. Each sends a sign of life a few
//! times a second, and whatever the other has to know at once: that it stops, fails, is done.
//!
//! A process that dies closes the connection, one that hangs or is cut off falls silent. Either way
//! [`Members`] is told, and decides what that means.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, info};
use serde::{Deserialize, Serialize};

use super::greeting;
use super::members::{Members, Told};

/// How often a sign of life is sent.
const BEAT: Duration = Duration::from_millis(200);
/// How soon a change is told.
const LOOK: Duration = Duration::from_millis(50);

/// What goes over a link.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Notice {
    /// A sign of life.
    Beat,
    /// Whether the sender has a connection to everybody.
    Ready(bool),
    /// The sender stops cleanly; a cluster stops as one.
    Stop,
    /// The sender ends without a last commit.
    Abandon,
    /// The sender fails: the exit code, and why.
    Fault(u8, String),
    /// The sender has done its work.
    Done,
}

/// Starts the two threads of a link.
pub(super) fn start(
    members: &Arc<Members>,
    process: usize,
    token: u64,
    stream: TcpStream,
) -> io::Result<()> {
    stream.set_read_timeout(Some(members.peer_timeout))?;
    stream.set_write_timeout(Some(members.peer_timeout))?;
    let writer = stream.try_clone()?;
    let (ours, theirs) = (Arc::clone(members), Arc::clone(members));
    thread::Builder::new()
        .name(format!("link-{process}-out"))
        .spawn(move || speak(&ours, process, token, writer))?;
    thread::Builder::new()
        .name(format!("link-{process}-in"))
        .spawn(move || listen(&theirs, process, token, stream))?;
    Ok(())
}

/// Sends until the process is not here any more, or the connection ends; the other thread of the
/// link finds out why.
fn speak(members: &Members, process: usize, token: u64, mut stream: TcpStream) {
    let mut told = Told::default();
    let mut beat: Option<Instant> = None;
    while let Some((now, fault)) = members.to_tell(process, token) {
        let mut notices = Vec::new();
        if now.ready != told.ready {
            notices.push(Notice::Ready(now.ready));
        }
        if now.stop && !told.stop {
            notices.push(Notice::Stop);
        }
        if now.abandon && !told.abandon {
            notices.push(Notice::Abandon);
        }
        if let Some(fault) = fault.filter(|_| !told.fault) {
            notices.push(Notice::Fault(fault.exit_code(), fault.to_string()));
        }
        if now.done && !told.done {
            notices.push(Notice::Done);
        }
        if beat.is_none_or(|beat| beat.elapsed() >= BEAT) {
            beat = Some(Instant::now());
            notices.push(Notice::Beat);
        }
        for notice in notices {
            if let Err(why) = greeting::send(&mut stream, &notice) {
                debug!("{}: {notice:?} was not sent: {why}", members.name(process));
                let _ = stream.shutdown(std::net::Shutdown::Both); // The listener ends, too.
                return;
            }
        }
        if now != told {
            told = now;
            members.told(process, token, told);
        }
        thread::sleep(LOOK);
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

/// Receives until the connection ends, or nothing comes for too long.
fn listen(members: &Members, process: usize, token: u64, mut stream: TcpStream) {
    loop {
        match greeting::receive::<Notice>(&mut stream) {
            Ok(Notice::Beat) => {}
            Ok(Notice::Ready(ready)) => members.ready(process, token, ready),
            Ok(Notice::Stop) => {
                if !members.control.stopping() {
                    info!("{} stops, and so does this one", members.name(process));
                    members.control.request_stop();
                }
            }
            Ok(Notice::Abandon) => members.control.abandon(),
            Ok(Notice::Fault(code, why)) => members.peer_failed(process, code, &why),
            Ok(Notice::Done) => members.done(process, token),
            Err(why) => {
                members.left(process, token, &reason(&why, members.peer_timeout));
                let _ = stream.shutdown(std::net::Shutdown::Both);
                return;
            }
        }
    }
}

/// What the end of a connection says to a person.
pub(super) fn reason(why: &io::Error, timeout: Duration) -> String {
    match why.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("it has not answered for {timeout:?} (it hangs, or the network does)")
        }
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "it has closed the connection (it has ended, or was killed)".to_owned()
        }
        _ => why.to_string(),
    }
}
