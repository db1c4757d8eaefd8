//! Sessions that the table has refused: their dead letters, their place in the totals, and the
//! warning about them.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sessionizer_core::fault::Fault;
use sessionizer_core::key::{Key, Shard, stable_hash};
use sessionizer_core::session::{Closed, Span};
use sessionizer_core::time::EventTime;

use crate::dataflow::ports::{Batch, LedgerError, Outcome, Refused};
use crate::ledger::LedgerConfig;
use crate::ledger::commit::rows::{Failed, Refusal};
use crate::ledger::commit::steps::{copy_in, printable};
use crate::ledger::commit::{Commit, Keep};
use crate::ledger::errors::classify;
use crate::ledger::table::Table;
use crate::ui::text;

pub use crate::dataflow::commit::writer::ROW_REFUSED;
/// The minimum interval between two warnings about refused rows.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// How much of a key a warning shows, in characters.
const SHOWN_CHARS: usize = 60;

/// A session that was refused, and why.
pub(super) struct Letter {
    shard: Shard,
    key: Key,
    span: Span,
    refusal: Refusal,
}

impl Letter {
    /// The session, and what the server said.
    pub(super) fn to_parts(&self) -> (Key, Span, String) {
        (self.key.clone(), self.span, self.refusal.message.clone())
    }
}

/// The payload of its dead letter: the row that was refused.
#[derive(Serialize, Deserialize)]
pub(in crate::ledger) struct RefusedRow {
    pub ip: String,
    pub host: String,
    pub session_start: String,
    pub session_end: String,
    pub num_logs: u64,
    /// The first and the last event, whatever `session_end` holds, in milliseconds since 1970.
    pub first_ms: i64,
    pub last_ms: i64,
}

impl RefusedRow {
    /// Parses a payload; `None` if this program did not write it.
    pub fn read(payload: &[u8]) -> Option<(Key, Span)> {
        let row: RefusedRow = serde_json::from_slice(payload).ok()?;
        let (first, last) = (row.first_ms, row.last_ms);
        let good = first <= last && row.num_logs > 0;
        let [first, last] = [first, last].map(EventTime::from_millis);
        good.then(|| (Key::new(&row.ip, &row.host), Span { first, last, count: row.num_logs }))
    }
}

impl Commit<'_> {
    pub fn refuse(
        &mut self,
        key: &Key,
        span: Span,
        late: bool,
        refusal: Refusal,
        outcome: &mut Outcome,
    ) {
        let shard = Shard::of(stable_hash(key.bytes()), self.target.config.shards);
        let session = Closed { key: key.clone(), span, late };
        outcome.refused.push(Refused { shard, session });
        self.letters.push(Letter { shard, key: key.clone(), span, refusal });
    }

    /// Fails if the table cannot be written at all, whatever the rows hold.
    pub(super) fn check_without_rows(&mut self) -> Result<(), LedgerError> {
        let target = self.target;
        let tried = target.attempt(&mut self.tx, Keep::Nothing, |tx| {
            target.copy(tx, &[])?;
            target
                .delete_nothing(tx)
                .map_err(|why| target.failed_at(&why, "replacing rows that late events touch"))
        })?;
        tried.map_err(|refusal| {
            LedgerError::Fatal(Fault::config(format!(
                "the table {} cannot be written, whatever is in a row: {}",
                target.table.shown, refusal.message
            )))
        })
    }

    /// Writes the dead letters of refused sessions, then the totals and bindings of the run. Their
    /// records move from `closed` to `dead`, in their shard and at the last epoch of the run.
    pub fn refused(&mut self, batch: &Batch, outcome: &Outcome) -> Result<(), Failed> {
        let mut totals = batch.totals.clone();
        if !self.letters.is_empty() {
            let last = totals.last_mut().expect("a batch has an epoch");
            self.write_letters(last.epoch as i64)?;
            self.move_to_dead(&outcome.refused)?;
            let records: u64 = outcome.refused.iter().map(|r| r.session.span.count).sum();
            last.closed -= records;
            last.dead += records;
        }
        self.epochs(&totals)?;
        self.bindings(&totals)?;
        Ok(())
    }

    fn write_letters(&mut self, epoch: i64) -> Result<(), LedgerError> {
        let (gap, end) = (self.target.config.gap, self.target.config.session_end);
        let copy = "copy sessionizer.dead_letters (job, reason, detail, payload, payload_bytes,
                    read_at, records) from stdin (format binary)";
        let (job, letters) = (&self.target.config.job, &self.letters);
        copy_in(&mut self.tx, copy, |copy| {
            for Letter { key, span, refusal, .. } in letters {
                let (ip, host) = key.parts();
                let row = RefusedRow {
                    ip: ip.to_owned(),
                    host: host.to_owned(),
                    session_start: span.first.to_string(),
                    session_end: end.of(span, gap).to_string(),
                    num_logs: span.count,
                    first_ms: span.first.millis(),
                    last_ms: span.last.millis(),
                };
                let payload = serde_json::to_vec(&row).expect("texts and numbers are JSON");
                copy.row(7)?;
                copy.text(job);
                copy.text(ROW_REFUSED);
                copy.text(&printable(&refusal.message));
                copy.bytes(Some(&payload));
                copy.int8(payload.len() as i64);
                copy.time(EventTime::from_millis(epoch));
                copy.int8(span.count as i64);
            }
            Ok(())
        })?;
        Ok(())
    }

    fn move_to_dead(&mut self, refused: &[Refused]) -> Result<(), LedgerError> {
        let shards: Vec<i32> = refused.iter().map(|refused| refused.shard.0 as i32).collect();
        let counts: Vec<i64> =
            refused.iter().map(|refused| refused.session.span.count as i64).collect();
        self.tx
            .execute(
                "update sessionizer.shard_progress p
                 set closed = p.closed - s.count, dead = p.dead + s.count
                 from (select shard, sum(count)::int8 as count
                       from unnest($2::int4[], $3::int8[]) u(shard, count) group by shard) s
                 where p.job = $1 and p.shard = s.shard",
                &[&self.target.config.job, &shards, &counts],
            )
            .map_err(|why| classify(&why, "counting what the table has refused"))?;
        Ok(())
    }
}

/// Limits how often refused rows are warned about.
#[derive(Default)]
pub(super) struct RefusalWarnings {
    last: Option<Instant>,
    since: usize,
}

impl RefusalWarnings {
    /// Warns about refused rows. Call it once they are durable.
    pub(super) fn warn(&mut self, letters: &[Letter], table: &Table, config: &LedgerConfig) {
        let Some(Letter { shard, key, span, refusal }) = letters.first() else { return };
        self.since += letters.len();
        if self.last.is_some_and(|last| last.elapsed() < WARNING_INTERVAL) {
            return;
        }
        let (ip, host) = key.parts();
        let shown = |text: &str| text.chars().take(SHOWN_CHARS).collect::<String>();
        let column = refusal.column.as_ref().map(|c| format!(", column {c}")).unwrap_or_default();
        let more = match self.since - 1 {
            0 => String::new(),
            more => format!(", and {} more since the last such message", text::count(more as u64)),
        };
        log::warn!(
            job = config.job, shard = shard.0;
            "the table {} refuses the session of ip {:?} and host {:?} from {} ({}, shard \
             {}){more}: {}{column}. It is in sessionizer.dead_letters of the job {} (reason \
             {ROW_REFUSED}), and the others are stored. {}",
            table.shown,
            shown(ip),
            shown(host),
            span.first,
            text::plural(span.count, "event"),
            shard.0,
            refusal.message,
            config.job,
            refusal.remedy(&table.shown)
        );
        (self.last, self.since) = (Some(Instant::now()), 0);
    }
}
