-- What the job keeps beside the table of sessions: its progress, the contents of every epoch, its
-- open sessions, and its dead letters. Everything is keyed by job, so that several jobs can share a
-- database. Times in *_ms count milliseconds since 1970; an epoch is such a time.
--
-- Every statement can be repeated: what versions without a number have left is brought up to date.

-- Not `if not exists`, which requires the right to create a schema even if it exists.
do $$ begin
    if to_regnamespace('sessionizer') is null then create schema sessionizer; end if;
end $$;

-- The migrations that have been applied: the highest number is the version of the schema.
create table if not exists sessionizer.schema_version (
    version       integer primary key,
    name          text not null,
    applied_by    text not null,
    applied_at    timestamptz not null default now()
);

-- One row per job: the settings fixed at its creation.
create table if not exists sessionizer.jobs (
    job           text primary key,
    table_schema  text not null,
    table_name    text not null,
    shards        integer not null,
    gap_ms        bigint not null,
    session_end   text not null,
    -- Whether the table had rows when the job was created. Those rows set the horizon. Late events
    -- merge with them as with the job's own rows, but unlike those they may touch each other.
    found_rows    boolean not null,
    -- Accepted losses of records that had been read: the number counted so far, and the epoch at
    -- which the last loss can be counted.
    lost          bigint not null default 0,
    loss_epoch    bigint,
    created_at    timestamptz not null default now(),
    started_at    timestamptz not null default now(),
    started_by    text not null,
    -- KAFKA_TOPIC at the last start.
    topics        text[],
    -- What the hashes in sessionizer.forgotten begin with.
    forget_salt   bytea,
    unique (table_schema, table_name)
);

-- The progress of each shard's output. Every commit advances its shards from the epoch, and under
-- the generation, that it expects: the fence and the idempotence check in one.
create table if not exists sessionizer.shard_progress (
    job           text not null references sessionizer.jobs on delete cascade,
    shard         integer not null,
    epoch         bigint not null,
    generation    bigint not null,
    closed        bigint not null,
    open          bigint not null,
    dead          bigint not null,
    -- The run that took the generation: after a database has gone back to an earlier state, two
    -- runs may have taken the same one.
    run           bigint,
    -- Records of visitors that `sessionizer forget` has removed, counted in the shard of their key.
    forgotten     bigint not null default 0,
    primary key (job, shard)
) with (fillfactor = 50);  -- Updated in place at every commit: leave room for the next version.

-- Every epoch that something durable depends on, and the totals at its end: sums over the shards
-- that have passed it. Once all have, records = closed + open + dead + jobs.lost + the sum of
-- shard_progress.forgotten.
create table if not exists sessionizer.epochs (
    job           text not null references sessionizer.jobs on delete cascade,
    epoch         bigint not null,
    watermark_ms  bigint,
    shards_done   integer not null,
    closed        bigint not null,
    open          bigint not null,
    dead          bigint not null,
    -- The settings that decided what became of its records: a replay uses the same.
    max_future_ms bigint,
    late          text,
    primary key (job, epoch)
);

-- The state of each partition at the end of an epoch. A partition without changes has no row; its
-- last row still applies. Rows older than the oldest snapshot are trimmed, except the last of each
-- partition.
create table if not exists sessionizer.bindings (
    job           text not null references sessionizer.jobs on delete cascade,
    epoch         bigint not null,
    topic         text not null,
    partition     integer not null,
    start_offset  bigint not null,
    end_offset    bigint not null,
    promise_ms    bigint,
    status        text not null,
    quiet_since   bigint not null,
    records       bigint not null,
    dead          bigint not null,
    -- The topic that the offsets belong to: Kafka's id distinguishes topics of the same name.
    topic_id      text,
    -- The wall clock by which future events were recognized. Null: the epoch served as the clock.
    clock_ms      bigint,
    primary key (job, epoch, topic, partition)
);

-- The open sessions of each shard at an epoch, in the program's own format.
create table if not exists sessionizer.snapshots (
    job           text not null references sessionizer.jobs on delete cascade,
    shard         integer not null,
    epoch         bigint not null,
    data          bytea not null,
    primary key (job, shard)
);

-- Dead letters: records that are not events, with their position, the reason, and the beginning of
-- their payload; and sessions that the table has refused (reason row_refused). Those come from
-- several records, so they have no position; their payload is the row, in JSON.
create table if not exists sessionizer.dead_letters (
    job           text not null references sessionizer.jobs on delete cascade,
    topic         text,
    partition     integer,
    "offset"      bigint,
    reason        text not null,
    detail        text not null,
    payload       bytea,
    payload_bytes bigint not null,
    read_at       timestamptz not null,
    -- How many records the dead letter stands for.
    records       bigint not null default 1
);
create index if not exists dead_letters_place
    on sessionizer.dead_letters (job, topic, partition, "offset");
-- For --keep-dead-letters. Rows arrive in the order of read_at, so the index costs almost nothing.
create index if not exists dead_letters_age
    on sessionizer.dead_letters using brin (read_at) with (autosummarize = on);

comment on table sessionizer.dead_letters is
    'Records that are not events. --keep-dead-letters removes old ones; the balance still counts '
    'them.';
comment on column sessionizer.dead_letters.payload is
    'The beginning of the payload: at most --dead-letter-bytes of it. Null: there was none, or '
    '--keep-dead-letters or `sessionizer forget` has removed it.';
comment on column sessionizer.dead_letters.payload_bytes is
    'The length of the whole payload. It was cut if this exceeds length(payload).';

-- Accepted losses: offsets that Kafka no longer had when they were needed. Those before read_to had
-- been read; what was known of them is in snapshots and in the table.
create table if not exists sessionizer.losses (
    job           text not null references sessionizer.jobs on delete cascade,
    topic         text not null,
    partition     integer not null,
    lost_from     bigint not null,
    lost_to       bigint,       -- Null: the topic was created again, so its length is unknown.
    read_to       bigint not null,
    reason        text not null,
    accepted_at   timestamptz not null default now()
);

-- Epochs whose replay after a crash read different records from those that were bound, for example
-- because the topic had been compacted in the meantime. The records lost that way are counted in
-- jobs.lost.
create table if not exists sessionizer.replay_differences (
    job           text not null references sessionizer.jobs on delete cascade,
    topic         text not null,
    partition     integer not null,
    epoch         bigint not null,
    from_offset   bigint not null,
    to_offset     bigint not null,
    recorded      bigint not null,
    found         bigint not null,
    noted_at      timestamptz not null default now(),
    primary key (job, topic, partition, epoch)
);

-- Sessions, and hosts as a whole, that were unlike the rest of their host. A row is a function of
-- the table of sessions and the watermark, so its key is what it describes. The job never writes
-- the verdict: that is for people.
create table if not exists sessionizer.anomalies (
    job           text not null references sessionizer.jobs on delete cascade,
    kind          text not null,
    host          text not null,
    subject       text not null,  -- An address; empty: the host as a whole; (more): the rest.
    at            timestamptz not null,
    observed      double precision not null,
    expected      double precision not null,
    threshold     double precision not null,
    unit          text not null,
    reason        text not null,
    details       jsonb not null,
    state         text not null,  -- raised, or withdrawn by a correction.
    raised_epoch  bigint not null,
    changed_at    timestamptz not null default now(),
    verdict       text,
    primary key (job, kind, host, subject, at)
);

comment on table sessionizer.anomalies is
    'Sessions, and hosts as a whole, that were unlike the rest of their host. --keep-anomalies '
    'removes old rows.';
comment on column sessionizer.anomalies.verdict is
    'Yours: the job never writes it.';

-- Visitors that `sessionizer forget` has removed, and up to which offset of each partition: Kafka
-- may still have their records, and an audit must not expect them in the table. The visitor is the
-- SHA-256 of jobs.forget_salt, the ip and, if only one host was meant, a NUL and the host.
create table if not exists sessionizer.forgotten (
    job           text not null references sessionizer.jobs on delete cascade,
    visitor       bytea not null,
    topic         text not null,
    partition     integer not null,
    before_offset bigint not null,
    forgotten_at  timestamptz not null default now(),
    primary key (job, visitor, topic, partition)
);

comment on table sessionizer.forgotten is
    'Visitors that `sessionizer forget` has removed, as salted hashes. Only an audit needs it, and '
    'only as long as Kafka has all records that the job has read.';

-- What `sessionizer audit` has found, one row per audit.
create table if not exists sessionizer.audits (
    job              text not null references sessionizer.jobs on delete cascade,
    audited_at       timestamptz not null default clock_timestamp(),
    duration_ms      bigint not null,
    kind             text not null,      -- full, or incremental: continued from the one before.
    -- By topic/partition: the offset up to which all records were verified.
    verified_through jsonb not null,
    as_of_epoch      bigint not null,    -- The epoch that the slowest shard had reached.
    watermark_ms     bigint,             -- Its watermark.
    records_read     bigint not null,
    rows_compared    bigint not null,
    differences      bigint not null,    -- Zero: the table equals the batch answer.
    unverifiable     bigint not null,    -- Rows with events that Kafka no longer has.
    verdict          text not null,
    primary key (job, audited_at)
);

comment on table sessionizer.audits is
    'What sessionizer audit has found, one row per audit. It keeps a year, and at most 10,000 rows.';
comment on column sessionizer.audits.differences is
    'Zero: the table equals the batch answer.';

-- What the last audit has verified, in the program's own format: the next one continues from it.
-- Whoever changes what a job has read or written before (its records, its dead letters, its rows)
-- deletes the job's row here in the same transaction. Then the next audit reads everything again,
-- and an audit that is in progress does not keep what it has verified.
create table if not exists sessionizer.audit_state (
    job              text primary key references sessionizer.jobs on delete cascade,
    claim            bigint not null,    -- Identifies the audit that began last: it may write.
    data             bytea,              -- Null: none has ended yet.
    kept_at          timestamptz
);

-- Upgrade a schema that an older version created.
alter table sessionizer.jobs add column if not exists lost bigint not null default 0,
    add column if not exists loss_epoch bigint,
    add column if not exists topics text[],
    add column if not exists forget_salt bytea;
alter table sessionizer.shard_progress add column if not exists run bigint,
    add column if not exists forgotten bigint not null default 0;
alter table sessionizer.epochs add column if not exists max_future_ms bigint,
    add column if not exists late text;
alter table sessionizer.bindings add column if not exists topic_id text,
    add column if not exists clock_ms bigint;
alter table sessionizer.dead_letters add column if not exists records bigint not null default 1,
    alter column topic drop not null, alter column partition drop not null,
    alter column "offset" drop not null;
-- These tables have no key, and a publication of deletes needs a key or this.
alter table sessionizer.dead_letters replica identity full;
alter table sessionizer.losses replica identity full;
-- In an older version, the view had other columns. It is dropped only then, because its grants go
-- with it.
do $$ begin
    if not exists (select from pg_attribute where attrelid = to_regclass('sessionizer.balance')
                   and attname = 'replay_difference') then
        drop view if exists sessionizer.balance;
    end if;
end $$;

-- Nothing vanishes: every record is in a closed session, in an open session, a dead letter, part of
-- an accepted loss, or forgotten on request. As of the last epoch that all shards have passed. The
-- difference is zero at every commit (while a loss has not been counted yet, it is that loss).
create or replace view sessionizer.balance as
select e.job, e.epoch, to_timestamp(e.epoch / 1000.0) as as_of, r.records, e.closed, e.open, e.dead,
       r.records - e.closed - e.open - e.dead - j.lost - f.forgotten as difference, j.lost,
       (select coalesce(sum(d.found - d.recorded), 0)::bigint
        from sessionizer.replay_differences d where d.job = j.job) as replay_difference,
       f.forgotten
from sessionizer.jobs j
cross join lateral (
    select * from sessionizer.epochs e
    where e.job = j.job and e.shards_done = j.shards
    order by e.epoch desc limit 1
) e
cross join lateral (
    select coalesce(sum(latest.records), 0)::bigint as records
    from (
        select distinct on (b.topic, b.partition) b.records
        from sessionizer.bindings b
        where b.job = j.job and b.epoch <= e.epoch
        order by b.topic, b.partition, b.epoch desc
    ) latest
) r
cross join lateral (
    -- It changes only while the job is stopped.
    select coalesce(sum(p.forgotten), 0)::bigint as forgotten
    from sessionizer.shard_progress p where p.job = j.job
) f;

comment on view sessionizer.balance is
    'One row per job (where job = ''NAME''): what became of the records it has read, as of its '
    'last complete commit. Every column counts records, not sessions.';
comment on column sessionizer.balance.records is 'Records read.';
comment on column sessionizer.balance.closed is 'Records in sessions that have closed: the sum of num_logs over the job''s rows.';
comment on column sessionizer.balance.open is 'Records in sessions that are still open.';
comment on column sessionizer.balance.dead is 'Records that are dead letters.';
comment on column sessionizer.balance.lost is 'Records that had been read, and that Kafka had lost when they were needed again.';
comment on column sessionizer.balance.replay_difference is 'How many more records (if negative, fewer) replays have read than before: sessionizer.replay_differences has them by epoch and partition. Records whose sessions were written already are not lost.';
comment on column sessionizer.balance.forgotten is 'Records of visitors that `sessionizer forget` has removed.';
comment on column sessionizer.balance.difference is 'records - closed - open - dead - lost - forgotten: zero.';

-- The progress of each partition, for people and for alerts.
create or replace view sessionizer.partitions as
select distinct on (b.job, b.topic, b.partition)
       b.job, b.topic, b.partition, b.start_offset, b.end_offset, b.status, b.records, b.dead,
       to_timestamp(b.promise_ms / 1000.0) as promise, to_timestamp(b.epoch / 1000.0) as as_of
from sessionizer.bindings b
order by b.job, b.topic, b.partition, b.epoch desc;

comment on view sessionizer.partitions is
    'One row per job and partition (where job = ''NAME''): the next offset, the records and dead '
    'letters so far, and the promise: no event older than this is expected any more.';
