-- Is every record that each job has read accounted for?
--
-- Every number counts records, not sessions: those read are in sessions that have closed (rows of
-- the table), in sessions that are open, dead letters, or lost in Kafka with --accept-lost-offsets.
-- The difference is zero after every commit. If it is not, somebody has changed the tables of the
-- schema sessionizer, or the job has a bug.
--
-- Of all jobs of the database; of one with
-- `psql -v job=NAME -f queries/balance.sql`.

\if :{?job}
\else
\set job ''
\endif

select job, records, closed, open, dead, lost, difference,
       case difference when 0 then 'yes' else 'NO' end as balanced,
       as_of
from sessionizer.balance
where :'job' in ('', job)
order by job;
