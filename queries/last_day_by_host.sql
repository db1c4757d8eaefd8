-- What does the page show for the last day, by host?
--
-- The current hour and the 24 before it, by the watermark of the last complete commit; a session
-- counts in the hour in which it ended. The page shows the median and the 95th percentile as ranges
-- (its bins), in which the values here lie. Durations are from the first event to the last, in
-- milliseconds. The first row, without a host, is for all hosts together.
--
-- Index: the one on session_end (brin), if there is one.
--
-- Reads the table sessionized_events; for the table of one job, run
-- `psql -v job=NAME -f queries/last_day_by_host.sql`.

\if :{?job}
select format('%I.%I', table_schema, table_name) as sessions
from sessionizer.jobs where job = :'job' \gset
\else
\set sessions sessionized_events
\endif

with job as materialized (
    select case session_end when 'window' then gap_ms else 0 end as tail_ms,
           (select e.watermark_ms from sessionizer.epochs e
            where e.job = j.job and e.shards_done = j.shards order by e.epoch desc limit 1)
               / 3600000 - 24 as first_hour
    from sessionizer.jobs j
    where to_regclass(format('%I.%I', table_schema, table_name)) = to_regclass(:'sessions')
),
ended as (
    select s.ip, s.host, s.num_logs,
           round(1000 * extract(epoch from s.session_end - s.session_start))::bigint - tail_ms
               as duration_ms
    from :sessions s, job
    where extract(epoch from s.session_end) >= first_hour * 3600
          -- Implied, in any time zone: for the index.
          and s.session_end >= (select to_timestamp((first_hour - 24) * 3600) from job)
)
select host,
       count(*)                                                       as sessions,
       sum(num_logs)::bigint                                          as events,
       sum(duration_ms)::bigint                                       as duration_ms,
       count(*) filter (where num_logs = 1)                           as one_event,
       count(distinct (ip, host))                                     as visitors,
       percentile_disc(0.5) within group (order by num_logs)          as events_median,
       percentile_disc(0.95) within group (order by num_logs)         as events_p95,
       percentile_disc(0.5) within group (order by duration_ms)       as duration_median_ms,
       percentile_disc(0.95) within group (order by duration_ms)      as duration_p95_ms
from ended
group by grouping sets ((), (host))
order by grouping(host) desc, 2 desc, 1;
