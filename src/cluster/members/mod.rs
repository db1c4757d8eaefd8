//! Which processes are members, and what this one knows about each: the state shared by the
//! listener, the dialers, the links and the wires of a process.

mod arrivals;
mod gathering;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::warn;
use sessionizer_core::fault::Fault;

pub(in crate::cluster) use self::gathering::Gathered;
use crate::cluster::channel::{Channel, Protection};
use crate::cluster::differing::Differing;
use crate::cluster::greeting;
use crate::cluster::greeting::{GreetingReply, Hello, Purpose, Setting, clocks_apart};
use crate::cluster::stage::StartStage;
use crate::dataflow::run_state::RunState;

/// How much of another process's message is repeated.
const MAX_WHY: usize = 4_000;

/// What the threads of a process know about the cluster.
pub(super) struct Members {
    pub me: usize,
    pub addresses: Vec<String>,
    pub incarnation: u64,
    pub settings: Vec<Setting>,
    pub peer_timeout: Duration,
    pub protection: Protection,
    pub run_state: Arc<RunState>,
    wall_ms: fn() -> u64,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    phase: ClusterPhase,
    slots: Vec<Option<Member>>,
    /// A number for each admission, so that the end of an old connection does not end its
    /// successor.
    tokens: u64,
    /// Why a process is missing.
    troubles: BTreeMap<usize, String>,
    differing: Differing,
    /// The addresses to which the names in the hostfile resolve.
    peer_ips: Arc<BTreeSet<IpAddr>>,
    /// How far the start of this process has come.
    stage: StartStage,
    /// Whether the fault of this run came from another process.
    relayed: bool,
    rejected: (Option<Instant>, u64),
    waiting: (Instant, Option<Instant>),
}

/// The phase of the cluster's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ClusterPhase {
    /// Processes are still missing, or still miss others.
    Gathering,
    /// All are connected: a process that leaves now is lost.
    Running,
    /// The work is done: processes may leave.
    Finished,
    /// This process is leaving, however the run ended.
    Closed,
}

/// A process that is connected.
struct Member {
    token: u64,
    incarnation: u64,
    address: SocketAddr,
    outbound: Option<Channel>,
    inbound: Option<Channel>,
    stage: StartStage,
    /// It has reported that it is connected to all others.
    ready: bool,
    /// It has reported that its work is done.
    done: bool,
    reported: Reported,
}

impl Member {
    /// Whether both data connections are there.
    fn has_data(&self) -> bool {
        self.outbound.is_some() && self.inbound.is_some()
    }

    /// Where the connection for this purpose is kept.
    fn slot(&mut self, purpose: Purpose) -> Option<&mut Option<Channel>> {
        match purpose {
            Purpose::Send => Some(&mut self.inbound),
            Purpose::Receive => Some(&mut self.outbound),
            Purpose::Watch | Purpose::Compare => None,
        }
    }
}

/// What a link has reported to its peer, of the state that rarely changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Reported {
    pub ready: bool,
    pub stage: StartStage,
    pub stop: bool,
    pub abandon: bool,
    pub fault: bool,
    pub done: bool,
}

impl Members {
    pub fn new(
        (me, addresses): (usize, Vec<String>),
        incarnation: u64,
        settings: Vec<Setting>,
        (peer_timeout, wall_ms): (Duration, fn() -> u64),
        protection: Protection,
        run_state: Arc<RunState>,
    ) -> Self {
        let state = State {
            phase: ClusterPhase::Gathering,
            slots: addresses.iter().map(|_| None).collect(),
            tokens: 0,
            troubles: BTreeMap::new(),
            differing: Differing::default(),
            peer_ips: Arc::default(),
            stage: StartStage::default(),
            relayed: false,
            rejected: (None, 0),
            waiting: (Instant::now(), None),
        };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let settings = greeting::shortened(settings);
        Members {
            me,
            addresses,
            incarnation,
            settings,
            peer_timeout,
            protection,
            run_state,
            wall_ms,
            state,
            changed,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of a process in messages.
    pub fn name(&self, process: usize) -> String {
        let address = self.addresses.get(process).map_or("not in the hostfile", String::as_str);
        format!("process {process} ({address})")
    }

    pub fn hello(&self, purpose: Purpose) -> Hello {
        let (process, incarnation) = (self.me, self.incarnation);
        let clock_ms = (self.wall_ms)();
        Hello { process, incarnation, purpose, clock_ms, settings: self.settings.clone() }
    }

    pub fn welcome(&self) -> GreetingReply {
        GreetingReply::Welcome { clock_ms: (self.wall_ms)() }
    }

    /// Warns if the clock of another process, as it was a moment ago, differs from the one here.
    pub fn compare_clocks(&self, process: usize, there_ms: u64) {
        if let Some(apart) = clocks_apart(&self.name(process), (self.wall_ms)(), there_ms) {
            warn!("{apart}");
        }
    }

    pub fn phase(&self) -> ClusterPhase {
        self.lock().phase
    }

    /// Marks the work as done: the others may leave, and learn that this process may, too.
    pub fn finish(&self) {
        self.lock().phase = ClusterPhase::Finished;
        self.changed.notify_all();
    }

    /// This process leaves; nothing more is sent.
    pub fn close(&self) {
        self.lock().phase = ClusterPhase::Closed;
        self.changed.notify_all();
    }

    // ---- what processes report to each other -------------------------------------------------

    /// A process is connected to all others, or no longer is.
    pub fn ready(&self, process: usize, token: u64, ready: bool) {
        self.update(process, token, |member| member.ready = ready);
    }

    /// How far the start of a process has come.
    pub fn at_stage(&self, process: usize, token: u64, stage: StartStage) {
        self.update(process, token, |member| member.stage = member.stage.max(stage));
    }

    /// Sets how far the start of this process has come.
    pub fn reach(&self, stage: StartStage) {
        let mut state = self.lock();
        state.stage = state.stage.max(stage);
    }

    /// The stage of every process, by index; `None` once it no longer matters.
    pub fn stages(&self) -> Option<Vec<StartStage>> {
        let state = self.lock();
        let of = |(process, slot): (usize, &Option<Member>)| match slot {
            _ if process == self.me => self.stage(&state),
            Some(member) => member.stage,
            None => StartStage::Planning,
        };
        let matters = state.phase == ClusterPhase::Running && !self.run_state.ending();
        matters.then(|| state.slots.iter().enumerate().map(of).collect())
    }

    fn stage(&self, state: &State) -> StartStage {
        let loaded =
            self.run_state.metrics.shards_loaded.load(std::sync::atomic::Ordering::Relaxed);
        match state.stage {
            StartStage::Loading(_) => StartStage::Loading(loaded),
            other => other,
        }
    }

    /// A process has done its work.
    pub fn done(&self, process: usize, token: u64) {
        self.update(process, token, |member| member.done = true);
    }

    /// Notes what a link has reported to its peer.
    pub fn reported(&self, process: usize, token: u64, reported: Reported) {
        self.update(process, token, |member| member.reported = reported);
    }

    fn update(&self, process: usize, token: u64, change: impl FnOnce(&mut Member)) {
        let mut state = self.lock();
        let slot = state.slots[process].as_mut().filter(|member| member.token == token);
        if let Some(member) = slot {
            change(member);
            drop(state);
            self.changed.notify_all();
        }
    }

    /// What to report to a peer; `None` once it is no longer a member.
    pub fn to_report(&self, process: usize, token: u64) -> Option<(Reported, Option<Fault>)> {
        let state = self.lock();
        let here = state.slots[process].as_ref().is_some_and(|member| member.token == token);
        if !here || state.phase == ClusterPhase::Closed {
            return None;
        }
        let fault = self.run_state.fault().filter(|_| !state.relayed);
        Some((self.now(&state), fault))
    }

    fn now(&self, state: &State) -> Reported {
        Reported {
            ready: self.has_all(state),
            stage: self.stage(state),
            stop: self.run_state.stopping(),
            abandon: self.run_state.abandoned(),
            fault: self.run_state.failed() && !state.relayed,
            done: state.phase == ClusterPhase::Finished,
        }
    }

    fn has_all(&self, state: &State) -> bool {
        let mut others = state.slots.iter().enumerate().filter(|(process, _)| *process != self.me);
        state.phase != ClusterPhase::Gathering
            || others.all(|(_, slot)| slot.as_ref().is_some_and(Member::has_data))
    }

    /// A process has reported why it ends; this process ends for the same reason.
    pub fn peer_failed(&self, process: usize, code: u8, why: &str) {
        let mut state = self.lock();
        if !self.run_state.failed() {
            state.relayed = true;
            let fit = |c: &char| *c == '\n' || !c.is_control();
            let why: String = why.chars().filter(fit).take(MAX_WHY).collect();
            self.run_state.fail(Fault::with_code(code, format!("{}: {why}", self.name(process))));
        }
    }

    /// Waits until every peer knows how this run ends, for at most `timeout`.
    pub fn wait_until_reported(&self, timeout: Duration) {
        let until = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            let now = self.now(&state);
            let missing = state.slots.iter().flatten().any(|member| member.reported != now);
            let left = until.saturating_duration_since(Instant::now());
            if !missing || left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(state, left.min(Duration::from_millis(20)));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for a change, for a short while at most.
    pub fn pause(&self, most: Duration) {
        let state = self.lock();
        drop(self.changed.wait_timeout(state, most));
    }
}
