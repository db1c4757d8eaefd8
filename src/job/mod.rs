//! One run of the job in this process: how it begins, what its workers do, and how it ends.

pub mod clock;
mod monitoring;
mod notify;
pub mod recover;
mod report;
pub mod shutdown;
pub mod status_line;
pub mod system;
pub mod worker;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use log::{info, warn};
use sessionizer_core::fault::{Fault, Message};

use crate::cluster::{Allocators, Cluster, ClusterConfig, hosts};
use crate::config::{Config, read_file};
use crate::dataflow::run_state::RunState;
use crate::dataflow::statistics::quota::Quotas;
use crate::job::clock::now_ms;
use crate::job::monitoring::{Watchers, facts};
use crate::job::shutdown::{end_cluster_process, join_workers, watch_end};
use crate::job::status_line::{Done, Ending, Progress, ending};
use crate::job::worker::Job;

/// Once this process has written this many rows, short epochs are committed together. Before that,
/// the table's primary key has few pages, and waiting costs more than it saves (docs/DECISIONS.md).
pub(super) const GATHER_FROM_ROWS: u64 = 1_000_000;

/// The bounds of the interval at which the brokers are asked where the partitions end. The interval
/// itself is a quarter of the idle timeout.
pub(super) const MIN_ENDS_INTERVAL: Duration = Duration::from_millis(250);

pub(super) const MAX_ENDS_INTERVAL: Duration = Duration::from_secs(2);

/// A run that ends this soon because the database has gone back has made no progress. After a
/// number of such runs in a row, the job ends.
const SHORT_RUN_DURATION: Duration = Duration::from_secs(60);

const MAX_SHORT_RUNS: u32 = 5;

/// Runs the job until it is asked to stop, has read to the end, or fails. If the database has gone
/// back to an earlier state, a single process continues from that state, as a new start would. A
/// cluster ends, and has to be started again.
pub fn run(config: &Config, run_state: &Arc<RunState>) -> Result<(), Fault> {
    let mut run_state = Arc::clone(run_state);
    let watchers = Watchers::start(config, &run_state);
    let ended = run_on(config, &mut run_state, |run_state| watchers.follow(run_state));
    watchers.end(&ended, run_state.stopping());
    ended
}

fn run_on(
    config: &Config,
    run_state: &mut Arc<RunState>,
    follow: impl Fn(&Arc<RunState>),
) -> Result<(), Fault> {
    let mut short_runs = 0;
    loop {
        let began = Instant::now();
        let ended = run_once(config, run_state);
        let Err(Fault::GoneBack(why)) = ended else { return ended };
        short_runs = if began.elapsed() < SHORT_RUN_DURATION { short_runs + 1 } else { 0 };
        if config.processes > 1 || run_state.stopping() || short_runs >= MAX_SHORT_RUNS {
            let remedy = "Start the job again: it continues from what is there, and rereads what is \
                          missing";
            return Err(Fault::gone_back(why.remedy(". ", remedy)));
        }
        warn!("{why}. The job continues from what is there, and rereads what is missing");
        *run_state = Arc::new(run_state.successor());
        follow(run_state);
    }
}

fn run_once(config: &Config, run_state: &Arc<RunState>) -> Result<(), Fault> {
    let began = Instant::now();
    for name in &config.ledger.url.ignored {
        info!("POSTGRES_URL: the parameter {name} has no effect here and is ignored");
    }
    let (cluster, (builders, others)) = if config.processes == 1 {
        places(config)?; // Only a hostfile that contradicts is an error.
        (None, alone(config.workers)?)
    } else {
        match join(config, run_state)? {
            Some((cluster, allocators)) => (Some(cluster), allocators),
            None => {
                info!("stopped while other processes were missing");
                return Ok(());
            }
        }
    };
    let watchdog = cluster.as_ref().map(|_| watch_end(run_state));
    let progress = Progress::start(facts(config), Arc::clone(run_state));
    let job = Arc::new(Job {
        config: config.clone(),
        run_state: Arc::clone(run_state),
        start_reporter: cluster.as_ref().map(Cluster::start_reporter),
        watcher: Mutex::default(),
        loaded: Mutex::default(),
        initial_rows: Mutex::default(),
        quotas: Quotas::default(),
    });
    let (ended, ends) = channel();
    let worker_config = timely::WorkerConfig::default();
    let guards = timely::execute::execute_from(builders, others, worker_config, move |worker| {
        if let Err(fault) = job.work(worker) {
            job.run_state.fail(fault);
        }
        // Any dataflow left over belongs to a run that ended some other way. None of it may
        // continue.
        for dataflow in worker.installed_dataflows() {
            worker.drop_dataflow(dataflow);
        }
        let _ = ended.send(()); // After a timeout, nobody listens any more.
    });
    let guards = guards.map_err(Fault::environment)?;
    match &cluster {
        None => join_workers(guards, run_state),
        Some(cluster) => end_cluster_process(cluster, guards, &ends, config.workers, run_state),
    }
    drop(progress);
    drop(cluster);
    drop(watchdog);
    if let Some(fault) = run_state.fault() {
        return Err(fault);
    }
    log_end(config, run_state, began.elapsed());
    Ok(())
}

/// Logs how a run without a fault has ended, and what it has done.
fn log_end(config: &Config, run_state: &RunState, took: Duration) {
    let how = match (run_state.abandoned(), config.until_end && !run_state.stopping()) {
        (true, _) => Ending::StoppedWhileReadingAgain,
        (false, true) => Ending::ReadToTheEnd,
        (false, false) => Ending::Stopped,
    };
    let metrics = &run_state.metrics;
    let done = Done {
        records: metrics.records.load(Relaxed),
        rows: metrics.rows.load(Relaxed) + metrics.late.load(Relaxed),
        late: metrics.late.load(Relaxed),
        dead: metrics.dead.load(Relaxed),
        held_offsets: metrics.held_offsets.load(Relaxed),
        took,
    };
    info!("{}", ending(how, done));
}

/// The allocators for the workers of a single-process job.
fn alone(workers: usize) -> Result<Allocators, Fault> {
    let communication = match workers {
        1 => timely::CommunicationConfig::Thread,
        several => timely::CommunicationConfig::Process(several),
    };
    communication.try_build().map_err(Fault::environment)
}

/// Where the processes of the job are.
pub struct Places {
    /// The address of each process.
    pub addresses: Vec<String>,
    /// What to say if the hostfile names more processes than the job has.
    pub unused: Option<Message>,
}

/// The addresses of all processes: those of the hostfile, or on this machine.
pub fn places(config: &Config) -> Result<Places, Fault> {
    let processes = config.processes;
    let Some(path) = &config.hostfile else {
        return Ok(Places { addresses: hosts::local(processes), unused: None });
    };
    let place = path.display();
    let bytes = read_file(path).map_err(|why| {
        Fault::config(format!("the hostfile {place} (--hostfile) cannot be read: {why}"))
    })?;
    let text = String::from_utf8_lossy(&bytes);
    let named = hosts::named(&text);
    if processes == 1 && named > 1 {
        let problem = format!(
            "the hostfile {place} (--hostfile) names several processes, and --processes is 1"
        );
        let remedy = "give -n, or leave the hostfile out";
        return Err(Fault::config(Message::new(problem).remedy(": ", remedy)));
    }
    let addresses = hosts::parse(&text, processes)
        .map_err(|what| Fault::config(what.after(&format!("the hostfile {place} "))))?;
    let unused = (named > processes).then(|| {
        let problem = format!(
            "the hostfile {place} names {}, and --processes is {processes}, so only the first \
             {processes} run the job",
            hosts::processes_in_words(named)
        );
        Message::new(problem).remedy(": ", format!("give -n {named} if it is all of them"))
    });
    Ok(Places { addresses, unused })
}

/// Waits for the other processes of the job. Returns `None` if this process is to stop first.
fn join(
    config: &Config,
    run_state: &Arc<RunState>,
) -> Result<Option<(Cluster, Allocators)>, Fault> {
    let Places { addresses, unused } = places(config)?;
    unused.iter().for_each(|warning| warn!("{warning}"));
    let cluster = ClusterConfig {
        process: config.process,
        addresses,
        peer_timeout: config.peer_timeout,
        start_timeout: config.start_timeout,
        wall_ms: now_ms,
        secret: config.cluster_secret.clone(),
        insecure: config.cluster_insecure,
    };
    let Some(mut cluster) = Cluster::gather(&cluster, config.shared(), run_state)? else {
        return Ok(None);
    };
    let allocators = cluster.allocators(config.workers)?;
    Ok(Some((cluster, allocators)))
}
