//! Waiting until all processes of the cluster are connected to all others.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use log::info;
use sessionizer_core::fault::Fault;

use crate::cluster::members::{ClusterPhase, Member, Members, State};
use crate::cluster::wire::Ends;
use crate::ui::waiting::{Awaited, WaitGuard};

/// How often missing processes are logged, after the first time.
const WAITING_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// A shorter wait is not logged.
const WAITING_NOTICE: Duration = Duration::from_secs(1);
/// How the wait for the others ended.
pub(in crate::cluster) enum Gathered {
    /// The data connections of each other process, by index.
    Complete(Vec<Option<Ends>>),
    /// This process is to stop.
    Stopped,
    Failed(Fault),
}

impl Members {
    /// Waits until all processes are connected to all others, and logs now and then which are
    /// missing.
    pub fn gather(&self) -> Gathered {
        let mut waiting: Option<(usize, WaitGuard)> = None;
        let mut state = self.lock();
        loop {
            if let Some(fault) = self.run_state.fault() {
                return Gathered::Failed(fault);
            }
            if self.run_state.stopping() {
                return Gathered::Stopped;
            }
            if let Some(differences) = state.differing.settled(Instant::now()) {
                return Gathered::Failed(Fault::config(format!(
                    "{differences}. Start all processes of a cluster with the same settings"
                )));
            }
            let ready = state.slots.iter().flatten().filter(|member| member.ready).count();
            if self.has_all(&state) && ready + 1 == state.slots.len() {
                state.phase = ClusterPhase::Running;
                let ends = |slot: &mut Option<Member>| {
                    let member = slot.as_mut()?;
                    let (outbound, inbound) = (member.outbound.take()?, member.inbound.take()?);
                    Some(Ends { outbound, inbound })
                };
                return Gathered::Complete(state.slots.iter_mut().map(ends).collect());
            }
            let missing = self.missing(&state);
            match missing.first() {
                Some((first, why)) => {
                    let guard = match waiting.take() {
                        Some((process, guard)) if process == *first => guard,
                        _ => WaitGuard::new(Awaited::Process(self.name(*first)), None),
                    };
                    guard.because(why);
                    waiting = Some((*first, guard));
                }
                None => waiting = None,
            }
            self.log_missing(&mut state, &missing);
            let waited = self.changed.wait_timeout(state, Duration::from_millis(50));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The processes that are not connected to all others, and why.
    fn missing(&self, state: &State) -> Vec<(usize, String)> {
        let mut missing = Vec::new();
        for (process, slot) in state.slots.iter().enumerate().filter(|(at, _)| *at != self.me) {
            let why = match slot {
                Some(member) if member.has_data() && member.ready => continue,
                Some(member) if member.has_data() => "it waits for others itself",
                _ => state.troubles.get(&process).map_or("it has not come yet", String::as_str),
            };
            missing.push((process, why.to_owned()));
        }
        missing
    }

    fn log_missing(&self, state: &mut State, missing: &[(usize, String)]) {
        let (since, reported) = state.waiting;
        let due = reported.map_or(since.elapsed() >= WAITING_NOTICE, |reported| {
            reported.elapsed() >= WAITING_LOG_INTERVAL
        });
        if !due {
            return;
        }
        state.waiting.1 = Some(Instant::now());
        let missing = missing.iter().map(|(at, why)| format!("{}: {why}", self.name(*at)));
        let missing = missing.collect::<Vec<_>>().join("; ");
        if !missing.is_empty() {
            info!("waiting for {missing}");
        }
    }
}
