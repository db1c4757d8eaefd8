//! Writes the anomalies to `sessionizer.anomalies`, alongside the commits and never inside one.
//!
//! A row is a function of the table and the watermark, and its key identifies the anomaly, so
//! writing it again changes nothing. Each transaction first makes sure that no other instance has
//! taken over. The column `verdict` belongs to the user. What cannot be written waits, and the
//! newest state of each anomaly replaces an older one.

mod updates;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use postgres::Client;
use sessionizer_core::anomaly::{Anomaly, DAY_MS, Hour, Identity, Kind, LIVE};
use sessionizer_core::time::{Epoch, EventTime};

use crate::dataflow::anomalies::publish::Published;
use crate::dataflow::ports::LedgerError;
use crate::ledger::LedgerConfig;
use crate::ledger::anomalies::updates::{Queued, Updates};
use crate::ledger::connect::connect;
use crate::ledger::errors::classify;
use crate::ui::text::plural;

/// How many rows may wait while Postgres is unreachable, and how many one transaction writes.
const MAX_PENDING: usize = 100_000;
const BATCH: usize = 1_000;
/// How long to wait after a failure, and how often old rows are removed.
const RETRY_AFTER: Duration = Duration::from_secs(2);
const PRUNE_EVERY: Duration = Duration::from_secs(3_600);
/// How far back the rows of earlier runs are compared: a session may have begun long before the
/// hours that are live.
const COMPARED_MS: i64 = 7 * DAY_MS;
/// How long the end of a run waits for its last rows.
const LAST_WRITE: Duration = Duration::from_secs(5);

/// Keeps the rows in Postgres up to date with the anomalies that are published.
pub struct AnomalyRows {
    queued: Queued,
    /// `None` while this is being dropped, which ends the thread.
    updates: Option<Sender<Updates>>,
    writes: Option<JoinHandle<()>>,
}

impl AnomalyRows {
    /// Starts the thread that writes; it ends when this is dropped. `generation` is that of this
    /// run, a session ends `end_after_ms` after its last event, and `kinds` are looked for.
    pub fn keep(
        config: &LedgerConfig,
        (generation, end_after_ms): (i64, i64),
        kinds: &[Kind],
        keep: Option<Duration>,
    ) -> Self {
        let (updates, inbox) = channel();
        let mut writer = Writer::new(config.clone(), (generation, end_after_ms), kinds, keep);
        let thread = thread::Builder::new().name("anomalies".to_owned());
        let writes = thread.spawn(move || writer.run(&inbox)).expect("a thread can be started");
        let (updates, writes) = (Some(updates), Some(writes));
        AnomalyRows { queued: Queued::new(end_after_ms), updates, writes }
    }

    /// Queues what has changed since the last call. Rows of anomalies that have merely expired stay
    /// as they are.
    pub fn take(&mut self, published: &Published) {
        let updates = self.queued.take(published);
        if let Some((sender, updates)) = self.updates.as_ref().zip(updates) {
            // The thread is gone only if another instance has taken over.
            let _ = sender.send(updates);
        }
    }
}

impl Drop for AnomalyRows {
    /// Waits a moment for what still has to be written: after a bounded run, nothing else would
    /// write it.
    fn drop(&mut self) {
        self.updates = None;
        let Some(writes) = self.writes.take() else { return };
        let since = Instant::now();
        while !writes.is_finished() && since.elapsed() < LAST_WRITE {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

struct Writer {
    config: LedgerConfig,
    generation: i64,
    end_after_ms: i64,
    /// The kinds that are a function of the table.
    kinds: Vec<Kind>,
    keep: Option<Duration>,
    client: Option<Client>,
    /// What has to be written: an anomaly, whether it is raised, and as of which epoch.
    pending: BTreeMap<Identity, (Anomaly, bool, Epoch)>,
    /// See [`Updates::all`]: until the rows of earlier runs have been compared with it.
    all: Option<(BTreeSet<Identity>, Hour, Epoch)>,
    /// How many rows there was no room for since the last success.
    lost: u64,
    failing: bool,
    pruned: Option<Instant>,
}

/// Why a writer stops.
enum Stop {
    Replaced,
    Failed(LedgerError),
}

impl From<LedgerError> for Stop {
    fn from(why: LedgerError) -> Self {
        Stop::Failed(why)
    }
}

impl Writer {
    fn new(
        config: LedgerConfig,
        (generation, end_after_ms): (i64, i64),
        kinds: &[Kind],
        keep: Option<Duration>,
    ) -> Self {
        Writer {
            config,
            generation,
            end_after_ms,
            kinds: kinds.iter().copied().filter(|kind| *kind != Kind::Clock).collect(),
            keep,
            client: None,
            pending: BTreeMap::new(),
            all: None,
            lost: 0,
            failing: false,
            pruned: None,
        }
    }

    fn run(&mut self, inbox: &Receiver<Updates>) {
        loop {
            match inbox.recv_timeout(RETRY_AFTER) {
                Ok(updates) => self.take(updates),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    // The next start finds again what could not be written.
                    let _ = self.write_all();
                    return;
                }
            }
            inbox.try_iter().for_each(|updates| self.take(updates));
            match self.write_all() {
                Ok(()) if self.failing || self.lost > 0 => {
                    match std::mem::take(&mut self.lost) {
                        0 => info!("anomalies are written again"),
                        lost => warn!("anomalies are written again: {} lost", plural(lost, "row")),
                    }
                    self.failing = false;
                }
                Ok(()) => {}
                Err(Stop::Replaced) => {
                    debug!("anomalies: another instance has taken over");
                    return;
                }
                Err(Stop::Failed(why)) => {
                    self.client = None;
                    let waiting = plural(self.pending.len() as u64, "row");
                    let what = format!("sessionizer.anomalies cannot be written ({waiting} to go)");
                    match self.failing {
                        true => debug!("{what}: {why}"),
                        false => warn!("{what}, will keep trying: {why}"),
                    }
                    self.failing = true;
                    thread::sleep(RETRY_AFTER);
                }
            }
        }
    }

    fn take(&mut self, Updates { epoch, rows, all }: Updates) {
        if let Some((all, now)) = all {
            self.all = Some((all, now, epoch));
        }
        for (identity, anomaly, is_raised) in rows {
            if self.pending.len() < MAX_PENDING || self.pending.contains_key(&identity) {
                self.pending.insert(identity, (anomaly, is_raised, epoch));
                continue;
            }
            if self.lost == 0 {
                warn!(
                    "{} wait for sessionizer.anomalies: no more are kept, and the others are lost \
                     unless the job is started again while they are live",
                    plural(MAX_PENDING as u64, "row")
                );
            }
            self.lost += 1;
        }
    }

    fn write_all(&mut self) -> Result<(), Stop> {
        if self.all.is_some() {
            self.compare()?;
            self.all = None;
        }
        while !self.pending.is_empty() {
            let batch: Vec<Identity> = self.pending.keys().take(BATCH).cloned().collect();
            self.write(&batch)?;
            batch.iter().for_each(|identity| drop(self.pending.remove(identity)));
        }
        if self.pruned.is_none_or(|at| at.elapsed() > PRUNE_EVERY) && self.client.is_some() {
            self.prune()?;
            self.pruned = Some(Instant::now());
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<(), Stop> {
        if self.client.is_none() {
            let failed = |why: postgres::Error| classify(&why, "writing anomalies");
            let mut client = connect(&self.config)?;
            let timeouts = "set lock_timeout = '5s'; set statement_timeout = '30s'";
            client.batch_execute(timeouts).map_err(failed)?;
            self.client = Some(client);
        }
        Ok(())
    }

    /// Queues the withdrawal of rows of earlier runs that should be live but are not.
    fn compare(&mut self) -> Result<(), Stop> {
        let failed = |why: postgres::Error| classify(&why, "reading anomalies");
        self.connect()?;
        let client = self.client.as_mut().expect("just connected");
        let Some((all, now, epoch)) = &self.all else { return Ok(()) };
        let kinds: Vec<&str> = self.kinds.iter().map(|kind| kind.name()).collect();
        let from_ms = now.start().plus(-COMPARED_MS).millis() as f64;
        let known = client.query(RAISED, &[&self.config.job, &kinds, &from_ms]).map_err(failed)?;
        for row in known {
            let (kind, details): (String, String) = (row.get(0), row.get(4));
            // Only a row of a later version cannot be read.
            let (Some(kind), Ok(evidence)) = (Kind::named(&kind), serde_json::from_str(&details))
            else {
                continue;
            };
            let anomaly = Anomaly {
                kind,
                host: row.get(1),
                subject: row.get(2),
                at: EventTime::from_millis(row.get(3)),
                observed: 0,
                expected: 0,
                threshold: 0,
                evidence,
            };
            let identity = (kind, anomaly.host.clone(), anomaly.subject.clone(), anomaly.at);
            let would_be_live = anomaly.hour(self.end_after_ms).0 > now.0 - LIVE;
            if would_be_live && !all.contains(&identity) && !self.pending.contains_key(&identity) {
                self.pending.insert(identity, (anomaly, false, *epoch));
            }
        }
        Ok(())
    }

    fn write(&mut self, batch: &[Identity]) -> Result<(), Stop> {
        let failed = |why: postgres::Error| classify(&why, "writing anomalies");
        self.connect()?;
        let client = self.client.as_mut().expect("just connected");
        let mut tx = client.transaction().map_err(failed)?;
        let job = &self.config.job;
        // A run that takes over has to wait until this is committed, and then it writes the same.
        let fence = "select 1 from sessionizer.shard_progress
                     where job = $1 and shard = 0 and generation = $2 for share";
        if tx.query_opt(fence, &[job, &self.generation]).map_err(failed)?.is_none() {
            return Err(Stop::Replaced);
        }
        let insert = tx.prepare(INSERT).map_err(failed)?;
        let withdraw = tx.prepare(WITHDRAW).map_err(failed)?;
        for identity in batch {
            let (anomaly, is_raised, epoch) = &self.pending[identity];
            let Anomaly { kind, host, subject, at, observed, expected, threshold, .. } = anomaly;
            let (kind, at_ms, epoch) = (kind.name(), at.millis() as f64, *epoch as i64);
            if !is_raised {
                tx.execute(&withdraw, &[job, &kind, host, subject, &at_ms]).map_err(failed)?;
                continue;
            }
            let [observed, expected, threshold] =
                [observed, expected, threshold].map(|value| *value as f64);
            let details = serde_json::to_string(&anomaly.evidence).expect("plain data");
            let (unit, reason) = (anomaly.unit(), anomaly.reason());
            tx.execute(
                &insert,
                &[
                    job, &kind, host, subject, &at_ms, &observed, &expected, &threshold, &unit,
                    &reason, &details, &epoch,
                ],
            )
            .map_err(failed)?;
        }
        tx.commit().map_err(failed)?;
        Ok(())
    }

    fn prune(&mut self) -> Result<(), Stop> {
        let failed = |why: postgres::Error| classify(&why, "removing old anomalies");
        let Some(client) = &mut self.client else { return Ok(()) };
        let Some(keep) = self.keep else { return Ok(()) };
        let keep_ms = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
        let delete = "delete from sessionizer.anomalies
                      where job = $1 and changed_at < now() - $2::int8 * interval '1 ms'";
        let removed = client.execute(delete, &[&self.config.job, &keep_ms]).map_err(failed)?;
        if removed > 0 {
            info!("removed {} from sessionizer.anomalies", plural(removed, "old row"));
        }
        Ok(())
    }
}

/// The rows that are raised.
const RAISED: &str = "
    select kind, host, subject, round(extract(epoch from at) * 1000)::int8, details::text
    from sessionizer.anomalies
    where job = $1 and state = 'raised' and kind = any($2)
      and at > to_timestamp($3::float8 / 1000)";

/// Adds an anomaly, or brings its figures up to date. Leaves the verdict alone.
const INSERT: &str = "
    insert into sessionizer.anomalies as known
        (job, kind, host, subject, at, observed, expected, threshold, unit, reason, details, state,
         raised_epoch)
    values ($1, $2, $3, $4, to_timestamp($5::float8 / 1000), $6, $7, $8, $9, $10, $11::text::jsonb,
            'raised', $12)
    on conflict (job, kind, host, subject, at) do update
    set observed = excluded.observed, expected = excluded.expected,
        threshold = excluded.threshold, unit = excluded.unit, reason = excluded.reason,
        details = excluded.details, state = 'raised', changed_at = now()
    where (known.state, known.observed, known.expected, known.threshold, known.details)
          is distinct from ('raised', excluded.observed, excluded.expected, excluded.threshold,
                            excluded.details)";

const WITHDRAW: &str = "
    update sessionizer.anomalies set state = 'withdrawn', changed_at = now()
    where job = $1 and kind = $2 and host = $3 and subject = $4
      and at = to_timestamp($5::float8 / 1000) and state <> 'withdrawn'";

#[cfg(test)]
mod tests {
    use sessionizer_core::anomaly::Evidence;
    use sessionizer_core::secret::Secret;
    use sessionizer_core::time::Gap;

    use super::*;
    use crate::ledger::SessionEnd;
    use crate::ledger::url;

    #[test]
    fn rows_that_there_is_no_room_for_are_counted() {
        let config = LedgerConfig {
            url: url::parse("postgres://h/d").expect("a URL"),
            user: "u".to_owned(),
            password: Secret::new(String::new()),
            job: "j".to_owned(),
            table: "t".to_owned(),
            shards: 1,
            gap: Gap::from_millis(300_000).expect("a gap"),
            session_end: SessionEnd::Window,
            accept_empty_table: false,
        };
        let mut writer = Writer::new(config, (1, 300_000), &[Kind::Burst], None);
        let row = |at_ms: usize| {
            let anomaly = Anomaly {
                kind: Kind::Burst,
                host: "a.example".to_owned(),
                subject: "192.0.2.1".to_owned(),
                at: EventTime::from_millis(at_ms as i64),
                observed: 90,
                expected: 9,
                threshold: 40,
                evidence: Evidence::Session { events: 90, duration_ms: 1, sessions: 900, rank: 5 },
            };
            let identity = (Kind::Burst, anomaly.host.clone(), anomaly.subject.clone(), anomaly.at);
            (identity, anomaly, true)
        };
        let mut take = |rows: std::ops::Range<usize>| {
            writer.take(Updates { epoch: 1, rows: rows.map(row).collect(), all: None });
            (writer.pending.len(), writer.lost)
        };
        assert_eq!(take(0..MAX_PENDING), (MAX_PENDING, 0));
        // Other figures of one that waits need no room.
        assert_eq!(take(0..1), (MAX_PENDING, 0));
        assert_eq!(take(MAX_PENDING - 1..MAX_PENDING + 2), (MAX_PENDING, 2));
    }
}
