-- What share of the sessions has a single event, by host?
--
-- The first row, without a host, is for all hosts together. A session of one event is a visit that
-- ended where it began, or one whose next event came more than the job's --gap later. Robots that
-- fetch one page now and then raise it: queries/unlike_the_rest.sql finds the hours in which it is
-- unusual.
--
-- Index: none; it reads the whole table once. The result does not depend on --session-end.
--
-- Reads the table sessionized_events; for the table of one job, run
-- `psql -v job=NAME -f queries/bounce_rate.sql`.

\if :{?job}
select format('%I.%I', table_schema, table_name) as sessions
from sessionizer.jobs where job = :'job' \gset
\else
\set sessions sessionized_events
\endif

select s.host,
       count(*)                                                                as sessions,
       count(*) filter (where s.num_logs = 1)                                  as one_event,
       coalesce(round(100.0 * count(*) filter (where s.num_logs = 1) / nullif(count(*), 0), 1), 0)
                                                                               as one_event_percent
from :sessions s
group by grouping sets ((), (s.host))
order by grouping(s.host) desc, sessions desc, s.host;
