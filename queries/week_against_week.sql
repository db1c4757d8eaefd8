-- How does this week compare with the week before, by host?
--
-- This week is from Monday, 0:00, to the beginning of the newest session; the week before is the
-- same part of it, up to the same weekday and time. The first row, without a host, is for all hosts
-- together. A visitor is an ip on a host; percentages are changes, and empty where there was
-- nothing before. A session counts in the week in which it began, in the time zone of the
-- connection (where the columns have no time zone: UTC).
--
-- Index: the one on session_end (brin), if there is one, for the two weeks: a session that began
-- after a moment ended after it. The newest session is found by reading the table once. The result
-- is the same with either --session-end.
--
-- Reads the table sessionized_events; for the table of one job, run
-- `psql -v job=NAME -f queries/week_against_week.sql`.

\if :{?job}
select format('%I.%I', table_schema, table_name) as sessions
from sessionizer.jobs where job = :'job' \gset
\else
\set sessions sessionized_events
\endif

with newest as (
    select max(s.session_start) as at, date_trunc('week', max(s.session_start)) as monday
    from :sessions s
),
counted as (
    select s.host, s.ip, s.session_start >= (select monday from newest) as this_week,
           count(*) as sessions, sum(s.num_logs) as events,
           count(*) filter (where s.num_logs = 1) as one_event
    from :sessions s
    where s.session_end >= (select monday - interval '1 week' from newest)
          and (s.session_start between (select monday - interval '1 week' from newest)
                                   and (select at - interval '1 week' from newest)
               or s.session_start >= (select monday from newest))
    group by 1, 2, 3
),
weeks as (
    select host, grouping(host) as all_hosts,
           coalesce(sum(sessions) filter (where this_week), 0)::bigint       as sessions,
           coalesce(sum(sessions) filter (where not this_week), 0)::bigint   as sessions_before,
           count(*) filter (where this_week)                                 as visitors,
           count(*) filter (where not this_week)                             as visitors_before,
           coalesce(sum(events) filter (where this_week), 0)::bigint         as events,
           coalesce(sum(events) filter (where not this_week), 0)::bigint     as events_before,
           round(100 * sum(one_event) filter (where this_week)
                     / sum(sessions) filter (where this_week), 1)            as one_event_percent,
           round(100 * sum(one_event) filter (where not this_week)
                     / sum(sessions) filter (where not this_week), 1)        as one_event_before
    from counted
    group by grouping sets ((), (host))
)
select host,
       sessions, sessions_before,
       round(100.0 * (sessions - sessions_before) / nullif(sessions_before, 0), 1)
           as sessions_change,
       visitors, visitors_before,
       round(100.0 * (visitors - visitors_before) / nullif(visitors_before, 0), 1)
           as visitors_change,
       events, events_before,
       round(100.0 * (events - events_before) / nullif(events_before, 0), 1)
           as events_change,
       one_event_percent, one_event_before
from weeks
order by all_hosts desc, sessions desc, host;
