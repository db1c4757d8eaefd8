//! Which processes are here, and what this one knows of each: the state that the listener, the
//! dialers, the links and the wires of a process share.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::{info, warn};

use super::greeting::{Answer, Hello, Purpose, Setting, clocks_apart};
use crate::control::{Control, Fault};

/// How often strangers are logged at most; what knocks in between is counted.
const STRANGERS_EVERY: Duration = Duration::from_secs(5);
/// How often it is said for whom this process waits, after the first time.
const WAITING_EVERY: Duration = Duration::from_secs(10);
/// How long a wait is not worth a line.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// How long a process whose settings differ goes on greeting, so that all find out.
const LINGER: Duration = Duration::from_secs(3);

/// What the threads of a process know of the cluster.
pub(super) struct Members {
    pub me: usize,
    pub addresses: Vec<String>,
    pub incarnation: u64,
    pub settings: Vec<Setting>,
    pub peer_timeout: Duration,
    pub control: Arc<Control>,
    wall_ms: fn() -> u64,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    phase: Phase,
    slots: Vec<Option<Member>>,
    /// A number for each admission: a connection that has gone does not end the one after it.
    tokens: u64,
    /// Why a process is not here.
    troubles: BTreeMap<usize, String>,
    /// How the settings of others differ, and since when that is known.
    differing: BTreeMap<usize, String>,
    differing_since: Option<Instant>,
    /// Whether the fault of this run is one that another process has told.
    relayed: bool,
    strangers: (Option<Instant>, u64),
    waiting: (Instant, Option<Instant>),
}

/// How far a start is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Processes are still missing, or miss others.
    Gathering,
    /// All are here: whoever goes now is lost.
    Running,
    /// The work is done: whoever goes now may.
    Finished,
    /// This process goes, however it ended.
    Closed,
}

/// A process that is here.
struct Member {
    token: u64,
    incarnation: u64,
    place: SocketAddr,
    data: Option<TcpStream>,
    /// It has said that it has a connection to everybody.
    ready: bool,
    /// It has said that its work is done.
    done: bool,
    told: Told,
}

/// What a link has told its peer, of what changes once or now and then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Told {
    pub ready: bool,
    pub stop: bool,
    pub abandon: bool,
    pub fault: bool,
    pub done: bool,
}

/// How the wait for all others ended.
pub(super) enum Gathered {
    /// The data connection of each other process, by index.
    Complete(Vec<Option<TcpStream>>),
    /// This process is to stop.
    Stopped,
    Failed(Fault),
}

impl Members {
    pub fn new(
        (me, addresses): (usize, Vec<String>),
        incarnation: u64,
        settings: Vec<Setting>,
        (peer_timeout, wall_ms): (Duration, fn() -> u64),
        control: Arc<Control>,
    ) -> Self {
        let state = State {
            phase: Phase::Gathering,
            slots: addresses.iter().map(|_| None).collect(),
            tokens: 0,
            troubles: BTreeMap::new(),
            differing: BTreeMap::new(),
            differing_since: None,
            relayed: false,
            strangers: (None, 0),
            waiting: (Instant::now(), None),
        };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        Members {
            me,
            addresses,
            incarnation,
            settings,
            peer_timeout,
            control,
            wall_ms,
            state,
            changed,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a process is called in messages.
    pub fn name(&self, process: usize) -> String {
        let address = self.addresses.get(process).map_or("not in the hostfile", String::as_str);
        format!("process {process} ({address})")
    }

    pub fn hello(&self, purpose: Purpose) -> Hello {
        let (process, incarnation) = (self.me, self.incarnation);
        let clock_ms = (self.wall_ms)();
        Hello { process, incarnation, purpose, clock_ms, settings: self.settings.clone() }
    }

    pub fn welcome(&self) -> Answer {
        Answer::Welcome { clock_ms: (self.wall_ms)() }
    }

    /// Says so if the clock of another process, as it was a moment ago, is not the one here.
    pub fn compare_clocks(&self, process: usize, there_ms: u64) {
        if let Some(apart) = clocks_apart(&self.name(process), (self.wall_ms)(), there_ms) {
            warn!("{apart}");
        }
    }

    pub fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// The work is done: the others may go, and are told that this one may.
    pub fn finish(&self) {
        self.lock().phase = Phase::Finished;
        self.changed.notify_all();
    }

    /// This process goes; nothing more is told.
    pub fn close(&self) {
        self.lock().phase = Phase::Closed;
        self.changed.notify_all();
    }

    // ---- who comes ---------------------------------------------------------------------------

    /// Takes note of a process that watches this one, or says why not.
    pub fn admit(
        &self,
        process: usize,
        incarnation: u64,
        place: SocketAddr,
    ) -> Result<u64, String> {
        let mut state = self.lock();
        if state.phase != Phase::Gathering {
            return Err(format!("{} runs in a cluster that is complete", self.name(self.me)));
        }
        let Some(slot) = state.slots.get(process).filter(|_| process != self.me) else {
            return Err(format!("there is no place for a process {process} here"));
        };
        if let Some(there) = slot {
            return Err(format!("a process {process} is here already, from {}", there.place));
        }
        state.tokens += 1;
        let token = state.tokens;
        state.slots[process] = Some(Member {
            token,
            incarnation,
            place,
            data: None,
            ready: false,
            done: false,
            told: Told::default(),
        });
        Ok(token)
    }

    /// Answers a process that brings its data connection, and takes it. Nothing may be written to
    /// it between the two: the answer comes first, and both under one lock.
    pub fn accept_data(
        &self,
        hello: &Hello,
        stream: TcpStream,
        answer: impl FnOnce(&TcpStream, &Answer) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut state = self.lock();
        let gathering = state.phase == Phase::Gathering;
        let slot = state.slots.get_mut(hello.process).and_then(Option::as_mut);
        let fits = |member: &&mut Member| {
            gathering && member.incarnation == hello.incarnation && member.data.is_none()
        };
        let Some(member) = slot.filter(fits) else {
            return answer(&stream, &Answer::Busy("its other connection is not here".to_owned()));
        };
        answer(&stream, &self.welcome())?;
        member.data = Some(stream);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Takes the data connection to a process that was dialed, if its link still stands.
    pub fn keep_data(&self, process: usize, token: u64, stream: TcpStream) {
        self.update(process, token, |member| member.data = Some(stream));
    }

    /// Whether a process is here.
    pub fn is_here(&self, process: usize) -> bool {
        self.lock().slots[process].is_some()
    }

    /// Notes why a process is not here.
    pub fn trouble(&self, process: usize, why: String) {
        self.lock().troubles.insert(process, why);
    }

    /// Notes that a process was started with other settings. One that comes when the cluster is
    /// complete finds out by itself, and nobody else has to care.
    pub fn differs(&self, process: usize, differences: &[String]) {
        let mut state = self.lock();
        if state.phase != Phase::Gathering {
            drop(state);
            return self.stranger(&format!("process {process}"), "its settings are others");
        }
        state.differing_since.get_or_insert_with(Instant::now);
        state.differing.insert(
            process,
            format!(
                "{} was started with other settings: {}",
                self.name(process),
                differences.join("; ")
            ),
        );
        drop(state);
        self.changed.notify_all();
    }

    /// Says who was turned away, sparsely: whoever scans the network must not fill the disk.
    pub fn stranger(&self, who: &str, why: &str) {
        let mut state = self.lock();
        let (told, count) = &mut state.strangers;
        if told.is_some_and(|told| told.elapsed() < STRANGERS_EVERY) {
            *count += 1;
            return;
        }
        let before = match std::mem::take(count) {
            0 => String::new(),
            count => format!(" ({count} others before)"),
        };
        *told = Some(Instant::now());
        warn!("turned away {who}: {why}{before}");
    }

    // ---- who goes ----------------------------------------------------------------------------

    /// The link to a process has ended. While all gather, it may come again; later, it is lost.
    pub fn left(&self, process: usize, token: u64, why: &str) {
        let mut state = self.lock();
        let slot = &mut state.slots[process];
        let Some(member) = slot.as_mut().filter(|member| member.token == token) else { return };
        if member.done {
            return;
        }
        match state.phase {
            Phase::Gathering => {
                state.slots[process] = None;
                state.troubles.insert(process, why.to_owned());
                drop(state);
                self.changed.notify_all();
            }
            Phase::Running => {
                drop(state);
                self.lost(process, why);
            }
            Phase::Finished | Phase::Closed => {}
        }
    }

    /// A process is lost: this run ends. What it has not committed is read again at the next start.
    pub fn lost(&self, process: usize, why: &str) {
        let control = &self.control;
        if self.phase() != Phase::Running || control.failed() || control.abandoned() {
            return;
        }
        control.fail(Fault::Peer(format!(
            "lost {}: {why}. What is committed stays right, and the next start goes on from there: \
             start all processes again",
            self.name(process)
        )));
    }

    /// Waits for a process whose data connection has ended to say that it is done; `false` if it
    /// does not, or is lost meanwhile.
    pub fn is_done_within(&self, process: usize, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            if state.slots[process].as_ref().is_some_and(|member| member.done) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.control.failed() || self.control.abandoned() {
                return false;
            }
            let waited = self.changed.wait_timeout(state, left.min(Duration::from_millis(50)));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    // ---- what processes tell each other ------------------------------------------------------

    /// A process has a connection to everybody, or no longer.
    pub fn ready(&self, process: usize, token: u64, ready: bool) {
        self.update(process, token, |member| member.ready = ready);
    }

    /// A process has done its work.
    pub fn done(&self, process: usize, token: u64) {
        self.update(process, token, |member| member.done = true);
    }

    /// Notes what a link has told.
    pub fn told(&self, process: usize, token: u64, told: Told) {
        self.update(process, token, |member| member.told = told);
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

    /// What there is to tell a peer; `None` when it is not here any more.
    pub fn to_tell(&self, process: usize, token: u64) -> Option<(Told, Option<Fault>)> {
        let state = self.lock();
        let here = state.slots[process].as_ref().is_some_and(|member| member.token == token);
        if !here || state.phase == Phase::Closed {
            return None;
        }
        let fault = self.control.fault().filter(|_| !state.relayed);
        Some((self.now(&state), fault))
    }

    fn now(&self, state: &State) -> Told {
        Told {
            ready: self.has_all(state),
            stop: self.control.stopping(),
            abandon: self.control.abandoned(),
            fault: self.control.failed() && !state.relayed,
            done: state.phase == Phase::Finished,
        }
    }

    fn has_all(&self, state: &State) -> bool {
        let mut others = state.slots.iter().enumerate().filter(|(process, _)| *process != self.me);
        state.phase != Phase::Gathering
            || others.all(|(_, slot)| slot.as_ref().is_some_and(|member| member.data.is_some()))
    }

    /// A process has told why it ends: so does this one, for the same reason.
    pub fn peer_failed(&self, process: usize, code: u8, why: &str) {
        let mut state = self.lock();
        if !self.control.failed() {
            state.relayed = true;
            self.control.fail(Fault::with_code(code, format!("{}: {why}", self.name(process))));
        }
    }

    /// Waits until every peer knows how this run ends, at most so long.
    pub fn wait_until_told(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            let now = self.now(&state);
            let missing = state.slots.iter().flatten().any(|member| member.told != now);
            let left = until.saturating_duration_since(Instant::now());
            if !missing || left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(state, left.min(Duration::from_millis(20)));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    // ---- waiting for all ---------------------------------------------------------------------

    /// Waits for all others, and until they have all others, and says now and then for whom.
    pub fn gather(&self) -> Gathered {
        let mut state = self.lock();
        loop {
            if let Some(fault) = self.control.fault() {
                return Gathered::Failed(fault);
            }
            if self.control.stopping() {
                return Gathered::Stopped;
            }
            if let Some(fault) = self.settled_differences(&state) {
                return Gathered::Failed(fault);
            }
            let ready = state.slots.iter().flatten().filter(|member| member.ready).count();
            if self.has_all(&state) && ready + 1 == state.slots.len() {
                state.phase = Phase::Running;
                let data = |slot: &mut Option<Member>| slot.as_mut().and_then(|m| m.data.take());
                return Gathered::Complete(state.slots.iter_mut().map(data).collect());
            }
            self.say_for_whom(&mut state);
            let waited = self.changed.wait_timeout(state, Duration::from_millis(50));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The differences, when all are known that are to be had soon.
    fn settled_differences(&self, state: &State) -> Option<Fault> {
        let since = state.differing_since?;
        let open = |process: &usize| {
            *process != self.me
                && state.slots[*process].is_none()
                && !state.differing.contains_key(process)
        };
        let all = !(0..state.slots.len()).any(|process| open(&process));
        if !all && since.elapsed() < LINGER {
            return None;
        }
        let told: Vec<&str> = state.differing.values().map(String::as_str).collect();
        Some(Fault::Config(format!(
            "{}. Start all processes of a cluster with the same settings",
            told.join(". ")
        )))
    }

    fn say_for_whom(&self, state: &mut State) {
        let (since, told) = state.waiting;
        let due =
            told.map_or(since.elapsed() >= FIRST_WAIT, |told| told.elapsed() >= WAITING_EVERY);
        if !due {
            return;
        }
        state.waiting.1 = Some(Instant::now());
        let mut missing = Vec::new();
        for (process, slot) in state.slots.iter().enumerate().filter(|(at, _)| *at != self.me) {
            let why = match slot {
                Some(member) if member.data.is_some() && member.ready => continue,
                Some(member) if member.data.is_some() => "it waits for others itself",
                _ => state.troubles.get(&process).map_or("it has not come yet", String::as_str),
            };
            missing.push(format!("{}: {why}", self.name(process)));
        }
        if !missing.is_empty() {
            info!("waiting for {}", missing.join("; "));
        }
    }

    /// Waits for a change, a short while at most.
    pub fn pause(&self, most: Duration) {
        let state = self.lock();
        drop(self.changed.wait_timeout(state, most));
    }
}
