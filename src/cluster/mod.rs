//! A cluster: how the processes of one job find each other, agree on their settings, and notice a
//! loss.
//!
//! ```text
//!   gather     every process listens on its own address and dials those before it in the hostfile.
//!              Three connections a pair: a link (signs of life, notices) and a wire (timely's
//!              data, a connection for each direction).
//!   prove      with a cluster secret, every connection is TLS with a key derived from it. A peer
//!              without the secret is turned away before it learns anything.
//!   agree      the connecting process sends the settings it was started with. If they differ, both
//!              sides learn it before anything has begun.
//!   run        once every process is connected to all others. Only then does process 0 take the
//!              fence.
//!   lose       a link that ends or falls silent ends the run, with the name of the process.
//! ```
//!
//! Correctness does not depend on anything in here: a process that was cut off and wakes up later
//! is kept out by the fence in Postgres. This module makes sure that a loss is noticed soon and
//! reported clearly.
//!
//! Beyond loopback a secret is required. Without one, nothing is encrypted and nobody has to prove
//! anything.

mod channel;
mod differing;
mod gather;
mod greeting;
pub mod hosts;
mod link;
mod listener;
mod members;
pub mod secret;
mod stage;
#[cfg(test)]
mod tests;
mod wire;

use std::any::Any;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use channel::Protection;
pub use greeting::Setting;
use log::{info, warn};
use members::{Gathered, Members};
use secret::SecretKey;
pub use secret::SecretSource;
use sessionizer_core::fault::Fault;
pub use stage::StartStage;
use stage::{StallDetector, StartState};
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
use timely::communication::initialize::Hooks;
use wire::{Ends, Wire};

use crate::dataflow::run_state::RunState;
use crate::random;

/// How long the end of a run waits for every peer to learn of it.
const END_REPORT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the start of a complete cluster may stand still, as a multiple of `--start-timeout`: a
/// start waits for Kafka and Postgres several times in a row.
const STALL_TIMEOUT_FACTOR: u32 = 5;
/// The lower bound of that time.
const MIN_STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the progress of the start is checked.
const STALL_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// What a cluster that reaches beyond this machine needs.
const NEEDS_SECRET: &str = "\
    processes that reach each other over a network need a secret in common, which proves that they \
    belong together and encrypts what they send. Make one, give every process the same, and name \
    its file with --cluster-secret-file:\n  \
    (umask 077; head -c 32 /dev/urandom | base64 > cluster-secret)\n\
    With --cluster-insecure they start without: then whoever can connect can read and forge what \
    they send, and can stop them";

/// The place of a process in its cluster.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// The index of this process.
    pub process: usize,
    /// `host:port` of every process, by index.
    pub addresses: Vec<String>,
    /// A peer that is silent for this long is lost.
    pub peer_timeout: Duration,
    /// How long this process's address may still be in use by somebody else.
    pub start_timeout: Duration,
    /// The wall clock in milliseconds since 1970, which the processes compare.
    pub wall_ms: fn() -> u64,
    /// The secret that all processes share.
    pub secret: Option<SecretSource>,
    /// Whether a cluster that reaches beyond this machine may do without a secret.
    pub insecure: bool,
}

impl ClusterConfig {
    /// How connections are protected. A configuration error if they must be and are not.
    fn protection(&self) -> Result<Protection, Fault> {
        let beyond = self.addresses.iter().find(|address| !hosts::is_loopback(address));
        match (&self.secret, beyond) {
            (Some(source), _) => {
                let key = SecretKey::read(source)?;
                info!("connections between processes are encrypted with the cluster secret");
                Protection::sealed(key, self.process, self.addresses.len()).map_err(|why| {
                    Fault::environment(format!("OpenSSL cannot encrypt connections: {why}"))
                })
            }
            (None, None) => Ok(Protection::Open),
            (None, Some(address)) if self.insecure => {
                warn!(
                    "connections between processes are NOT ENCRYPTED and NOT AUTHENTICATED \
                     (--cluster-insecure; {address} is not on loopback): whoever can connect can \
                     read and forge what they send, and can stop the job"
                );
                Ok(Protection::Open)
            }
            (None, Some(address)) => Err(Fault::config(format!(
                "the hostfile names {address}, which is not on loopback: {NEEDS_SECRET}"
            ))),
        }
    }
}

/// All processes of a job, as seen by one of them.
pub struct Cluster {
    members: Arc<Members>,
    listener: listener::Listener,
    /// By index, `None` for this process. Timely takes them.
    wires: Vec<Option<Wire>>,
}

/// What timely's workers are built from.
pub type Allocators = (Vec<AllocatorBuilder>, Box<dyn Any + Send>);

impl Cluster {
    /// Waits until all processes are connected and have the same settings. Returns `None` if this
    /// run is to stop first.
    pub fn gather(
        config: &ClusterConfig,
        settings: Vec<Setting>,
        run_state: &Arc<RunState>,
    ) -> Result<Option<Cluster>, Fault> {
        let protection = config.protection()?;
        let loopback_only = matches!(protection, Protection::Open) && !config.insecure;
        let members = Arc::new(Members::new(
            (config.process, config.addresses.clone()),
            random::id(),
            settings,
            (config.peer_timeout, config.wall_ms),
            protection,
            Arc::clone(run_state),
        ));
        let Some(listener) = listener::listen(&members, config.start_timeout, loopback_only)?
        else {
            return Ok(None);
        };
        let mut cluster = Cluster { members, listener, wires: Vec::new() };
        gather::dial(&cluster.members);
        let wires = match cluster.members.gather() {
            Gathered::Complete(wires) => wires,
            Gathered::Stopped => return Ok(None),
            Gathered::Failed(fault) => {
                run_state.fail(fault.clone());
                return Err(fault);
            }
        };
        let others = wires.len() - 1;
        info!("process {} of {}: all processes are connected", config.process, others + 1);
        let wire = |(process, ends): (usize, Option<Ends>)| {
            ends.map(|ends| Wire::new(ends, process, &cluster.members)).transpose()
        };
        let wires: std::io::Result<_> = wires.into_iter().enumerate().map(wire).collect();
        cluster.wires = wires
            .map_err(|why| Fault::environment(format!("cannot set up the connections: {why}")))?;
        let limit = (config.start_timeout * STALL_TIMEOUT_FACTOR).max(MIN_STALL_TIMEOUT);
        watch_the_start(&cluster.members, limit);
        Ok(Some(cluster))
    }

    /// Reports to the others how far the start of this process has come.
    pub fn start_reporter(&self) -> StartReporter {
        StartReporter(Arc::clone(&self.members))
    }

    /// What timely's workers of this process are built from.
    pub fn allocators(&mut self, workers: usize) -> Result<Allocators, Fault> {
        let wires = std::mem::take(&mut self.wires);
        let hooks = Hooks::default();
        let inside =
            ProcessBuilder::new_typed_vector(workers, hooks.refill.clone(), hooks.spill.clone());
        let (builders, guard) =
            initialize_networking_from_sockets(inside, wires, self.members.me, workers, hooks)
                .map_err(|why| {
                    Fault::environment(format!("cannot set up the connections: {why}"))
                })?;
        Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Box::new(guard)))
    }

    /// Tells the others that the work of this process is done and everything is durable. A process
    /// that leaves from here on is not missed.
    pub fn finished(&self) {
        self.members.finish();
    }
}

impl Drop for Cluster {
    /// Tells the others how the run ended before the connections close.
    fn drop(&mut self) {
        self.members.wait_until_reported(END_REPORT_TIMEOUT);
        self.members.close();
        self.listener.close();
    }
}

/// Reports to the others how far the start of this process has come.
#[derive(Clone)]
pub struct StartReporter(Arc<Members>);

impl StartReporter {
    /// This process has reached a stage.
    pub fn reach(&self, stage: StartStage) {
        self.0.reach(stage);
    }
}

/// Ends the run if the start of the cluster stands still for `limit`.
fn watch_the_start(members: &Arc<Members>, limit: Duration) {
    let members = Arc::clone(members);
    let work = move || {
        let mut detector = StallDetector::new(limit, Instant::now());
        while let Some(stages) = members.stages() {
            match detector.check(stages.clone(), Instant::now()) {
                StartState::Started => return,
                StartState::Waiting => thread::sleep(STALL_CHECK_INTERVAL),
                StartState::Stalled(behind) => {
                    let who = |process: usize| {
                        format!("{} {}", members.name(process), stages[process].doing())
                    };
                    let who: Vec<String> = behind.into_iter().map(who).collect();
                    return members.run_state.fail(Fault::peer(format!(
                        "the cluster is complete, but its start has stood still for {limit:?}: {}. \
                         Start all processes again",
                        who.join("; ")
                    )));
                }
            }
        }
    };
    let thread = thread::Builder::new().name("cluster-start".to_owned());
    thread.spawn(work).expect("a thread can be started");
}
