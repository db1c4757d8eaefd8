-- Makes the monthly partitions that are missing, up to the months ahead, and drops those that are
-- too old. Run it once a day, while the job runs:
--
--     psql -qX -v ON_ERROR_STOP=1 -f deploy/postgres/partitions.sql DATABASE
--
--   table     the table of sessions, partitioned by range (session_start), as to_regclass finds it
--             (default sessionized_events)
--   keep      how many months are kept besides the current one (default 12); older partitions are
--             dropped, with their rows
--   ahead     how many months are made ahead (default 2)
--   since     no partition is made for months before this one, for example 2026-12-01: an older
--             table is attached for them (default: no limit)
--
-- Months are those of UTC. A partition is called TABLE_2026_01 and holds the sessions that began in
-- that month; partitions with other names, such as a default one, are left alone. Run it as the
-- owner of the table. It waits for locks only briefly, so that the job does not wait behind it: if
-- a long query is in the way, it fails and the next run makes up for it.

\if :{?table}
\else
\set table sessionized_events
\endif
\if :{?keep}
\else
\set keep 12
\endif
\if :{?ahead}
\else
\set ahead 2
\endif
\if :{?since}
\else
\set since -infinity
\endif

set time zone 'UTC';
set lock_timeout = '5s';

select format('create table %I.%I partition of %s for values from (%L) to (%L)',
              n.nspname, name, c.oid::regclass, month, month + interval '1 month')
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
cross join generate_series(greatest(date_trunc('month', now()) - :keep * interval '1 month',
                                    date_trunc('month', :'since'::timestamptz)),
                           date_trunc('month', now()) + :ahead * interval '1 month',
                           interval '1 month') month
cross join lateral (select c.relname || to_char(month, '_YYYY_MM')) made (name)
where c.oid = to_regclass(:'table')
      and to_regclass(format('%I.%I', n.nspname, name)) is null
order by month
\gexec

select format('drop table %s', p.oid::regclass)
from pg_class c
join pg_inherits i on i.inhparent = c.oid
join pg_class p on p.oid = i.inhrelid
where c.oid = to_regclass(:'table')
      and p.relname ~ ('^' || regexp_replace(c.relname, '\W', '\\\&', 'g') || '_\d{4}_\d{2}$')
      and right(p.relname, 7) < to_char(now() - :keep * interval '1 month', 'YYYY_MM')
order by p.relname
\gexec
