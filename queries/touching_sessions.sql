-- Are there sessions of a visitor that should be one?
--
-- Of two sessions of an ip on a host, the later one must begin more than the job's --gap after the
-- last event of the earlier one. This finds pairs that violate that. The job writes none, but a
-- table that it took over may hold some: late events make a Flink job write overlapping sessions.
--
-- Index: the primary key (ip, host, session_start), read in its order; without it, the table is
-- sorted.
--
-- Reads the table sessionized_events; for the table of one job, run
-- `psql -v job=NAME -f queries/touching_sessions.sql`.

\if :{?job}
select format('%I.%I', table_schema, table_name) as sessions
from sessionizer.jobs where job = :'job' \gset
\else
\set sessions sessionized_events
\endif

with job as (
    -- How long after session_end a session still joins: zero if session_end includes the gap.
    select coalesce(max(gap_ms) filter (where session_end = 'last-event'), 0) * interval '1 ms'
               as reach
    from sessionizer.jobs
    where to_regclass(format('%I.%I', table_schema, table_name)) = to_regclass(:'sessions')
),
neighbours as (
    select ip, host, session_start, session_end, num_logs,
           max(session_end) over earlier as end_before
    from :sessions
    window earlier as (
        partition by ip, host order by session_start, session_end
        rows between unbounded preceding and 1 preceding
    )
)
select ip, host, end_before, session_start, session_end, num_logs
from neighbours
cross join job
where session_start <= end_before + reach
order by ip, host, session_start;
