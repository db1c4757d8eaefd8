-- What the job keeps beside the table of sessions: how far it is, what every epoch consists of,
-- its open sessions, and what did not decode. Everything is keyed by job, so that several jobs
-- share a database. Times in *_ms count milliseconds since 1970; an epoch is such a time.

-- Not `if not exists`: that asks for the right to create a schema even if it is there.
do $$ begin
    if to_regnamespace('sessionizer') is null then create schema sessionizer; end if;
end $$;

-- One row a job: what was settled when it was created.
create table if not exists sessionizer.jobs (
    job           text primary key,
    table_schema  text not null,
    table_name    text not null,
    shards        integer not null,
    gap_ms        bigint not null,
    session_end   text not null,
    -- Whether the table had rows when the job was created. Those are the past: late events merge
    -- with them as with rows of the job, but they may touch each other.
    found_rows    boolean not null,
    -- Records that had been read and were lost, and that was accepted: known so far, and the epoch
    -- at which the last loss can be counted.
    lost          bigint not null default 0,
    loss_epoch    bigint,
    created_at    timestamptz not null default now(),
    started_at    timestamptz not null default now(),
    started_by    text not null,
    -- KAFKA_TOPIC at the last start.
    topics        text[],
    unique (table_schema, table_name)
);

-- How far the output of each shard is. Every commit moves its shards from the epoch it knows to
-- the next under the generation it knows: that is the fence and the idempotence check in one.
create table if not exists sessionizer.shard_progress (
    job           text not null references sessionizer.jobs on delete cascade,
    shard         integer not null,
    epoch         bigint not null,
    generation    bigint not null,
    closed        bigint not null,
    open          bigint not null,
    dead          bigint not null,
    -- Which run it was that took the generation: after a database has gone back to an earlier
    -- state, two may have taken the same.
    run           bigint,
    primary key (job, shard)
) with (fillfactor = 50);  -- Updated in place at every commit: room for the next version.

-- Every epoch that something durable depends on, and the books at its end: sums over the shards
-- that have passed it. When all have, records = closed + open + dead.
create table if not exists sessionizer.epochs (
    job           text not null references sessionizer.jobs on delete cascade,
    epoch         bigint not null,
    watermark_ms  bigint,
    shards_done   integer not null,
    closed        bigint not null,
    open          bigint not null,
    dead          bigint not null,
    -- The settings that decided what became of its records: a replay goes by them.
    max_future_ms bigint,
    late          text,
    primary key (job, epoch)
);

-- What each partition said at the end of an epoch; one that had nothing new to say is not there,
-- and its last row counts. Trimmed behind the oldest snapshot, but for the last of each partition.
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
    -- Of which topic the offsets are, as Kafka tells topics of one name apart.
    topic_id      text,
    -- The wall clock by which events of the future were told. Null: the epoch was the clock.
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

-- Records that are no events: where they are, why, and how they begin. And sessions that the table
-- has refused (reason row_refused): they come from several records, so they have no place; the
-- payload is the row, in JSON.
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
    -- How many records it stands for.
    records       bigint not null default 1
);
create index if not exists dead_letters_place
    on sessionizer.dead_letters (job, topic, partition, "offset");
-- For --keep-dead-letters. They come in the order of their time, so this one costs nearly nothing.
create index if not exists dead_letters_age
    on sessionizer.dead_letters using brin (read_at) with (autosummarize = on);

comment on table sessionizer.dead_letters is
    'Records that are no events. --keep-dead-letters removes old ones; the balance counts them on.';
comment on column sessionizer.dead_letters.payload is
    'How the payload begins: at most --dead-letter-bytes of it. Null: there was none, or '
    '--keep-dead-letters has removed it.';
comment on column sessionizer.dead_letters.payload_bytes is
    'How long the whole payload was. It was cut if this is more than length(payload).';

-- Offsets that Kafka did not have any more when they were needed, and that was accepted. Those
-- before read_to had been read; what was known of them is in snapshots and in the table.
create table if not exists sessionizer.losses (
    job           text not null references sessionizer.jobs on delete cascade,
    topic         text not null,
    partition     integer not null,
    lost_from     bigint not null,
    lost_to       bigint,       -- Null: the topic was made again, nobody knows how long it was.
    read_to       bigint not null,
    reason        text not null,
    accepted_at   timestamptz not null default now()
);

-- Epochs that brought other records when they were read again after a crash than when they were bound:
-- the topic had been compacted meanwhile, for example. What that has cost is in jobs.lost.
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

-- What older versions of the program made without.
alter table sessionizer.jobs add column if not exists lost bigint not null default 0,
    add column if not exists loss_epoch bigint,
    add column if not exists topics text[];
alter table sessionizer.shard_progress add column if not exists run bigint;
alter table sessionizer.epochs add column if not exists max_future_ms bigint,
    add column if not exists late text;
alter table sessionizer.bindings add column if not exists topic_id text,
    add column if not exists clock_ms bigint;
alter table sessionizer.dead_letters add column if not exists records bigint not null default 1,
    alter column topic drop not null, alter column partition drop not null,
    alter column "offset" drop not null;
-- They have no key, and a publication of deletes needs one or this.
alter table sessionizer.dead_letters replica identity full;
alter table sessionizer.losses replica identity full;
drop view if exists sessionizer.balance;

-- Nothing vanishes: every record is in a closed session, in an open one, a dead letter, or of a
-- loss that was accepted. As of the last epoch that all shards have passed; the difference is zero
-- at every commit (while a loss is being counted, it is that loss).
create or replace view sessionizer.balance as
select e.job, e.epoch, to_timestamp(e.epoch / 1000.0) as as_of, r.records, e.closed, e.open, e.dead,
       r.records - e.closed - e.open - e.dead - j.lost as difference, j.lost,
       (select coalesce(sum(d.found - d.recorded), 0)::bigint
        from sessionizer.replay_differences d where d.job = j.job) as replay_difference
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
) r;

comment on view sessionizer.balance is
    'One row a job (where job = ''NAME''): what became of the records it has read, as of its last '
    'complete commit. Every column counts records, not sessions.';
comment on column sessionizer.balance.records is 'Records read.';
comment on column sessionizer.balance.closed is 'Records in sessions that have closed: the sum of num_logs over the job''s rows.';
comment on column sessionizer.balance.open is 'Records in sessions that are still open.';
comment on column sessionizer.balance.dead is 'Records that are dead letters.';
comment on column sessionizer.balance.lost is 'Records that had been read and that Kafka had lost when they were needed again.';
comment on column sessionizer.balance.replay_difference is 'Records that reading again has brought more (or, if negative, less) than before: sessionizer.replay_differences has them by epoch and partition. Those whose sessions were written already are not lost.';
comment on column sessionizer.balance.difference is 'records - closed - open - dead - lost: zero.';

-- How far each partition is: for people, and for alerts.
create or replace view sessionizer.partitions as
select distinct on (b.job, b.topic, b.partition)
       b.job, b.topic, b.partition, b.start_offset, b.end_offset, b.status, b.records, b.dead,
       to_timestamp(b.promise_ms / 1000.0) as promise, to_timestamp(b.epoch / 1000.0) as as_of
from sessionizer.bindings b
order by b.job, b.topic, b.partition, b.epoch desc;

comment on view sessionizer.partitions is
    'One row a job and partition (where job = ''NAME''): the next offset, the records and dead letters '
    'so far, and the promise that no event older than this is expected any more.';
