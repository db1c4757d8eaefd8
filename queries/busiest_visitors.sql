-- Which visitors had the most sessions on a host in the last day?
--
-- The current hour and the 24 before it, by the watermark of the last complete commit, as on the
-- page.
--
-- Index: the one on session_end (brin), if there is one.
--
-- Reads the table sessionized_events; for the table of one job, run
-- `psql -v job=NAME -f queries/busiest_visitors.sql`.

\if :{?job}
select format('%I.%I', table_schema, table_name) as sessions
from sessionizer.jobs where job = :'job' \gset
\else
\set sessions sessionized_events
\endif

with job as materialized (
    select (select e.watermark_ms from sessionizer.epochs e
            where e.job = j.job and e.shards_done = j.shards order by e.epoch desc limit 1)
               / 3600000 - 24 as first_hour
    from sessionizer.jobs j
    where to_regclass(format('%I.%I', table_schema, table_name)) = to_regclass(:'sessions')
)
select s.ip, s.host, count(*) as sessions, sum(s.num_logs)::bigint as events
from :sessions s, job
where extract(epoch from s.session_end) >= first_hour * 3600
      -- Implied, in any time zone: for the index.
      and s.session_end >= (select to_timestamp((first_hour - 24) * 3600) from job)
group by s.ip, s.host
having count(*) >= 5
order by sessions desc, s.ip, s.host
limit 50;
