-- Is every record that each job has read accounted for?
--
-- Every number counts records, not sessions. A record that was read is in a closed session (a row
-- of the table), in an open session, a dead letter, lost in Kafka (--accept-lost-offsets), or of a
-- visitor that `sessionizer forget` has removed. The difference is what these leave of the records:
-- zero after every commit. If it is not, somebody has changed the tables of the schema sessionizer,
-- or the job has a bug.
--
-- Covers all jobs of the database; for one job, run
-- `psql -v job=NAME -f queries/balance.sql`.

\if :{?job}
\else
\set job ''
\endif

select job, records, closed, open, dead, lost, forgotten, difference,
       case difference when 0 then 'yes' else 'NO' end as balanced,
       as_of
from sessionizer.balance
where :'job' in ('', job)
order by job;
