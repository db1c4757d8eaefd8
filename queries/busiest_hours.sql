-- At which hours of which weekdays do sessions begin?
--
-- One row for each hour of the day, with the sessions that began in it by weekday, over the whole
-- table: compare weekdays only over whole weeks. Hours are those of the time zone of the connection
-- (PGTZ=Europe/Berlin psql ...; where the columns have no time zone, those of UTC).
--
-- Index: none; it reads the whole table once. The result does not depend on --session-end.
--
-- Reads the table sessionized_events; for the table of one job, run
-- `psql -v job=NAME -f queries/busiest_hours.sql`.

\if :{?job}
select format('%I.%I', table_schema, table_name) as sessions
from sessionizer.jobs where job = :'job' \gset
\else
\set sessions sessionized_events
\endif

with counts as (
    select extract(isodow from s.session_start) as weekday,
           extract(hour from s.session_start)   as hour,
           count(*)                             as sessions
    from :sessions s
    group by 1, 2
)
select hours.hour,
       coalesce(sum(sessions) filter (where weekday = 1), 0)::bigint as monday,
       coalesce(sum(sessions) filter (where weekday = 2), 0)::bigint as tuesday,
       coalesce(sum(sessions) filter (where weekday = 3), 0)::bigint as wednesday,
       coalesce(sum(sessions) filter (where weekday = 4), 0)::bigint as thursday,
       coalesce(sum(sessions) filter (where weekday = 5), 0)::bigint as friday,
       coalesce(sum(sessions) filter (where weekday = 6), 0)::bigint as saturday,
       coalesce(sum(sessions) filter (where weekday = 7), 0)::bigint as sunday
from generate_series(0, 23) hours (hour)
left join counts on counts.hour = hours.hour
group by hours.hour
order by hours.hour;
