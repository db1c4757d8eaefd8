-- Which sessions lasted longest, and how many events did they have?
--
-- The length runs from the first event to the last: session_end is the last event plus the job's
-- --gap (five minutes by default), which is subtracted here. With --session-end last-event there is
-- nothing to subtract. A visitor who stays for hours is often a program.
--
-- Index: none; it reads the whole table once.
--
-- Reads the table sessionized_events; for the table of one job, run
-- `psql -v job=NAME -f queries/longest_sessions.sql`.

\if :{?job}
select format('%I.%I', table_schema, table_name) as sessions
from sessionizer.jobs where job = :'job' \gset
\else
\set sessions sessionized_events
\endif

with job as (
    select coalesce(max(gap_ms) filter (where session_end = 'window'), 0) * interval '1 ms' as tail
    from sessionizer.jobs
    where to_regclass(format('%I.%I', table_schema, table_name)) = to_regclass(:'sessions')
)
select s.ip, s.host,
       s.session_start                           as first_event,
       s.session_end - job.tail                  as last_event,
       s.session_end - job.tail - s.session_start as length,
       s.num_logs                                as events
from :sessions s
cross join job
order by length desc, events desc, s.ip, s.host, first_event
limit 20;
