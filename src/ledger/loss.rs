//! Losses: offsets that the job needs and Kafka no longer has, once the user has accepted that.

use std::fmt;

use postgres::Client;
use sessionizer_core::binding::Offset;
use sessionizer_core::time::{Epoch, EventTime};

use crate::dataflow::ports::LedgerError;
use crate::ledger::errors::classify;
use crate::ledger::{LedgerConfig, table};

/// Offsets that the job needs and Kafka no longer has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loss {
    pub topic: String,
    pub partition: i32,
    /// The first offset that is needed.
    pub from: Offset,
    /// The first offset that Kafka has; `None` if the topic was deleted and created again.
    pub to: Option<Offset>,
    /// The offset up to which the partition had been read.
    pub read_to: Offset,
    /// The offsets that Kafka has; `None` if it no longer has the partition.
    pub available: Option<(Offset, Offset)>,
    pub reason: String,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Loss { topic, partition, from, read_to, available, reason, .. } = self;
        let Some((oldest, end)) = available else {
            return write!(
                f,
                "{topic}[{partition}]: it had been read up to offset {read_to}, and the partition \
                 is gone: {reason}"
            );
        };
        let needed = if end < read_to { read_to } else { from };
        write!(
            f,
            "{topic}[{partition}]: reading has to continue at offset {needed}, but Kafka has \
             {oldest} to {end}: {reason}"
        )
    }
}

/// Records losses that take effect at `first_epoch`. Returns the end of the newest row of the
/// table: no session that has closed ends later.
pub fn accept_losses(
    client: &mut Client,
    config: &LedgerConfig,
    losses: &[Loss],
    first_epoch: Epoch,
) -> Result<EventTime, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "noting what is lost");
    let mut tx = client.transaction().map_err(failed)?;
    for loss in losses {
        // A start that ended before its first commit has recorded the same loss.
        tx.execute(
            "delete from sessionizer.losses
             where job = $1 and topic = $2 and partition = $3 and lost_from = $4",
            &[&config.job, &loss.topic, &loss.partition, &loss.from.get()],
        )
        .map_err(failed)?;
        tx.execute(
            "insert into sessionizer.losses
                 (job, topic, partition, lost_from, lost_to, read_to, reason)
             values ($1, $2, $3, $4, $5, $6, $7)",
            &[
                &config.job,
                &loss.topic,
                &loss.partition,
                &loss.from.get(),
                &loss.to.map(Offset::get),
                &loss.read_to.get(),
                &loss.reason,
            ],
        )
        .map_err(failed)?;
    }
    tx.execute(
        "update sessionizer.jobs set loss_epoch = $2 where job = $1",
        &[&config.job, &(first_epoch as i64)],
    )
    .map_err(failed)?;
    let of_job = tx
        .query_one(
            "select format('%I.%I', table_schema, table_name) from sessionizer.jobs where job = $1",
            &[&config.job],
        )
        .map_err(failed)?;
    let newest = table::newest_end(&mut tx, config, of_job.get(0))?;
    tx.commit().map_err(failed)?;
    Ok(newest.unwrap_or(EventTime::NEVER))
}
