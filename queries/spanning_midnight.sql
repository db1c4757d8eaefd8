-- Which share of the sessions of each day went on past midnight?
--
-- A session that goes on past midnight counts on the day on which it began, here as everywhere in
-- this directory, so reports by day give all of its events to that day. Midnight is that of the
-- time zone of the connection (where the columns have no time zone: UTC). A session goes on past
-- midnight if its last event does: session_end is the last event plus the job's --gap, which is
-- subtracted here unless the job runs with --session-end last-event. longest is the longest of
-- those that do, from its first event to its last.
--
-- Index: none; it reads the whole table once.
--
-- Reads the table sessionized_events; for the table of one job, run
-- `psql -v job=NAME -f queries/spanning_midnight.sql`.

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
),
spans as (
    select s.host, s.session_start::date as day, s.num_logs,
           s.session_end - s.session_start - (select tail from job) as length,
           (s.session_end - (select tail from job))::date > s.session_start::date as spans
    from :sessions s
)
select day, host,
       count(*)                                                        as sessions,
       count(*) filter (where spans)                                   as past_midnight,
       round(100.0 * count(*) filter (where spans) / count(*), 2)      as percent,
       coalesce(sum(num_logs) filter (where spans), 0)::bigint         as their_events,
       date_trunc('second', max(length) filter (where spans))          as longest
from spans
group by day, host
having count(*) filter (where spans) > 0
order by day desc, past_midnight desc, host;
