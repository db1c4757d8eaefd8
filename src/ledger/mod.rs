//! The ledger in Postgres: the only module that names the `postgres` crate.
//!
//! Connecting, and what a start checks:
//!
//! - `url` parses the address, `connect` opens connections, and `pooler` detects a pooler that
//!   shares them between clients. `errors` decides which errors are worth a retry, and `blocked`
//!   says who keeps a session waiting.
//! - `trust` decides whose code may run, and `rights` checks what the login may do.
//! - `table` knows the table of sessions, and `columns` whether it can hold them.
//! - `peek` looks before a start, and `inspect` looks at everything for a check.
//! - `job` creates the job or checks its settings, `start` takes the fence, and `probe` rehearses
//!   what the job will do.
//! - `schema` applies migrations.
//!
//! Running:
//!
//! - `durable` reads and checks the durable state, and `commit` writes epochs.
//! - `loss` records what Kafka has lost, and `rollback` detects a database that has gone back to an
//!   earlier state.
//! - `prune` deletes old dead letters.
//! - `anomalies` writes the rows of anomalies, and `initial_rows` reads the rows that the statistics
//!   start from.
//! - `watch` reads the balance and the last audit for the page.
//!
//! Other commands:
//!
//! - `audit` reads the durable state for an audit, and `audits` keeps what it has found.
//! - `report` runs the queries of a report, and `reset` removes a job.
//! - `stopped` knows whether a job was stopped cleanly, and `open_sessions` reads its snapshots for
//!   people.
//! - `forget` removes a visitor (`mention` looks for it in texts, `forgotten` remembers it for
//!   audits), and `redrive` processes dead letters again.
//!
//! `copy` encodes rows for COPY. Each statement is beside its one caller, except those of a commit
//! (`commit/statements.rs`); the objects they use are in `migrations/`.

mod anomalies;
pub mod audit;
mod audits;
mod blocked;
mod columns;
pub mod commit;
mod connect;
mod copy;
mod durable;
mod errors;
mod forget;
mod forgotten;
mod initial_rows;
pub mod inspect;
mod job;
mod loss;
mod mention;
mod open_sessions;
mod peek;
mod pooler;
mod probe;
mod prune;
mod redrive;
pub mod report;
pub mod reset;
mod rights;
mod rollback;
pub mod schema;
pub mod start;
mod stopped;
mod table;
mod trust;
mod unverified;
pub mod url;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

pub use anomalies::AnomalyRows;
pub use audit::{AuditSnapshot, Balance};
pub use audits::{Audits, NewAudit, StoredAudit};
use blocked::WatchedClient;
pub use commit::ROW_REFUSED;
pub use durable::{NamedBinding, NamedEpoch, RESTORE, RecoveredState};
pub use forget::{Removed, Visitor};
pub use forgotten::Forgotten;
pub use initial_rows::InitialRows;
pub use inspect::Found;
use log::info;
pub use loss::Loss;
pub use open_sessions::{OpenSessions, WantedSessions};
pub use peek::{Database, ExistingRows, FirstStart};
pub use prune::keep_dead_letters;
pub use redrive::{
    Cut, Decoded, Position, ReasonCounts, Redrive, Redriven, decode as decode_again,
};
pub use reset::{ResetPlan, RowCount};
pub use rollback::Run;
use sessionizer_core::fault::Fault;
use sessionizer_core::key::Shard;
use sessionizer_core::plan::Fence;
use sessionizer_core::secret::Secret;
pub use sessionizer_core::session::SessionEnd;
use sessionizer_core::time::{Epoch, EventTime, Gap};
pub use start::{StartOptions, Started};
pub use table::Table;
use url::PostgresUrl;
pub use watch::BalanceWatch;

use crate::dataflow::ports::{Cause, Ledger, LedgerError};
use crate::dataflow::run_state::RunState;
use crate::ui::text;
use crate::ui::waiting::{Awaited, WaitGuard};

/// A start logs that it is waiting after this long without an answer.
const WAITING_NOTICE_DELAY: Duration = Duration::from_secs(5);
/// A query is given at least this long to answer, even if the timeout of the start is over.
const MIN_QUERY_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection is given at least this long. It is less than for a query, because not every open
/// port leads to a server that answers.
const MIN_CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// What the ledger needs to know about the job.
#[derive(Clone, Debug)]
pub struct LedgerConfig {
    pub url: PostgresUrl,
    pub user: String,
    pub password: Secret,
    pub job: String,
    /// `name` or `schema.name`, each taken literally.
    pub table: String,
    pub shards: u32,
    pub gap: Gap,
    pub session_end: SessionEnd,
    /// Whether a start may continue if the job's rows are gone.
    pub accept_empty_table: bool,
}

/// Formats milliseconds as a duration for people: `5m`.
fn human_duration(ms: i64) -> String {
    let duration = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    humantime::format_duration(duration).to_string()
}

/// Records losses that the user accepts. Returns the latest end of any session in the table.
pub fn accept_losses(
    config: &LedgerConfig,
    losses: &[Loss],
    first_epoch: Epoch,
) -> Result<EventTime, LedgerError> {
    let mut client = connect::connect(config)?;
    loss::accept_losses(&mut client, config, losses, first_epoch)
}

/// Returns what a reset of the job would remove; refuses a job that is running or does not exist.
pub fn look_before_reset(config: &LedgerConfig) -> Result<ResetPlan, LedgerError> {
    reset::look(config)
}

/// Removes the job and the rows of its table.
pub fn reset(config: &LedgerConfig, run_state: &RunState) -> Result<(), LedgerError> {
    reset::remove(config, run_state)
}

/// Returns the dead letters of these reasons whose payload was cut.
pub fn cut_letters(config: &LedgerConfig, reasons: &[String]) -> Result<Vec<Cut>, LedgerError> {
    redrive::cut(config, reasons)
}

/// Merges the dead letters that are events now. Without a run that `commits`, it only says what
/// would happen.
pub fn redrive(
    config: &LedgerConfig,
    request: &Redrive,
    commits: Option<&RunState>,
) -> Result<Redriven, LedgerError> {
    redrive::redrive(config, request, commits)
}

/// Removes everything about a visitor. Without a run that `commits`, it only says what would be
/// removed.
pub fn forget(
    config: &LedgerConfig,
    visitor: &Visitor,
    commits: Option<&RunState>,
) -> Result<Removed, LedgerError> {
    forget::forget(config, visitor, commits)
}

/// Brings the planner's statistics up to date after a visitor was forgotten.
pub fn analyze(config: &LedgerConfig, table: &str) -> Result<(), LedgerError> {
    forget::analyze(config, table)
}

/// Reads the open sessions of a job, at most `limit` of them in detail.
pub fn open_sessions(
    config: &LedgerConfig,
    wanted: &WantedSessions,
    limit: usize,
) -> Result<OpenSessions, LedgerError> {
    open_sessions::read(config, wanted, limit)
}

/// Checks that the certificates and keys which the URL names can be used.
pub fn check_files(config: &LedgerConfig) -> Result<(), Fault> {
    connect::tls(&config.url).map(drop).map_err(Fault::config)
}

/// Opens the ledger of a writer, with a connection of its own.
pub fn open_writer(
    config: &Arc<LedgerConfig>,
    run: &Arc<Run>,
) -> Result<Box<dyn Ledger>, LedgerError> {
    let writer = commit::LedgerWriter::open(Arc::clone(config), Arc::clone(run))?;
    Ok(Box::new(writer))
}

/// Returns the quoted schema and name of the relation with the table's name; `None` if there is
/// none.
pub fn qualified_table_name(config: &LedgerConfig) -> Result<Option<String>, LedgerError> {
    table::qualified_name(&mut connect::connect(config)?, config)
}

/// Runs a query and returns its rows as text, for the tables at the end of a demonstration.
pub fn query(config: &LedgerConfig, sql: &str) -> Result<Vec<Vec<String>>, LedgerError> {
    let mut client = connect::connect(config)?;
    let messages = client.simple_query(sql).map_err(|why| errors::classify(&why, "a query"))?;
    let mut rows = Vec::new();
    for message in messages {
        if let postgres::SimpleQueryMessage::Row(row) = message {
            if rows.is_empty() {
                rows.push(row.columns().iter().map(|c| c.name().to_owned()).collect());
            }
            rows.push((0..row.len()).map(|at| row.get(at).unwrap_or("").to_owned()).collect());
        }
    }
    Ok(rows)
}

/// Looks at the job and its table before a start, as soon as Postgres answers. Waits at most
/// `timeout`. `None`: the job has already committed something.
pub fn peek_with_retries(
    config: &LedgerConfig,
    timeout: Duration,
    give_up: impl FnMut() -> bool,
) -> Result<Option<FirstStart>, Fault> {
    let owned_config = config.clone();
    query_with_retries(config, timeout, give_up, move |progress| {
        peek::peek(&mut *progress.connect_directly(&owned_config)?, &owned_config)
    })
}

/// Prepares the database, takes the fence and reads the durable state, as soon as Postgres answers.
/// Waits at most `timeout`.
pub fn start_with_retries(
    config: &LedgerConfig,
    topics: &[String],
    options: StartOptions,
    timeout: Duration,
    give_up: impl FnMut() -> bool,
) -> Result<Started, Fault> {
    let (owned_config, topics) = (config.clone(), topics.to_vec());
    query_with_retries(config, timeout, give_up, move |progress| {
        start::start(&mut *progress.connect(&owned_config)?, &owned_config, &topics, options)
    })
}

/// Reads the snapshots of some shards (shard, epoch, bytes), as soon as Postgres answers. Waits at
/// most `timeout`. Fails if the run that holds this fence is not the newest.
pub fn snapshots_with_retries(
    config: &LedgerConfig,
    fence: (Fence, bool),
    shards: Vec<Shard>,
    timeout: Duration,
    give_up: impl FnMut() -> bool,
) -> Result<Vec<(Shard, u64, Vec<u8>)>, Fault> {
    let owned_config = config.clone();
    query_with_retries(config, timeout, give_up, move |progress| {
        start::snapshots(
            &mut *progress.connect(&owned_config)?,
            &owned_config,
            fence,
            &shards,
            || {
                progress.parts.fetch_add(1, Relaxed);
            },
        )
    })
}

/// How far a query has come before it completes.
#[derive(Default)]
struct QueryProgress {
    connected: AtomicBool,
    /// How many parts of the answer have arrived.
    parts: AtomicU64,
}

impl QueryProgress {
    fn connect(&self, config: &LedgerConfig) -> Result<WatchedClient, LedgerError> {
        let client = connect::connect(config)?;
        self.connected.store(true, Relaxed);
        WatchedClient::new(client, config)
    }

    /// Connects; refuses a connection that a pooler shares with other clients.
    fn connect_directly(&self, config: &LedgerConfig) -> Result<WatchedClient, LedgerError> {
        let mut client = self.connect(config)?;
        pooler::refuse_shared(&mut client, config, connect::connect)?;
        Ok(client)
    }
}

/// Repeats a query until Postgres answers. Logs once what it is waiting for, and gives up after
/// `timeout` without progress. A query may take longer than that as long as parts of its
/// answer arrive: it counts them in [`QueryProgress::parts`].
///
/// Each query runs on a thread of its own: a connection that is never accepted, or a lock that is
/// never granted, must not keep a start from stopping.
fn query_with_retries<T: Send + 'static>(
    config: &LedgerConfig,
    timeout: Duration,
    mut give_up: impl FnMut() -> bool,
    query: impl Fn(&QueryProgress) -> Result<T, LedgerError> + Send + Sync + 'static,
) -> Result<T, Fault> {
    let query = Arc::new(query);
    let progress = Arc::new(QueryProgress::default());
    let mut last_part = (0, Instant::now());
    let awaited = Awaited::Postgres(Some(config.url.to_string()));
    let mut waiting = Some(WaitGuard::new(awaited, Some(timeout)));
    let mut is_logged = false;
    let mut log_once = |why: &str| {
        if !std::mem::replace(&mut is_logged, true) {
            info!("waiting for Postgres at {}: {why}", config.url);
        }
    };
    loop {
        let started = Instant::now();
        let (sender, answer) = channel();
        let (query, counts) = (Arc::clone(&query), Arc::clone(&progress));
        let thread = thread::Builder::new().name("postgres-start".to_owned());
        // Nobody receives the answer to a query that was abandoned.
        thread.spawn(move || drop(sender.send(query(&counts)))).expect("a thread can be started");
        let (why, cause) = loop {
            let parts = progress.parts.load(Relaxed);
            let least = if progress.connected.load(Relaxed) {
                MIN_QUERY_TIMEOUT
            } else {
                MIN_CONNECT_TIMEOUT
            };
            if parts != last_part.0 {
                last_part = (parts, Instant::now());
                waiting = None;
            }
            match answer.recv_timeout(Duration::from_millis(100)) {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(LedgerError::Fatal(fault))) => return Err(fault),
                Ok(Err(LedgerError::Retry(failure))) => break (failure.message(), failure.cause),
                Err(_) if give_up() => break ("no answer".into(), Cause::Other),
                Err(_) if last_part.1.elapsed() >= timeout && started.elapsed() >= least => {
                    let waited = text::duration(timeout.max(least));
                    break (format!("no answer for {waited}").into(), Cause::Other);
                }
                Err(_) if started.elapsed() >= WAITING_NOTICE_DELAY => log_once("no answer yet"),
                Err(_) => {}
            }
        };
        if last_part.1.elapsed() >= timeout || give_up() {
            let problem = format!("Postgres at {} cannot be used", config.url);
            let message = why.context(&problem).or_remedy("; ", connect::to_check(cause));
            return Err(Fault::environment(message));
        }
        let why = why.to_string();
        log_once(&why);
        if let Some(waiting) = &waiting {
            waiting.because(&why);
        }
        thread::sleep(Duration::from_millis(500));
    }
}
