//! A cluster: how the processes of one job find each other, agree, and notice that one is lost.
//!
//! ```text
//!   gather     every process listens on its own address and dials those before it in the hostfile.
//!              Two connections a pair: a link (signs of life, notices) and a wire (timely's data).
//!   agree      whoever connects says how it was started; processes with other settings are told
//!              so, both sides, and nothing has begun yet. A stranger is turned away.
//!   run        when everybody has everybody. Only then does process 0 take the fence.
//!   lose       a link that ends or falls silent ends the run, with the name of the process.
//! ```
//!
//! Nothing here makes a table right: a process that is cut off and wakes up later is kept out by
//! the fence in Postgres. This is about noticing soon, and about saying what happened.
//!
//! The links carry no TLS and ask for no password: they belong in a network of their own.

mod gather;
mod greeting;
pub mod hosts;
mod link;
mod members;
#[cfg(test)]
mod tests;
mod wire;

use std::any::Any;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use log::info;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
use timely::communication::initialize::Hooks;

pub use greeting::Setting;

use crate::control::{Control, Fault};
use members::{Gathered, Members};
use wire::Wire;

/// How long the end of a run waits until every peer knows of it.
const TELLING: Duration = Duration::from_millis(500);

/// Where a process is in its cluster.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// The index of this process.
    pub process: usize,
    /// `host:port` of every process, by index.
    pub addresses: Vec<String>,
    /// A peer that is silent for so long is lost.
    pub peer_timeout: Duration,
    /// How long an address of our own may be in use by somebody else.
    pub start_timeout: Duration,
    /// The wall clock, milliseconds since 1970: processes compare theirs.
    pub wall_ms: fn() -> u64,
}

/// All processes of a job, seen from one of them.
pub struct Cluster {
    members: Arc<Members>,
    listener: gather::Listener,
    /// By index, none for this process; timely takes them.
    wires: Vec<Option<Wire>>,
}

/// What timely's workers are built from.
pub type Allocators = (Vec<AllocatorBuilder>, Box<dyn Any + Send>);

impl Cluster {
    /// Waits until all processes are here and have the same settings; `None` if this run is to stop
    /// before.
    pub fn gather(
        config: &ClusterConfig,
        settings: Vec<Setting>,
        control: &Arc<Control>,
    ) -> Result<Option<Cluster>, Fault> {
        let members = Arc::new(Members::new(
            (config.process, config.addresses.clone()),
            RandomState::new().build_hasher().finish(),
            settings,
            (config.peer_timeout, config.wall_ms),
            Arc::clone(control),
        ));
        let Some(listener) = gather::listen(&members, config.start_timeout)? else {
            return Ok(None);
        };
        let mut cluster = Cluster { members, listener, wires: Vec::new() };
        gather::dial(&cluster.members);
        let wires = match cluster.members.gather() {
            Gathered::Complete(wires) => wires,
            Gathered::Stopped => return Ok(None),
            Gathered::Failed(fault) => {
                control.fail(fault.clone());
                return Err(fault);
            }
        };
        let others = wires.len() - 1;
        info!("process {} of {} is here, and so are all others", config.process, others + 1);
        let wire = |(process, stream): (usize, Option<_>)| {
            Some(Wire::new(stream?, process, &cluster.members))
        };
        cluster.wires = wires.into_iter().enumerate().map(wire).collect();
        Ok(Some(cluster))
    }

    /// What timely's workers of this process are built from.
    pub fn allocators(&mut self, workers: usize) -> Result<Allocators, Fault> {
        let wires = std::mem::take(&mut self.wires);
        let hooks = Hooks::default();
        let inside =
            ProcessBuilder::new_typed_vector(workers, hooks.refill.clone(), hooks.spill.clone());
        let (builders, guard) =
            initialize_networking_from_sockets(inside, wires, self.members.me, workers, hooks)
                .map_err(|why| Fault::World(format!("cannot set up the connections: {why}")))?;
        Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Box::new(guard)))
    }

    /// The work of this process is done, and everything is durable: the others are told, and whoever
    /// goes from here on is not missed.
    pub fn finished(&self) {
        self.members.finish();
    }
}

impl Drop for Cluster {
    /// The others know how it ended before the connections do.
    fn drop(&mut self) {
        self.members.wait_until_told(TELLING);
        self.members.close();
        self.listener.close();
    }
}
