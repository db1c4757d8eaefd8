//! Who joins and who leaves: admission, differing settings, strangers, and what the loss of a
//! process means.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use log::warn;
use sessionizer_core::fault::Fault;

use crate::cluster::channel::Channel;
use crate::cluster::greeting;
use crate::cluster::greeting::{GreetingReply, Hello};
use crate::cluster::members::{ClusterPhase, Member, Members, Reported, State};
use crate::cluster::stage::StartStage;
use crate::cluster::wire::Ends;

/// How often strangers are logged at most. Those in between are counted.
const REJECTED_LOG_INTERVAL: Duration = Duration::from_secs(5);

impl Members {
    // ---- joining ------------------------------------------------------------------------------

    /// Admits a process that watches this one, or says why not.
    pub fn admit(
        &self,
        process: usize,
        incarnation: u64,
        address: SocketAddr,
    ) -> Result<u64, String> {
        let mut state = self.lock();
        if state.phase != ClusterPhase::Gathering {
            return Err(format!("{} runs in a cluster that is complete", self.name(self.me)));
        }
        let Some(slot) = state.slots.get(process).filter(|_| process != self.me) else {
            return Err(format!("there is no place for a process {process} here"));
        };
        if let Some(there) = slot {
            return Err(format!("a process {process} is here already, from {}", there.address));
        }
        state.tokens += 1;
        let token = state.tokens;
        state.slots[process] = Some(Member {
            token,
            incarnation,
            address,
            outbound: None,
            inbound: None,
            stage: StartStage::default(),
            ready: false,
            done: false,
            reported: Reported::default(),
        });
        state.differing.agrees(process);
        Ok(token)
    }

    /// Answers a process that brings a data connection, and keeps the connection. The answer is
    /// sent first: nothing may precede it.
    pub fn accept_data(&self, hello: &Hello, mut channel: Channel) -> io::Result<()> {
        let fits = |state: &mut State| {
            let gathering = state.phase == ClusterPhase::Gathering;
            let slot = state.slots.get_mut(hello.process).and_then(Option::as_mut);
            let member = slot.filter(|it| gathering && it.incarnation == hello.incarnation)?;
            member.slot(hello.purpose).filter(|slot| slot.is_none()).map(|_| ())
        };
        if fits(&mut self.lock()).is_none() {
            let why = "its other connection is not here".to_owned();
            return greeting::send(&mut channel, &GreetingReply::Busy(why));
        }
        greeting::send(&mut channel, &self.welcome())?;
        let mut state = self.lock();
        if fits(&mut state).is_some()
            && let Some(member) = state.slots[hello.process].as_mut()
            && let Some(slot) = member.slot(hello.purpose)
        {
            *slot = Some(channel);
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Keeps the data connections to a process that was dialed, if its link is still up.
    pub fn keep_data(&self, process: usize, token: u64, ends: Ends) {
        self.update(process, token, |member| {
            member.outbound = Some(ends.outbound);
            member.inbound = Some(ends.inbound);
        });
    }

    /// The addresses of all processes, as far as they are known.
    pub fn peer_ips(&self) -> Arc<BTreeSet<IpAddr>> {
        Arc::clone(&self.lock().peer_ips)
    }

    pub fn set_peer_ips(&self, ips: BTreeSet<IpAddr>) {
        self.lock().peer_ips = Arc::new(ips);
    }

    /// Whether a process is a member now.
    pub fn is_here(&self, process: usize) -> bool {
        self.lock().slots[process].is_some()
    }

    /// Notes why a process is missing.
    pub fn trouble(&self, process: usize, why: String) {
        self.lock().troubles.insert(process, why);
    }

    /// A connection claims to be `process` but has other settings. Whether the claim is true is
    /// found out by connecting to that process.
    pub fn claims_other_settings(&self, process: usize, differences: &[String]) {
        let differences = differences.join("; ");
        let who = match self.addresses.get(process).filter(|_| process != self.me) {
            Some(_) => self.name(process),
            None => "a process that is not in the hostfile".to_owned(),
        };
        self.log_rejected(&who, &format!("its settings differ: {differences}"));
        let mut state = self.lock();
        if process > self.me && process < state.slots.len() {
            state.differing.claim(process);
            state.troubles.insert(process, format!("its settings differ: {differences}"));
        }
    }

    /// Whether a claim of other settings has to be verified.
    pub fn is_to_be_compared(&self, process: usize) -> bool {
        let state = self.lock();
        state.slots[process].is_none() && state.differing.is_claimed(process)
    }

    /// The process at this address of the hostfile has other settings.
    pub fn has_other_settings(&self, process: usize, differences: &[String]) {
        let differences = differences.join("; ");
        let what = format!("{} was started with other settings: {differences}", self.name(process));
        self.lock().differing.found(process, what, Instant::now());
        self.changed.notify_all();
    }

    /// The process at this address of the hostfile has the same settings.
    pub fn has_same_settings(&self, process: usize) {
        self.lock().differing.agrees(process);
    }

    /// Logs who was turned away, sparingly: a network scan must not fill the disk.
    pub fn log_rejected(&self, who: &str, why: &str) {
        let mut state = self.lock();
        let (last_logged, count) = &mut state.rejected;
        if last_logged.is_some_and(|last_logged| last_logged.elapsed() < REJECTED_LOG_INTERVAL) {
            *count += 1;
            return;
        }
        let before = match std::mem::take(count) {
            0 => String::new(),
            count => format!(" ({count} others before)"),
        };
        *last_logged = Some(Instant::now());
        warn!("turned away {who}: {why}{before}");
    }

    // ---- leaving ------------------------------------------------------------------------------

    /// The link to a process has ended. While the cluster gathers, it may come back; later, it is
    /// lost.
    pub fn left(&self, process: usize, token: u64, why: &str) {
        let mut state = self.lock();
        let slot = &mut state.slots[process];
        let Some(member) = slot.as_mut().filter(|member| member.token == token) else { return };
        if member.done {
            return;
        }
        match state.phase {
            ClusterPhase::Gathering => {
                state.slots[process] = None;
                state.troubles.insert(process, why.to_owned());
                drop(state);
                self.changed.notify_all();
            }
            ClusterPhase::Running => {
                drop(state);
                self.lost(process, why);
            }
            ClusterPhase::Finished | ClusterPhase::Closed => {}
        }
    }

    /// A process is lost, and this run ends. What it has not committed is reread at the next
    /// start.
    pub fn lost(&self, process: usize, why: &str) {
        let run_state = &self.run_state;
        if self.phase() != ClusterPhase::Running || run_state.failed() || run_state.abandoned() {
            return;
        }
        run_state.fail(Fault::peer(format!(
            "lost {}: {why}. What is committed stays right, and the next start continues from \
             there: start all processes again",
            self.name(process)
        )));
    }

    /// Whether a process has reported that its work is done.
    pub fn is_done(&self, process: usize) -> bool {
        self.lock().slots[process].as_ref().is_some_and(|member| member.done)
    }

    /// Whether the work of this process is done.
    pub fn is_finished(&self) -> bool {
        matches!(self.lock().phase, ClusterPhase::Finished | ClusterPhase::Closed)
    }

    /// Waits until the work of this process is done; `false` if it is not done in time, or fails.
    pub fn is_finished_within(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if matches!(state.phase, ClusterPhase::Finished | ClusterPhase::Closed) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.run_state.failed() || self.run_state.abandoned() {
                return false;
            }
            let waited = self.changed.wait_timeout(state, left.min(Duration::from_millis(50)));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
