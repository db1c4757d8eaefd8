-- How far has each partition been read, and which one holds the others back?
--
-- promise: no event older than this is expected from the partition any more. A session closes once
-- every active partition has promised a time after its end, so the smallest promise of an active
-- partition decides; a partition that is idle or has ended holds nothing back. behind: the age of
-- the promise. For live events it is a few seconds; while a backlog is read, it is the age of the
-- events. Only the brokers know how many records wait in Kafka: kafka-consumer-groups.sh
-- --describe.
--
-- Covers all jobs of the database; for one job, run
-- `psql -v job=NAME -f queries/lag.sql`.

\if :{?job}
\else
\set job ''
\endif

select job, topic, partition, status,
       end_offset                               as next_offset,
       records, dead, promise,
       date_trunc('second', now() - promise)    as behind,
       status = 'active' and coalesce(promise, '-infinity') =
           min(coalesce(promise, '-infinity')) filter (where status = 'active') over of_job
                                                as holds_back,
       as_of                                    as changed_at
from sessionizer.partitions
where :'job' in ('', job)
window of_job as (partition by job)
order by job, topic, partition;
