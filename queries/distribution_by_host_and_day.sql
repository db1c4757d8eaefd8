-- How many events do sessions have, and how long are they, by host and day?
--
-- The averages, and the values that 50, 95 and 99 % of the sessions do not exceed. A session counts
-- on the day on which it began, in the time zone of the connection (PGTZ=Europe/Berlin psql ...;
-- where the columns have no time zone, days are those of UTC). Lengths run from the first event to
-- the last, in whole seconds: session_end is the last event plus the job's --gap, which is
-- subtracted here unless the job runs with --session-end last-event. The newest day is incomplete.
--
-- Index: none; it reads the whole table once. Counting equal values first is what makes it fast: a
-- percentile_disc() would sort every session of a day.
--
-- Reads the table sessionized_events; for the table of one job, run
-- `psql -v job=NAME -f queries/distribution_by_host_and_day.sql`.

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
counted as (
    select host, day, num_logs, seconds, grouping(seconds) = 1 as of_events, count(*) as n
    from (
        select s.host, s.session_start::date as day, s.num_logs,
               floor(date_part('epoch', s.session_end - s.session_start - (select tail from job)))
                   ::bigint as seconds
        from :sessions s
        offset 0  -- Without it, the planner expects as many groups as rows, and sorts them.
    ) sessions
    group by grouping sets ((host, day, num_logs), (host, day, seconds))
),
ranked as (
    select host, day, of_events, case when of_events then num_logs else seconds end as value, n,
           sum(n) over upto as upto, sum(n) over whole as of_all
    from counted
    window upto as (partition by host, day, of_events
                    order by case when of_events then num_logs else seconds end),
           whole as (partition by host, day, of_events)
),
figures as (
    select host, day, of_events, sum(n)::bigint as sessions, sum(n * value) / sum(n) as average,
           min(value) filter (where upto >= 0.50 * of_all) as p50,
           min(value) filter (where upto >= 0.95 * of_all) as p95,
           min(value) filter (where upto >= 0.99 * of_all) as p99
    from ranked
    group by host, day, of_events
)
select day, host, e.sessions,
       round(e.average, 2)                 as average_events,
       e.p50                               as events_p50,
       e.p95                               as events_p95,
       e.p99                               as events_p99,
       round(l.average) * interval '1 s'   as average_length,
       l.p50 * interval '1 s'              as length_p50,
       l.p95 * interval '1 s'              as length_p95,
       l.p99 * interval '1 s'              as length_p99
from figures e
join figures l using (host, day)
where e.of_events and not l.of_events
order by day desc, e.sessions desc, host;
