-- How many web events does a session on Tech Creator have on average, for each user and overall?
--
-- Tech Creator is techcreator.io and every host under it; a user is an ip. The first row is the
-- average over all sessions, so a user counts once for each session.
--
-- Index: none; it reads the whole table once.
--
-- Reads the table sessionized_events; for the table of one job, run
-- `psql -v job=NAME -f queries/average_events_per_session.sql`.

\if :{?job}
select format('%I.%I', table_schema, table_name) as sessions
from sessionizer.jobs where job = :'job' \gset
\else
\set sessions sessionized_events
\endif

select case when grouping(ip) = 1 then 'all users' else ip end as visitor,
       count(*)                                               as sessions,
       coalesce(sum(num_logs), 0)                             as events,
       coalesce(round(avg(num_logs), 2), 0)                   as average_events_per_session
from :sessions
where host = 'techcreator.io' or host like '%.techcreator.io'
group by grouping sets ((), (ip))
order by grouping(ip) desc, average_events_per_session desc, sessions desc, ip;
