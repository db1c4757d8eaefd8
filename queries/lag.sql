-- How far is each partition, and which one holds the others back?
--
-- promise: no event older than this is expected from the partition any more. Sessions close when
-- every active partition has promised to be past their end, so the smallest promise of an active
-- partition counts; one that is idle or has ended holds nothing back. behind is how old that
-- promise is now: a few seconds for live events, the age of the events while a backlog is read.
-- How many records wait in Kafka only the brokers know: kafka-consumer-groups.sh --describe.
--
-- Of all jobs of the database; of one with
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
