//! What audits have found and verified, in `sessionizer.audits` and `sessionizer.audit_state`.
//!
//! An audit claims the state before it reads anything, and replaces it at its end only if its claim
//! still stands. So it does not restore a state that was deleted in between, and of two audits at
//! the same time, the one that began later wins.

use postgres::error::SqlState;
use postgres::{Client, GenericClient};
use sessionizer_core::audit::Proof;
use sessionizer_core::time::{Epoch, EventTime};

use crate::dataflow::ports::LedgerError;
use crate::ledger::connect::{connect, connect_preferring_primary, for_command};
use crate::ledger::errors::classify;
use crate::ledger::{LedgerConfig, pooler};
use crate::random;

/// How many audits of a job are kept.
const KEPT: i64 = 10_000;
/// The largest state that is kept, in bytes. Postgres takes values of up to a gigabyte, and needs
/// several times as much memory for one.
const STATE_BYTES: usize = 512 << 20;

/// The claim that lets an audit keep what it finds.
pub struct Audits {
    config: LedgerConfig,
    claim: i64,
}

/// The result of an audit, to be stored.
pub struct NewAudit {
    pub duration_ms: i64,
    /// Whether it continued from the one before.
    pub incremental: bool,
    /// JSON: offsets by topic and partition.
    pub verified_through: String,
    pub as_of: Epoch,
    pub watermark: EventTime,
    pub records_read: u64,
    pub rows_compared: u64,
    pub differences: u64,
    pub unverifiable: u64,
    pub verdict: String,
}

/// A stored result, as the page shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredAudit {
    pub audited_at_ms: i64,
    pub incremental: bool,
    pub watermark_ms: Option<i64>,
    pub rows: i64,
    pub differences: i64,
    pub unverifiable: i64,
}

impl Audits {
    /// Begins an audit. The inner error says why its result cannot be kept.
    pub fn begin(config: &LedgerConfig) -> Result<Result<Self, String>, LedgerError> {
        let failed = |why: postgres::Error| classify(&why, "beginning an audit");
        let mut client = pooler::connect_directly(config, connect_preferring_primary)?;
        let missing = client.query_opt(
            "select format('sessionizer.%s', needed.t),
                    to_regclass(format('sessionizer.%I', needed.t)) is not null, current_user::text
             from (values ('audits', 'select'), ('audits', 'insert'), ('audits', 'delete'),
                          ('audit_state', 'select'), ('audit_state', 'insert'),
                          ('audit_state', 'update')) needed (t, r)
             where not coalesce(has_table_privilege(to_regclass(format('sessionizer.%I', needed.t)),
                                                    needed.r), false)
             limit 1",
            &[],
        );
        let missing = match missing {
            Ok(missing) => missing,
            Err(why) if why.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                return Ok(Err("the login may not use the schema sessionizer".to_owned()));
            }
            Err(why) => return Err(failed(why)),
        };
        if let Some(missing) = missing {
            let (table, there, login): (&str, bool, &str) =
                (missing.get(0), missing.get(1), missing.get(2));
            return Ok(Err(match there {
                true => format!("the login {login} may not write to {table}"),
                false => format!("there is no {table} yet: the next start of the job makes it"),
            }));
        }
        let claim = random::id() as i64;
        // If the job does not exist, that is reported later.
        let claimed = client.execute(
            "insert into sessionizer.audit_state (job, claim)
             select job, $2 from sessionizer.jobs where job = $1
             on conflict (job) do update set claim = excluded.claim",
            &[&config.job, &claim],
        );
        match claimed {
            Ok(_) => Ok(Ok(Audits { config: config.clone(), claim })),
            Err(why) if why.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => {
                Ok(Err("the database is read-only".to_owned()))
            }
            Err(why) => Err(failed(why)),
        }
    }

    /// Keeps what an audit has found, and the proof from which the next one continues. Returns why
    /// the proof was not kept, if it was not.
    pub fn keep(
        &self,
        audit: &NewAudit,
        proof: Option<&Proof>,
    ) -> Result<Option<String>, LedgerError> {
        let failed = |why: postgres::Error| classify(&why, "keeping the result of the audit");
        let mut client = for_command(&self.config, connect)?;
        let mut tx = client.transaction().map_err(failed)?;
        insert(&mut tx, &self.config.job, audit).map_err(failed)?;
        let why = match proof.map(Proof::encode) {
            Some(data) if data.len() > STATE_BYTES => Some(format!(
                "it takes {} MiB, more than {}: a shorter --keep makes it smaller",
                data.len() >> 20,
                STATE_BYTES >> 20
            )),
            // Without a new proof, that of an earlier audit is removed.
            data => {
                let kept = tx.execute(
                    "update sessionizer.audit_state
                     set data = $3, kept_at = clock_timestamp() where job = $1 and claim = $2",
                    &[&self.config.job, &self.claim, &data],
                );
                (kept.map_err(failed)? == 0).then(|| {
                    "another audit has begun, or the job's past has changed meanwhile".to_owned()
                })
            }
        };
        tx.commit().map_err(failed)?;
        Ok(why)
    }
}

fn insert(tx: &mut impl GenericClient, job: &str, audit: &NewAudit) -> Result<(), postgres::Error> {
    let watermark = audit.watermark;
    let known = EventTime::EARLIEST <= watermark && watermark < EventTime::FOREVER;
    tx.execute(
        "insert into sessionizer.audits
             (job, duration_ms, kind, verified_through, as_of_epoch, watermark_ms, records_read,
              rows_compared, differences, unverifiable, verdict)
         values ($1, $2, $3, $4::text::jsonb, $5, $6, $7, $8, $9, $10, $11)",
        &[
            &job,
            &audit.duration_ms,
            &if audit.incremental { "incremental" } else { "full" },
            &audit.verified_through,
            &(audit.as_of as i64),
            &known.then_some(watermark.millis()),
            &(audit.records_read as i64),
            &(audit.rows_compared as i64),
            &(audit.differences as i64),
            &(audit.unverifiable as i64),
            &audit.verdict,
        ],
    )?;
    tx.execute(
        "delete from sessionizer.audits
         where job = $1 and (audited_at < now() - interval '1 year'
             or audited_at <= (select audited_at from sessionizer.audits where job = $1
                               order by audited_at desc offset $2 limit 1))",
        &[&job, &KEPT],
    )?;
    Ok(())
}

/// Reads the last audit of a job.
pub fn last(client: &mut Client, job: &str) -> Result<Option<StoredAudit>, postgres::Error> {
    let row = client.query_opt(
        "select (extract(epoch from audited_at) * 1000)::int8, kind = 'incremental', watermark_ms,
                rows_compared, differences, unverifiable
         from sessionizer.audits where job = $1 order by audited_at desc limit 1",
        &[&job],
    )?;
    Ok(row.map(|row| StoredAudit {
        audited_at_ms: row.get(0),
        incremental: row.get(1),
        watermark_ms: row.get(2),
        rows: row.get(3),
        differences: row.get(4),
        unverifiable: row.get(5),
    }))
}
