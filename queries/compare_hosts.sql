-- How do sessions on zachwilson.techcreator.io, zachwilson.tech and lulu.techcreator.io compare?
--
-- A host without sessions shows zeros. The length of a session is the time from its first event to
-- its last: session_end is the last event plus the job's --gap (five minutes by default), which is
-- subtracted here. With --session-end last-event there is nothing to subtract.
--
-- Index: none; it reads the whole table once.
--
-- Reads the table sessionized_events; for the table of one job, run
-- `psql -v job=NAME -f queries/compare_hosts.sql`.

\if :{?job}
select format('%I.%I', table_schema, table_name) as sessions
from sessionizer.jobs where job = :'job' \gset
\else
\set sessions sessionized_events
\endif

with hosts (place, host) as (
    values (1, 'zachwilson.techcreator.io'), (2, 'zachwilson.tech'), (3, 'lulu.techcreator.io')
),
job as (
    select coalesce(max(gap_ms) filter (where session_end = 'window'), 0) * interval '1 ms' as tail
    from sessionizer.jobs
    where to_regclass(format('%I.%I', table_schema, table_name)) = to_regclass(:'sessions')
)
select hosts.host,
       count(s.ip)                                                           as sessions,
       count(distinct s.ip)                                                  as visitors,
       coalesce(round(avg(s.num_logs), 2), 0)                                as average_events,
       coalesce(percentile_cont(0.5) within group (order by s.num_logs), 0)  as median_events,
       date_trunc('second', coalesce(avg(s.session_end - job.tail - s.session_start), '0'))
                                                                             as average_length
from hosts
cross join job
left join :sessions s on s.host = hosts.host
group by hosts.place, hosts.host
order by hosts.place;
