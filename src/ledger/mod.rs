//! The ledger in Postgres: the only place that names it.
//!
//! `url` parses the address, `connect` opens connections, `pooler` detects a pooler that shares
//! them between clients, `trust` decides whose code may run, `table` knows the table of sessions,
//! `peek` looks before a start, `start` takes the fence, `job` creates the job or checks its
//! settings, `probe` rehearses what the job will do, `durable` reads and checks the durable state,
//! `loss` records what Kafka has lost, `commit` writes epochs, `past` detects a database that has
//! gone back to an earlier state, `audit` checks the balance, `prune` deletes old dead letters, and
//! `reset` removes a job. Statements stand beside their one caller; the objects they use are in
//! `schema.sql`.

pub mod audit;
pub mod commit;
mod connect;
mod copy;
mod durable;
mod job;
mod loss;
mod past;
mod peek;
mod pooler;
mod probe;
mod prune;
pub mod reset;
pub mod start;
mod table;
mod trust;
pub mod url;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

pub use audit::{Balance, Moment};
pub use durable::{NamedBinding, NamedEpoch, RecoveredState};
use log::info;
pub use loss::Loss;
pub use past::Run;
pub use peek::{FirstStart, Place, Rows};
pub use prune::keep_dead_letters;
pub use reset::{Doomed, RowCount};
use sessionizer_core::fault::Fault;
use sessionizer_core::key::Shard;
use sessionizer_core::plan::Fence;
use sessionizer_core::secret::Secret;
use sessionizer_core::time::{Epoch, EventTime, Gap};
pub use start::Started;
pub use table::SessionEnd;
use url::PostgresUrl;

use crate::dataflow::ports::{Ledger, LedgerError};
use crate::ui::text;
use crate::ui::waiting::Waiting;

/// A start that has no answer for so long says so.
const SILENCE: Duration = Duration::from_secs(5);
/// A question gets so much time for its answer, even if a start has no patience left...
const QUESTION: Duration = Duration::from_secs(3);
/// ... and so much until there is a connection: not every port leads to a server that says a word.
const CONNECTION: Duration = Duration::from_millis(500);

/// What the ledger has to know about the job.
#[derive(Clone, Debug)]
pub struct LedgerConfig {
    pub url: PostgresUrl,
    pub user: String,
    pub password: Secret,
    pub job: String,
    /// `name` or `schema.name`, each taken as it is written.
    pub table: String,
    pub shards: u32,
    pub gap: Gap,
    pub session_end: SessionEnd,
}

/// Milliseconds as people write a duration: `5m`.
fn humane(ms: i64) -> String {
    let duration = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    humantime::format_duration(duration).to_string()
}

/// Notes losses that the user accepts; no session of the table ends later than what comes back.
pub fn accept_losses(
    config: &LedgerConfig,
    losses: &[Loss],
    first_epoch: Epoch,
) -> Result<EventTime, LedgerError> {
    let mut client = connect::connect(config)?;
    loss::accept_losses(&mut client, config, losses, first_epoch)
}

/// What a reset of the job would remove; refuses a job that runs or is not there.
pub fn look_before_reset(config: &LedgerConfig) -> Result<Doomed, LedgerError> {
    reset::look(config)
}

/// Removes the job and the rows of its table.
pub fn reset(config: &LedgerConfig) -> Result<(), LedgerError> {
    reset::remove(config)
}

/// A writer's ledger, with a connection of its own.
pub fn open_writer(
    config: &Arc<LedgerConfig>,
    run: &Arc<Run>,
) -> Result<Box<dyn Ledger>, LedgerError> {
    let writer = commit::LedgerWriter::open(Arc::clone(config), Arc::clone(run))?;
    Ok(Box::new(writer))
}

/// The tables that a demonstration shows at its end; for people.
pub fn query(config: &LedgerConfig, sql: &str) -> Result<Vec<Vec<String>>, LedgerError> {
    let mut client = connect::connect(config)?;
    let messages = client.simple_query(sql).map_err(|why| connect::classify(&why, "a query"))?;
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

/// Looks at the job and its table before a start, as soon as Postgres answers; waits at most
/// `patience`. `None`: the job has committed something already.
pub fn peek_patiently(
    config: &LedgerConfig,
    patience: Duration,
    give_up: impl FnMut() -> bool,
) -> Result<Option<FirstStart>, Fault> {
    let asked = config.clone();
    patiently(config, patience, give_up, move |signs| {
        peek::peek(&mut signs.connect_directly(&asked)?, &asked)
    })
}

/// Prepares the database, takes the fence and reads what is durable, as soon as Postgres answers;
/// waits at most `patience`. `with_rows`: a first start may begin although the table has rows.
pub fn start_patiently(
    config: &LedgerConfig,
    topics: &[String],
    with_rows: bool,
    patience: Duration,
    give_up: impl FnMut() -> bool,
) -> Result<Started, Fault> {
    let (asked, topics) = (config.clone(), topics.to_vec());
    patiently(config, patience, give_up, move |signs| {
        start::start(&mut signs.connect(&asked)?, &asked, &topics, with_rows)
    })
}

/// The snapshots of some shards: shard, epoch, bytes; as soon as Postgres answers, waiting at most
/// `patience`. Fails if the run that holds this fence is not the newest.
pub fn snapshots_patiently(
    config: &LedgerConfig,
    fence: (Fence, bool),
    shards: Vec<Shard>,
    patience: Duration,
    give_up: impl FnMut() -> bool,
) -> Result<Vec<(Shard, u64, Vec<u8>)>, Fault> {
    let asked = config.clone();
    patiently(config, patience, give_up, move |signs| {
        start::snapshots(&mut signs.connect(&asked)?, &asked, fence, &shards, || {
            signs.parts.fetch_add(1, Relaxed);
        })
    })
}

/// What is heard of a question before its answer.
#[derive(Default)]
struct Signs {
    connected: AtomicBool,
    /// How many parts of the answer have arrived.
    parts: AtomicU64,
}

impl Signs {
    fn connect(&self, config: &LedgerConfig) -> Result<postgres::Client, LedgerError> {
        let client = connect::connect(config)?;
        self.connected.store(true, Relaxed);
        Ok(client)
    }

    /// Refuses a connection that a pooler shares with others.
    fn connect_directly(&self, config: &LedgerConfig) -> Result<postgres::Client, LedgerError> {
        pooler::check(self.connect(config)?, config)
    }
}

/// Asks until Postgres answers; says once what it waits for, and gives up when nothing has been
/// heard for `patience`. An answer that takes longer than that counts up its argument for each part
/// that has arrived: a sign of life.
///
/// Each question has a thread of its own: a connection that nobody takes, or a lock that nobody
/// gives, must not keep a start from stopping.
fn patiently<T: Send + 'static>(
    config: &LedgerConfig,
    patience: Duration,
    mut give_up: impl FnMut() -> bool,
    ask: impl Fn(&Signs) -> Result<T, LedgerError> + Send + Sync + 'static,
) -> Result<T, Fault> {
    let ask = Arc::new(ask);
    let signs = Arc::new(Signs::default());
    let mut heard = (0, Instant::now());
    let mut waiting = Some(Waiting::new(format!("Postgres at {}", config.url), Some(patience)));
    let mut told = false;
    let mut tell = |why: &str| {
        if !std::mem::replace(&mut told, true) {
            info!("waiting for Postgres at {}: {why}", config.url);
        }
    };
    loop {
        let asked = Instant::now();
        let (reply, answer) = channel();
        let (question, counts) = (Arc::clone(&ask), Arc::clone(&signs));
        let thread = thread::Builder::new().name("postgres-start".to_owned());
        // The answer to a question that was given up interests nobody.
        thread.spawn(move || drop(reply.send(question(&counts)))).expect("a thread can be started");
        let why = loop {
            let now_heard = signs.parts.load(Relaxed);
            let least = if signs.connected.load(Relaxed) { QUESTION } else { CONNECTION };
            if now_heard != heard.0 {
                heard = (now_heard, Instant::now());
                waiting = None;
            }
            match answer.recv_timeout(Duration::from_millis(100)) {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(LedgerError::Fatal(fault))) => return Err(fault),
                Ok(Err(LedgerError::Retry(why))) => break why,
                Err(_) if give_up() => break "no answer".to_owned(),
                Err(_) if heard.1.elapsed() >= patience && asked.elapsed() >= least => {
                    break format!("no answer for {}", text::duration(patience.max(least)));
                }
                Err(_) if asked.elapsed() >= SILENCE => tell("no answer yet"),
                Err(_) => {}
            }
        };
        if heard.1.elapsed() >= patience || give_up() {
            return Err(Fault::Environment(format!(
                "Postgres at {} cannot be used: {why}; check POSTGRES_URL, and that the server is \
                 up and reachable from here",
                config.url
            )));
        }
        tell(&why);
        if let Some(waiting) = &waiting {
            waiting.because(&why);
        }
        thread::sleep(Duration::from_millis(500));
    }
}
