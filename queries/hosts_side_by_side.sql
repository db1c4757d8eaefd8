-- How do all hosts compare: sessions, visitors, events, length and bounces?
--
-- A visitor is an ip. one_event_percent is the bounce rate: the share of sessions with one event.
-- The length of a session is the time from its first event to its last: session_end is the last
-- event plus the job's --gap, which is subtracted here unless the job runs with --session-end
-- last-event. Open sessions are not in the table yet.
--
-- Index: the primary key (ip, host, session_start) alone for the visitors; for the rest, none: it
-- reads the whole table once.
--
-- Reads the table sessionized_events; for the table of one job, run
-- `psql -v job=NAME -f queries/hosts_side_by_side.sql`.

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
hosts as (
    select s.host, count(*) as sessions, sum(s.num_logs)::bigint as events,
           avg(s.num_logs) as average_events,
           avg(s.session_end - s.session_start) as average_length,
           count(*) filter (where s.num_logs = 1) as one_event
    from :sessions s
    group by s.host
),
visitors as (
    -- Counting the first session of each uses the order of the key, and sorts nothing.
    select v.host, count(*) as visitors
    from (
        select s.host,
               row_number() over (partition by s.ip, s.host order by s.session_start) as nth
        from :sessions s
    ) v
    where v.nth = 1
    group by v.host
)
select host, sessions, visitors, events,
       round(1.0 * sessions / visitors, 2)                           as sessions_per_visitor,
       round(average_events, 2)                                      as average_events,
       date_trunc('second', average_length - (select tail from job)) as average_length,
       round(100.0 * one_event / sessions, 1)                        as one_event_percent
from hosts
join visitors using (host)
order by sessions desc, host;
