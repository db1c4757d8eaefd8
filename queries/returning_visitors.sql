-- Of the visitors of each day, how many had been on the host on an earlier day?
--
-- A visitor is an ip. average_days_away is how many days ago those who return were last there.
-- "Earlier" reaches back to the beginning of the table, so that the first days have few who return;
-- several people behind one address are one visitor, and one person with a new address is another.
-- A session counts on the day on which it began, in the time zone of the connection (where the
-- columns have no time zone: UTC).
--
-- Index: the primary key (ip, host, session_start) alone, read in its order; without it, the table
-- is sorted. The result does not depend on --session-end.
--
-- Reads the table sessionized_events; for the table of one job, run
-- `psql -v job=NAME -f queries/returning_visitors.sql`.

\if :{?job}
select format('%I.%I', table_schema, table_name) as sessions
from sessionizer.jobs where job = :'job' \gset
\else
\set sessions sessionized_events
\endif

with visits as (
    select s.host, s.session_start::date as day,
           lag(s.session_start::date) over (partition by s.ip, s.host order by s.session_start)
               as day_before
    from :sessions s
),
first_of_day as (
    select host, day, day - day_before as days
    from visits
    where day_before is distinct from day
)
select day, host,
       count(*)                                   as visitors,
       count(days)                                as returning,
       round(100.0 * count(days) / count(*), 1)   as returning_percent,
       round(avg(days), 1)                        as average_days_away
from first_of_day
group by day, host
order by day desc, visitors desc, host;
