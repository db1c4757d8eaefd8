//! Reads the rows that the statistics and the anomalies start from: those in the table at the start
//! whose sessions ended in the window, or on the days that visitors are compared with.
//!
//! A separate connection reads them in the background, in the snapshot of the start: it sees the
//! table exactly as it was before any commit of this run. The start waits only until that
//! connection has imported the snapshot, and not for long. Reading begins when the rows are wanted,
//! which is after the replay. If anything fails, the statistics begin empty and report since when
//! they count.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError};
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::ToSql;
use postgres::{Client, IsolationLevel, Transaction};
use sessionizer_core::key::Key;
use sessionizer_core::session::Span;
use sessionizer_core::time::EventTime;

use crate::dataflow::messages::Change;
use crate::dataflow::ports::LedgerError;
use crate::dataflow::statistics::NeededPast;
use crate::dataflow::statistics::rows::Past;
use crate::ledger::LedgerConfig;
use crate::ledger::connect::connect;
use crate::ledger::copy::Timestamp;
use crate::ledger::durable::RecoveredState;
use crate::ledger::errors::classify;
use crate::ledger::table;
use crate::ledger::table::Table;
use crate::ui::text::{count, duration};

/// How long a start waits until the other connection has its snapshot.
const IMPORTED_WITHIN: Duration = Duration::from_secs(2);
/// How long the snapshot waits for the end of the replay, and how long reading may take then: it
/// keeps old rows from being removed.
const WANTED_WITHIN: Duration = Duration::from_secs(900);
const READ_WITHIN: Duration = Duration::from_secs(900);
/// By how much the server's limit of an idle transaction is above that of waiting.
const MARGIN: Duration = Duration::from_secs(60);
/// How many rows are handed over at once, and how many such batches may wait.
const BATCH: usize = 2_000;
const BATCHES: usize = 4;

/// Wakes whoever waits for the next rows.
type Wake = Arc<Mutex<Option<Box<dyn Fn() + Send>>>>;

/// The rows that the statistics start from.
pub enum InitialRows {
    /// There are none: the table has no rows.
    Empty,
    /// The table had rows before the job. There is no watermark yet, so the last day is unknown.
    Foreign,
    /// They cannot be read, for this reason.
    Unknown(String),
    /// They are being read.
    Reading(Reading),
}

/// Rows that are being read.
pub struct Reading {
    batches: Receiver<Result<Vec<Change>, String>>,
    imported: Receiver<()>,
    /// Begins to read; `None` once that has been done.
    want: Option<Sender<()>>,
    wake: Wake,
    rows: u64,
    from: EventTime,
    began: Instant,
}

impl InitialRows {
    /// Begins to read the rows that are needed, in the snapshot of this moment.
    pub(super) fn begin(
        tx: &mut Transaction<'_>,
        config: &LedgerConfig,
        table: &Table,
        durable: &RecoveredState,
        needed: NeededPast,
    ) -> Result<Self, LedgerError> {
        let replayed = durable.replay.last().unwrap_or(&durable.base);
        if replayed.watermark == EventTime::NEVER {
            let rows = table::has_rows(tx, &table.quoted());
            let rows = rows.map_err(|why| classify(&why, "looking at the table"))?;
            return Ok(if rows { InitialRows::Foreign } else { InitialRows::Empty });
        }
        let closes_after_ms = config.session_end.closes_after_ms(config.gap);
        let complete_to = replayed.watermark.plus(-closes_after_ms);
        let from = needed.from(complete_to).max(EventTime::EARLIEST);
        let exported = tx.query_one("select pg_export_snapshot()", &[]);
        let snapshot: String =
            exported.map_err(|why| classify(&why, "exporting the snapshot of the start"))?.get(0);
        // Both column types accept this text, and the one without a time zone reads it as UTC.
        let literal = format!("'{from}'::{}", table.time_type);
        let select = format!(
            "select ip::text, host::text, session_start, session_end, coalesce(num_logs, 0)
             from {} where session_end >= {literal}",
            table.quoted()
        );
        let (give, batches) = sync_channel(BATCHES);
        let (ready, imported) = channel();
        let (want, wanted) = channel();
        let wake = Wake::default();
        let config = config.clone();
        let reader =
            Reader { config, snapshot, select, ready, wanted, give, wake: Arc::clone(&wake) };
        let thread = thread::Builder::new().name("past-rows".to_owned());
        thread.spawn(move || reader.run()).expect("a thread can be started");
        let (want, began) = (Some(want), Instant::now());
        Ok(InitialRows::Reading(Reading { batches, imported, want, wake, rows: 0, from, began }))
    }

    /// Waits until the other connection has imported the snapshot, which is valid only until this
    /// transaction ends.
    pub(super) fn imported(self) -> Self {
        match self {
            InitialRows::Reading(reading) => match reading.imported.recv_timeout(IMPORTED_WITHIN) {
                Ok(()) => InitialRows::Reading(reading),
                // The error, if there is one, has been handed over.
                Err(_) => match reading.batches.try_recv() {
                    Ok(Err(why)) => InitialRows::Unknown(why),
                    _ => InitialRows::Unknown("Postgres has not answered in time".to_owned()),
                },
            },
            known => known,
        }
    }

    /// Sets what to call whenever more rows may have arrived.
    pub fn wake_by(&self, wake: impl Fn() + Send + 'static) {
        if let InitialRows::Reading(reading) = self {
            *lock(&reading.wake) = Some(Box::new(wake));
        }
    }

    /// Returns the next rows, if they have arrived. The first call begins to read them.
    pub fn read(&mut self) -> Past {
        if let InitialRows::Reading(reading) = self
            && let Some(want) = reading.want.take()
        {
            reading.began = Instant::now();
            let _ = want.send(()); // A thread that has failed says so itself.
        }
        match self {
            InitialRows::Empty => Past::Whole,
            InitialRows::Foreign => {
                info!("the statistics begin empty: rows that were there before do not count");
                Past::Failed
            }
            InitialRows::Unknown(why) => {
                warn!("the statistics begin empty: what ended before is not known: {why}");
                Past::Failed
            }
            InitialRows::Reading(reading) => match reading.batches.try_recv() {
                Ok(Ok(rows)) => {
                    reading.rows += rows.len() as u64;
                    Past::Rows(rows)
                }
                Ok(Err(why)) => {
                    warn!("the statistics begin empty: reading the last days failed: {why}");
                    Past::Failed
                }
                Err(TryRecvError::Empty) => Past::Waiting,
                Err(TryRecvError::Disconnected) => {
                    let took = duration(reading.began.elapsed());
                    let rows = count(reading.rows);
                    let from = reading.from;
                    info!(
                        "the statistics begin with {rows} rows, of sessions that ended since \
                         {from}, after {took}"
                    );
                    Past::Whole
                }
            },
        }
    }
}

/// The other side of [`Reading`]: the thread with the second connection.
struct Reader {
    config: LedgerConfig,
    snapshot: String,
    select: String,
    /// Told when the snapshot has been imported.
    ready: Sender<()>,
    /// Says when to begin to read.
    wanted: Receiver<()>,
    give: SyncSender<Result<Vec<Change>, String>>,
    wake: Wake,
}

impl Reader {
    fn run(self) {
        if let Err(why) = self.read() {
            self.hand_over(Err(why.to_string()));
        }
        let Reader { give, wake, .. } = self;
        drop(give);
        rouse(&wake);
    }

    fn read(&self) -> Result<(), LedgerError> {
        let mut client = connect(&self.config)?;
        let failed = |why| classify(&why, "taking the snapshot of the start");
        let mut tx = import(&mut client, &self.snapshot).map_err(failed)?;
        let _ = self.ready.send(()); // The start may have given up.
        match self.wanted.recv_timeout(WANTED_WITHIN) {
            Ok(()) => {}
            Err(RecvTimeoutError::Disconnected) => {
                debug!("nobody needs the rows of the last days any more");
                return Ok(());
            }
            Err(RecvTimeoutError::Timeout) => {
                let took = duration(WANTED_WITHIN);
                let why = format!("the replay has taken longer than {took}");
                return Err(LedgerError::retry(why));
            }
        }
        rows(&mut tx, &self.config, &self.select, |rows| self.hand_over(rows))
    }

    /// Hands a batch over; returns whether somebody will take it.
    fn hand_over(&self, batch: Result<Vec<Change>, String>) -> bool {
        let given = self.give.send(batch).is_ok();
        rouse(&self.wake);
        given
    }
}

fn import<'a>(client: &'a mut Client, snapshot: &str) -> Result<Transaction<'a>, postgres::Error> {
    let tx = client.build_transaction().read_only(true);
    let mut tx = tx.isolation_level(IsolationLevel::RepeatableRead).start()?;
    tx.batch_execute(&format!(
        "set transaction snapshot '{snapshot}'; set local statement_timeout = {};
         set local idle_in_transaction_session_timeout = {}",
        READ_WITHIN.as_millis(),
        (WANTED_WITHIN + MARGIN).as_millis()
    ))?;
    Ok(tx)
}

/// Reads the rows in batches, as long as somebody takes them.
fn rows(
    tx: &mut Transaction<'_>,
    config: &LedgerConfig,
    select: &str,
    mut take: impl FnMut(Result<Vec<Change>, String>) -> bool,
) -> Result<(), LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "reading the table");
    let began = Instant::now();
    let none: [&(dyn ToSql + Sync); 0] = [];
    let mut found = tx.query_raw(select, none).map_err(failed)?;
    let mut batch = Vec::with_capacity(BATCH);
    while let Some(row) = found.next().map_err(failed)? {
        let (first, end): (Option<Timestamp>, Option<Timestamp>) = (row.get(2), row.get(3));
        // No row of the job has a null. Of others, the job changes those without a count.
        if let (Some(ip), Some(host), Some(first), Some(end), Some(events)) =
            (row.get(0), row.get(1), first, end, row.get::<_, Option<i64>>(4))
        {
            let last = config.session_end.last_event(end.0, config.gap);
            let count = u64::try_from(events).unwrap_or(0);
            let span = Span { first: first.0, last, count };
            batch.push(Change { key: Key::new(ip, host), span, diff: 1 });
        }
        if batch.len() == BATCH {
            if began.elapsed() > READ_WITHIN {
                let took = duration(READ_WITHIN);
                return Err(LedgerError::retry(format!("it has taken longer than {took}")));
            }
            if !take(Ok(std::mem::replace(&mut batch, Vec::with_capacity(BATCH)))) {
                debug!("nobody needs the rows of the last days any more");
                return Ok(());
            }
        }
    }
    take(Ok(batch));
    Ok(())
}

fn rouse(wake: &Wake) {
    if let Some(wake) = &*lock(wake) {
        wake();
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
