-- Which records did not become events, for which reasons, and what does such a record look like?
--
-- The example is the newest one for its reason, with the beginning of its payload. Bytes that are
-- not plain text appear as \ and three octal digits.
--
-- Covers all jobs of the database; for one job, run
-- `psql -v job=NAME -f queries/dead_letters.sql`.

\if :{?job}
\else
\set job ''
\endif

with reasons as (
    select job, reason, sum(records)::bigint as records,
           min(read_at) as first_read, max(read_at) as last_read
    from sessionizer.dead_letters
    where :'job' in ('', job)
    group by job, reason
)
select r.job, r.reason, r.records, r.first_read, r.last_read,
       case when e.topic is null then 'a session that the table has refused'
            else format('%s[%s] offset %s', e.topic, e.partition, e."offset") end as example,
       e.detail,
       encode(substring(e.payload for 200), 'escape')                as payload
from reasons r
cross join lateral (
    select *
    from sessionizer.dead_letters d
    where d.job = r.job and d.reason = r.reason
    order by d.read_at desc, d.topic, d.partition, d."offset" desc
    limit 1
) e
order by r.job, r.records desc, r.reason;
