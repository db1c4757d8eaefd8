//! The statements of every commit, prepared once per connection.

use postgres::{GenericClient, Statement};

use crate::ledger::columns;
use crate::ledger::commit::late;
use crate::ledger::table::Table;

/// The prepared statements of a commit.
pub(in crate::ledger) struct Statements {
    pub(super) progress: Statement,
    pub(super) epochs: Statement,
    pub(super) bindings: Statement,
    pub(super) snapshots: Statement,
    pub(super) columns: Statement,
    pub(super) late: late::LateStatements,
}

impl Statements {
    pub(in crate::ledger) fn prepare(
        client: &mut impl GenericClient,
        table: &Table,
        found_rows: bool,
    ) -> Result<Self, postgres::Error> {
        Ok(Statements {
            progress: client.prepare(
                "with mine as materialized (
                     select shard from sessionizer.shard_progress
                     where job = $1 and shard = any($3) order by shard for update
                 )
                 update sessionizer.shard_progress p
                 set epoch = s.epoch, closed = s.closed, open = s.open, dead = s.dead
                 from unnest($3::int4[], $4::int8[], $5::int8[], $6::int8[], $7::int8[],
                             $8::int8[]) s(shard, was, epoch, closed, open, dead)
                 join mine using (shard)
                 where p.job = $1 and p.generation = $2 and p.run = $9 and p.shard = s.shard
                     and p.epoch = s.was",
            )?,
            epochs: client.prepare(
                "insert into sessionizer.epochs as e
                     (job, epoch, watermark_ms, shards_done, closed, open, dead, max_future_ms,
                      late)
                 select $1, n.* from unnest($2::int8[], $3::int8[], $4::int4[], $5::int8[],
                     $6::int8[], $7::int8[], $8::int8[], $9::text[]) n(epoch)
                 order by n.epoch
                 on conflict (job, epoch) do update
                 set shards_done = e.shards_done + excluded.shards_done,
                     closed = e.closed + excluded.closed, open = e.open + excluded.open,
                     dead = e.dead + excluded.dead
                 where e.watermark_ms is not distinct from excluded.watermark_ms",
            )?,
            bindings: client.prepare(
                "insert into sessionizer.bindings
                     (job, epoch, topic, partition, start_offset, end_offset, promise_ms, status,
                      quiet_since, records, dead, topic_id, clock_ms)
                 select $1, n.* from unnest($2::int8[], $3::text[], $4::int4[], $5::int8[],
                     $6::int8[], $7::int8[], $8::text[], $9::int8[], $10::int8[], $11::int8[],
                     $12::text[], $13::int8[])
                     n(epoch, topic, partition)
                 order by n.epoch, n.topic, n.partition
                 on conflict do nothing",
            )?,
            snapshots: client.prepare(
                "insert into sessionizer.snapshots (job, shard, epoch, data)
                 select $1, n.* from unnest($2::int4[], $3::int8[], $4::bytea[]) n
                 on conflict (job, shard) do update
                 set epoch = excluded.epoch, data = excluded.data",
            )?,
            columns: client.prepare(columns::FINGERPRINT)?,
            late: late::LateStatements::prepare(client, table, found_rows)?,
        })
    }
}
