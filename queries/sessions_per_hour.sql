-- How many sessions began in each hour, by how many visitors, and with how many events?
--
-- The newest hour comes first; at most 168 hours are shown, and hours in which no session began are
-- left out. Hours are in the time zone of the connection: `set timezone to 'UTC'`, or to your own.
-- Open sessions are not in the table yet, so the newest hours are incomplete.
--
-- Index: none; it reads the whole table once.
--
-- Reads the table sessionized_events; for the table of one job, run
-- `psql -v job=NAME -f queries/sessions_per_hour.sql`.

\if :{?job}
select format('%I.%I', table_schema, table_name) as sessions
from sessionizer.jobs where job = :'job' \gset
\else
\set sessions sessionized_events
\endif

select date_trunc('hour', s.session_start)  as hour,
       count(*)                             as sessions,
       count(distinct s.ip)                 as visitors,
       sum(s.num_logs)::bigint              as events
from :sessions s
group by 1
order by hour desc
limit 7 * 24;
