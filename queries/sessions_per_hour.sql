-- How many sessions began in each hour, of how many visitors, and with how many events?
--
-- The newest hour comes first, a week at most; hours in which nothing began are left out. Hours are
-- those of the connection's time zone: `set timezone to 'UTC'` or whatever else you think in.
-- Sessions that are still open are not in the table yet, so the newest hours are not complete.
--
-- Of the table sessionized_events; of the table of one job with
-- `psql -v job=NAME -f queries/sessions_per_hour.sql`.

\if :{?job}
select format('%I.%I', table_schema, table_name) as sessions
from sessionizer.jobs where job = :'job' \gset
\else
\set sessions sessionized_events
\endif

select date_trunc('hour', session_start)  as hour,
       count(*)                           as sessions,
       count(distinct ip)                 as visitors,
       sum(num_logs)                      as events
from :sessions
group by 1
order by hour desc
limit 7 * 24;
