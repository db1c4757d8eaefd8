//! Detects a database that has gone back to an earlier state: acknowledged commits are gone.
//!
//! This happens after a failover to a standby that lacked the last commits, after a crash with
//! `synchronous_commit = off`, and when a backup is restored. Because a commit is one transaction,
//! the database holds a complete earlier state. A new start can continue from it, but this run
//! cannot: its memory is ahead of the database.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use postgres::GenericClient;
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::plan::{Fence, RecoveryPlan};
use sessionizer_core::time::{Epoch, EventTime};

use crate::dataflow::ports::LedgerError;
use crate::ledger::LedgerConfig;
use crate::ledger::errors::classify;
use crate::ui::text;

/// The state that the writers of a run share.
pub struct Run {
    pub fence: Fence,
    /// The names of the topics, indexed as in the plan.
    pub topics: Vec<String>,
    /// The server that the first writer connected to.
    server: Mutex<Option<Server>>,
    /// The last epoch of an acknowledged commit.
    durable: AtomicU64,
}

impl Run {
    pub fn new(plan: &RecoveryPlan) -> Self {
        let durable = plan.progress.iter().map(|shard| shard.epoch).max().unwrap_or(0);
        Run {
            fence: plan.fence,
            topics: plan.topics.clone(),
            server: Mutex::default(),
            durable: AtomicU64::new(durable),
        }
    }

    /// A run for the trial of a commit, before there is a plan.
    pub(super) fn on_trial(fence: Fence, topics: &[String]) -> Self {
        let (topics, server) = (topics.to_vec(), Mutex::default());
        Run { fence, topics, server, durable: AtomicU64::new(0) }
    }

    /// Notes that a commit of some writer up to this epoch was acknowledged.
    pub fn committed(&self, epoch: Epoch) {
        self.durable.fetch_max(epoch, Relaxed);
    }

    /// Notes the server, if no writer has connected before.
    pub fn note_server(&self, client: &mut impl GenericClient) {
        let mut first = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            *first = Server::query(client);
        }
    }

    /// Returns what has happened to the server since the first writer connected.
    fn server_change(&self, client: &mut impl GenericClient) -> Option<ServerChange> {
        let first = self.server.lock().unwrap_or_else(PoisonError::into_inner).clone();
        first.zip(Server::query(client)).and_then(|(before, now)| before.change(&now))
    }
}

/// What distinguishes a server from another one, and from itself at another time.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Server {
    /// The system identifier, assigned by initdb; a standby and a physical backup share that of
    /// their primary.
    system: String,
    /// Counts promotions.
    timeline: u32,
    started: String,
}

/// What has happened to the server since the run began.
#[derive(Clone, PartialEq, Eq, Debug)]
enum ServerChange {
    AnotherSystem { before: String, now: String },
    Promoted { before: u32, now: u32 },
    OlderTimeline { before: u32, now: u32 },
    Restarted,
}

impl Server {
    /// Returns `None` if the server does not report this: not every server that speaks the protocol
    /// is PostgreSQL.
    fn query(client: &mut impl GenericClient) -> Option<Self> {
        let row = client.query_one(
            "select (pg_control_system()).system_identifier::text,
                    left(pg_walfile_name(pg_current_wal_lsn()), 8),
                    pg_postmaster_start_time()::text",
            &[],
        );
        let row = row.inspect_err(|why| log::debug!("which server this is: {why}")).ok()?;
        Some(Server {
            system: row.get(0),
            timeline: u32::from_str_radix(row.get(1), 16).ok()?,
            started: row.get(2),
        })
    }

    fn change(&self, now: &Server) -> Option<ServerChange> {
        if self.system != now.system {
            let (before, now) = (self.system.clone(), now.system.clone());
            return Some(ServerChange::AnotherSystem { before, now });
        }
        let (before, now_at) = (self.timeline, now.timeline);
        match before.cmp(&now_at) {
            std::cmp::Ordering::Less => Some(ServerChange::Promoted { before, now: now_at }),
            std::cmp::Ordering::Greater => {
                Some(ServerChange::OlderTimeline { before, now: now_at })
            }
            std::cmp::Ordering::Equal => {
                (self.started != now.started).then_some(ServerChange::Restarted)
            }
        }
    }
}

/// How far the database has gone back.
struct Rollback {
    job: String,
    /// The last epoch whose commit was acknowledged.
    durable: Epoch,
    /// The newest epoch in the database; `None` if the job is missing.
    there: Option<Epoch>,
}

/// The fault for a database that has gone back. A run of one process restarts by itself, unless
/// this is a different server or an old primary.
fn gone_back(rollback: &Rollback, server_change: Option<&ServerChange>) -> LedgerError {
    let Rollback { job, durable, there } = rollback;
    let time = |epoch: Epoch| EventTime::from_millis(epoch as i64);
    let missing = match there {
        None => format!(
            "the job {job} is not there, and had committed the epoch {durable} ({})",
            time(*durable)
        ),
        Some(there) if there < durable => format!(
            "of the job {job}, the epoch {durable} ({}) was committed, and the newest there is \
             {there}, {} before",
            time(*durable),
            text::duration(Duration::from_millis(durable - there)),
        ),
        Some(there) => format!(
            "of the job {job}, the newest epoch is {there} ({}), and the start of this run is \
             missing",
            time(*there)
        ),
    };
    let cause = match server_change {
        Some(ServerChange::AnotherSystem { before, now }) => format!(
            "This is another server (system identifier {now}, before it was {before}): a dump was \
             restored on it, or POSTGRES_URL, DNS or a proxy leads to the wrong one"
        ),
        Some(ServerChange::Promoted { before, now }) => format!(
            "A standby was promoted that lacked the last commits (timeline {now}, before it was \
             {before}): an asynchronous failover"
        ),
        Some(ServerChange::OlderTimeline { before, now }) => format!(
            "This is a server from before a failover (timeline {now}, the job was on {before} \
             already): an old primary that still runs, or a backup was restored"
        ),
        Some(ServerChange::Restarted) => "The server was restarted meanwhile: after a crash with \
                                    synchronous_commit = off, or with the files of a backup"
            .to_owned(),
        None => "It may be an asynchronous failover, a restored backup, or a crash with \
                 synchronous_commit = off"
            .to_owned(),
    };
    let why = format!("the database has gone back to an earlier state: {missing}. {cause}");
    LedgerError::Fatal(match server_change {
        Some(ServerChange::AnotherSystem { .. } | ServerChange::OlderTimeline { .. }) => {
            let remedy = "If that is what it should be, start the job again";
            Fault::environment(Message::new(why).remedy(". ", remedy))
        }
        _ => Fault::gone_back(why),
    })
}

/// Finds out why the shards of a writer are not as it left them.
pub fn diagnose(client: &mut impl GenericClient, config: &LedgerConfig, run: &Run) -> LedgerError {
    find_cause(client, config, run)
        .unwrap_or_else(|why| classify(&why, "finding out who has taken over"))
}

fn find_cause(
    client: &mut impl GenericClient,
    config: &LedgerConfig,
    run: &Run,
) -> Result<LedgerError, postgres::Error> {
    let job = &config.job;
    let durable = run.durable.load(Relaxed);
    let row = client.query_opt(
        "select max(p.generation), max(p.run), max(p.epoch), j.started_by, j.started_at::text,
                (select coalesce(max(e.epoch), 0) from sessionizer.epochs e where e.job = j.job)
         from sessionizer.jobs j join sessionizer.shard_progress p using (job)
         where j.job = $1 group by j.job",
        &[job],
    )?;
    let server_change = run.server_change(client);
    let Some(row) = row else {
        let rollback = Rollback { job: job.clone(), durable, there: None };
        return Ok(match server_change {
            Some(server_change) => gone_back(&rollback, Some(&server_change)),
            None => LedgerError::Fatal(Fault::config(format!(
                "the job {job} is gone from sessionizer.jobs: it was deleted while it ran"
            ))),
        });
    };
    let (generation, there_run): (i64, Option<i64>) = (row.get(0), row.get(1));
    let newest = row.get::<_, i64>(2) as Epoch;
    if generation > run.fence.generation
        || generation == run.fence.generation && there_run != Some(run.fence.run)
    {
        let (by, since): (String, String) = (row.get(3), row.get(4));
        return Ok(LedgerError::Fatal(Fault::fenced(format!(
            "another instance of the job {job} has taken over ({by}, since {since}); this one \
             stops and writes nothing more"
        ))));
    }
    // The totals of an epoch are kept as long as a shard stands at it.
    let bound = row.get::<_, i64>(5) as Epoch;
    if generation < run.fence.generation || bound < durable || server_change.is_some() {
        let rollback = Rollback { job: job.clone(), durable, there: Some(newest) };
        return Ok(gone_back(&rollback, server_change.as_ref()));
    }
    Ok(LedgerError::Fatal(Fault::environment(format!(
        "the job {job}'s rows in sessionizer.shard_progress are not as this instance left them; \
         were they changed by hand?"
    ))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(system: &str, timeline: u32, started: &str) -> Server {
        Server { system: system.to_owned(), timeline, started: started.to_owned() }
    }

    #[test]
    fn a_server_is_distinguished_from_others_and_from_itself_at_another_time() {
        let first = server("1", 2, "noon");
        assert_eq!(first.change(&server("1", 2, "noon")), None);
        assert_eq!(first.change(&server("1", 2, "one")), Some(ServerChange::Restarted));
        assert_eq!(
            first.change(&server("1", 3, "noon")),
            Some(ServerChange::Promoted { before: 2, now: 3 })
        );
        assert_eq!(
            first.change(&server("1", 1, "one")),
            Some(ServerChange::OlderTimeline { before: 2, now: 1 })
        );
        assert!(matches!(
            first.change(&server("2", 2, "noon")),
            Some(ServerChange::AnotherSystem { .. })
        ));
    }

    #[test]
    fn a_job_goes_on_by_itself_only_on_the_server_that_it_knows() {
        let rollback = Rollback { job: "j".to_owned(), durable: 7_000, there: Some(5_000) };
        let fault = |server_change: Option<ServerChange>| match gone_back(
            &rollback,
            server_change.as_ref(),
        ) {
            LedgerError::Fatal(fault) => fault,
            LedgerError::Retry(why) => panic!("{why}"),
        };
        let is_retryable = |server_change| matches!(fault(server_change), Fault::GoneBack(_));
        assert!(is_retryable(None) && is_retryable(Some(ServerChange::Restarted)));
        assert!(is_retryable(Some(ServerChange::Promoted { before: 1, now: 2 })));
        assert!(!is_retryable(Some(ServerChange::OlderTimeline { before: 2, now: 1 })));
        let (before, now) = ("1".to_owned(), "2".to_owned());
        assert!(!is_retryable(Some(ServerChange::AnotherSystem { before, now })));
        let text = fault(None).to_string();
        for part in ["the epoch 7000 (1970-01-01T00:00:07", "the newest there is 5000, 2 s before"]
        {
            assert!(text.contains(part), "{part:?} is missing in {text}");
        }
    }
}
