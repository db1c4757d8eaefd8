-- Which sessions, and which moments of a host, were unlike the rest of that host?
--
-- The rules of five of the job's anomalies (docs/ANOMALIES.md) for the whole table: burst and
-- marathon are sessions, with many events (in all or a minute) or of long duration; surge and fall
-- are five minutes in which far more or far fewer sessions ended than in the hour before (where few
-- end, a fall is of a quarter of an hour, and shown at its last five minutes); singles is a quarter
-- of an hour with an unusual share of sessions of one event. Each is compared with the 24 hours
-- before its own, and a host that has fewer than 200 sessions in them is not judged. The thresholds
-- are those of the job's defaults: change them in the CTE `rules`. At most 1000 are shown, the
-- newest first.
--
-- Hours are those of UTC, by session_end, and lengths run from the first event to the last:
-- session_end is the last event plus the job's --gap, which is subtracted here unless the job runs
-- with --session-end last-event. The newest session_end stands for the job's watermark: what is not
-- complete by then is not judged. In bursts, observed and threshold count events, or events a
-- minute; in marathons, seconds; in surges and falls, sessions; in singles, percent.
--
-- Index: none; it reads the whole table three times.
--
-- Reads the table sessionized_events; for the table of one job, run
-- `psql -v job=NAME -f queries/unlike_the_rest.sql`.

\if :{?job}
select format('%I.%I', table_schema, table_name) as sessions
from sessionizer.jobs where job = :'job' \gset
\else
\set sessions sessionized_events
\endif

with job as (
    select coalesce(max(gap_ms) filter (where session_end = 'window'), 0) * interval '1 ms' as tail
    from sessionizer.jobs
    where to_regclass(format('%I.%I', table_schema, table_name)) = to_regclass(:'sessions')
),
rules as (
    select 200 as learn,
           40 as burst_least, 4.0 as burst_q95, 8.0 as burst_ranked, 5 as burst_rank,
           150.0 as burst_most,
           2 as pace_least, 1.5 as pace_factor, 25 as pace_rank,
           10 * 3600000 as marathon_least, 1.25 as marathon_ranked, 10 as marathon_rank,
           6.0::float8 as surge_z, 2.0::float8 as surge_factor, 30 as surge_least,
           20 as fall_least,
           5.0::float8 as singles_z, 20.0::float8 as singles_points, 100 as singles_least
),
-- Values are compared by logarithmic bins (src/core/statistics): exact below 16, then eight to each
-- power of two.
bins as (
    select array_agg(low order by low) as lows
    from (select n::bigint from generate_series(0, 15) n
          union all
          select (8 + kept)::bigint << shift
          from generate_series(1, 48) shift, generate_series(0, 7) kept) bin (low)
),
-- What is compared: sessions by hour and number of events, and by five minutes.
by_events as materialized (
    select s.host, floor(date_part('epoch', s.session_end) / 3600)::int as hour,
           width_bucket(s.num_logs, (select lows from bins)) as bin,
           count(*)::int as n, count(*) filter (where s.num_logs = 1)::int as singles
    from :sessions s
    group by 1, 2, 3
),
by_bucket as materialized (
    select s.host, floor(date_part('epoch', s.session_end) / 300)::int as bucket,
           count(*)::int as n, count(*) filter (where s.num_logs = 1)::int as singles,
           max(s.session_end) as newest
    from :sessions s
    group by 1, 2
),
candidates as materialized (
    select *, num_logs::bigint * 60000 / greatest(length_ms, 60000) as pace
    from (
        select s.host, s.ip, s.session_start, s.num_logs,
               floor(date_part('epoch', s.session_end) / 3600)::int as hour,
               round(1000 * date_part('epoch', s.session_end - s.session_start
                                               - (select tail from job)))::bigint as length_ms
        from :sessions s
        where s.num_logs > (select burst_least from rules)
              -- Shorter sessions cannot raise the limit above its least value.
              or s.session_end - s.session_start
                 > (select tail + interval '1 ms' * (marathon_least / marathon_ranked * 0.8)
                    from job, rules)
    ) s
),
newest as (
    select floor(date_part('epoch', max(newest)) / 300)::int as bucket from by_bucket
),
-- The 24 hours before each hour of a host.
hours as materialized (
    select host, hour, sessions, singles
    from (
        select host, hour,
               sum(n) over day_before as sessions, sum(singles) over day_before as singles,
               first_value(hour) over day_before as first_hour
        from (select host, hour, sum(n) as n, sum(singles) as singles
              from by_events group by 1, 2) h
        window day_before as (partition by host order by hour
                              range between 24 preceding and 1 preceding)
    ) h, rules
    where sessions >= learn and first_hour <= hour - 2
),
-- Bursts: for each hour that has a candidate, the counts of the 24 hours before, by bin.
history as (
    select h.host, h.hour, b.bin, sum(b.n) as n
    from (select distinct host, hour from candidates, rules where num_logs > burst_least) c
    join hours h using (host, hour)
    cross join generate_series(1, 24) back
    join by_events b on b.host = h.host and b.hour = h.hour - back
    group by 1, 2, 3
),
ranks as (
    select host, hour, bin, sum(n) over (partition by host, hour order by bin) as upto,
           sum(n) over (partition by host, hour order by bin desc) as down_to,
           sum(n) over (partition by host, hour) as of_all
    from history
),
burst_limits as (
    select host, hour,
           least(greatest(burst_least, floor(burst_q95 * q95), floor(burst_ranked * ranked)),
                 greatest(burst_least, floor(burst_most * q95))) as above
    from (
        select host, hour,
               (select lows[min(bin) filter (where upto * 100 >= of_all * 95) + 1] - 1 from bins)
                   as q95,
               (select lows[max(bin) filter (where down_to >= burst_rank) + 1] - 1 from bins)
                   as ranked
        from ranks, rules
        group by host, hour, burst_rank
    ) l, rules
),
-- The same for their pace, among the sessions that have enough events.
by_pace as materialized (
    select host, hour, width_bucket(pace, (select lows from bins)) as bin, count(*) as n
    from candidates, rules
    where num_logs > burst_least
    group by 1, 2, 3
),
pace_ranks as (
    select host, hour, bin, sum(n) over (partition by host, hour order by bin) as upto,
           sum(n) over (partition by host, hour order by bin desc) as down_to,
           sum(n) over (partition by host, hour) as of_all
    from (select c.host, c.hour, b.bin, sum(b.n) as n
          from (select distinct host, hour from by_pace) c
          cross join generate_series(1, 24) back
          join by_pace b on b.host = c.host and b.hour = c.hour - back
          group by 1, 2, 3) h
),
pace_limits as (
    select host, hour,
           floor(pace_factor * (
               select greatest(
                   lows[min(bin) filter (where upto * 100 >= of_all * 95) + 1],
                   lows[max(bin) filter (where down_to >= least(pace_rank, of_all)) + 1]) - 1
               from bins)) as above
    from pace_ranks, rules
    group by host, hour, pace_factor
),
bursts as (
    select 'burst' as kind, host, ip as visitor, session_start as at,
           case when num_logs > above then num_logs else pace end as observed,
           case when num_logs > above then above else pace_above end as threshold
    from (
        select c.*, l.above, greatest(burst_least, p.above) as pace_above, pace_least
        from candidates c
        join burst_limits l using (host, hour)
        left join pace_limits p using (host, hour)
        cross join rules
    ) c
    where pace >= pace_least and (num_logs > above or pace > pace_above)
),
marathons as (
    select 'marathon' as kind, c.host, c.ip as visitor, c.session_start as at,
           c.length_ms / 1000 as observed, l.above / 1000 as threshold
    from candidates c
    join hours h using (host, hour)
    cross join rules
    left join lateral (
        select b.length_ms from candidates b
        where b.host = c.host and b.hour between c.hour - 24 and c.hour - 1
        order by b.length_ms desc
        offset marathon_rank - 1 limit 1
    ) r on true
    cross join lateral (
        select greatest(marathon_least, floor(marathon_ranked * (
                   select min(low) - 1 from unnest((select lows from bins)) low
                   where low > r.length_ms)))::bigint as above
    ) l
    where c.length_ms > marathon_least and c.length_ms > l.above
),
-- Surges and falls: every bucket of a host near one with sessions, with the twelve before, and the
-- quarter of an hour that it ends, with the twelve before that. A pause of more than 28 buckets
-- begins another series, so that a single old row does not make one of millions.
numbered as (
    select host, bucket,
           count(*) filter (where begins) over (partition by host order by bucket) as series
    from (
        select host, bucket,
               bucket - lag(bucket) over (partition by host order by bucket) > 28 as begins
        from by_bucket
    ) marked
),
buckets as (
    select s.host, s.series, b.bucket, coalesce(n.n, 0) as n
    from (
        select host, series, min(bucket) as first, max(bucket) as last
        from numbered
        group by host, series
    ) s
    cross join newest
    cross join lateral
        generate_series(s.first - 14, least(s.last + 14, newest.bucket - 1)) b (bucket)
    left join by_bucket n on n.host = s.host and n.bucket = b.bucket
),
hours_before as (
    select host, bucket, n,
           array_agg(n) over (w rows between 12 preceding and 1 preceding) as before,
           sum(n) over (w rows between 2 preceding and current row) as of_quarter,
           array_agg(n) over (w rows between 14 preceding and 3 preceding) as before_quarter
    from buckets
    window w as (partition by host, series order by bucket)
),
medians as (
    select host, bucket, n, of_quarter, m.twice, m.twice / 2.0::float8 as median,
           3 * q.twice as twice_of_quarter, 1.5::float8 * q.twice as median_of_quarter
    from hours_before
    cross join lateral (
        select case when count(*) filter (where v > 0) >= 7
                    then sum(v) filter (where place in (6, 7)) end as twice
        from (select v, row_number() over (order by v) as place from unnest(before) v) sorted
    ) m
    cross join lateral (
        select case when count(*) filter (where v > 0) >= 7
                    then sum(v) filter (where place in (6, 7)) end as twice
        from (select v, row_number() over (order by v) as place
              from unnest(before_quarter) v) sorted
    ) q
    where cardinality(before) = 12
),
limits as (
    select host, bucket, n, of_quarter,
           case when twice is not null
                then greatest(floor(power(sqrt(median + 0.375) + surge_z / 2, 2) - 0.375) + 1,
                              ceil(surge_factor * median), surge_least) end as surge_from,
           case when twice >= 2 * surge_least and sqrt(median + 0.375) > surge_z / 2
                then least(ceil(power(sqrt(median + 0.375) - surge_z / 2, 2) - 0.375) - 1,
                           floor(median / surge_factor)) end as fall_to,
           case when coalesce(twice, 0) < 2 * surge_least and twice_of_quarter >= 2 * fall_least
                     and sqrt(median_of_quarter + 0.375) > surge_z / 2
                then least(ceil(power(sqrt(median_of_quarter + 0.375) - surge_z / 2, 2) - 0.375)
                           - 1, floor(median_of_quarter / surge_factor)) end as quarter_to
    from medians, rules
),
crowds as (
    select kind, host, null as visitor, to_timestamp(bucket * 300.0) as at, observed, threshold
    from (
        select host, bucket, kind,
               case when kind = 'fall' and fall_to is null then of_quarter else n end as observed,
               case kind when 'surge' then surge_from
                    else coalesce(fall_to, quarter_to) end as threshold,
               lag(kind) over w as kind_before, lag(bucket) over w as bucket_before
        from (
            select *, case when n >= surge_from then 'surge'
                           when n <= fall_to or of_quarter <= quarter_to then 'fall' end as kind
            from limits
        ) l
        window w as (partition by host order by bucket)
    ) l
    -- Only the first of several in a row.
    where kind is not null and (kind_before is distinct from kind or bucket_before < bucket - 1)
),
-- Singles: quarters of an hour.
quarters as (
    select q.host, q.quarter, q.n, q.singles,
           (h.singles + 1)::float8 / (h.sessions + 2)::float8 as usual
    from (select host, bucket / 3 as quarter, sum(n) as n, sum(singles) as singles
          from by_bucket group by 1, 2) q
    join hours h on h.host = q.host and h.hour = q.quarter / 4
    cross join rules
    where q.n >= singles_least and q.quarter < (select bucket / 3 from newest)
),
unusual as (
    select host, quarter, n, singles, fewest
    from (
        select *,
               greatest(floor((usual + singles_z * sqrt(usual * (1 - usual) / n::float8)) * n) + 1,
                        ceil((usual + singles_points / 100) * n)) as fewest
        from quarters, rules
    ) q
    where singles >= fewest
),
singles as (
    select 'singles' as kind, u.host, null as visitor, to_timestamp(u.quarter * 900.0) as at,
           round(100.0 * singles / n) as observed, round(100.0 * fewest::bigint / n) as threshold
    from unusual u
    where not exists (select from unusual b where b.host = u.host and b.quarter = u.quarter - 1)
)
select at, kind, host, visitor, observed::bigint, threshold::bigint
from (
    select kind, host, visitor, at::timestamptz, observed, threshold from bursts
    union all
    select kind, host, visitor, at::timestamptz, observed, threshold from marathons
    union all
    select * from crowds
    union all
    select * from singles
) found
order by at desc, kind, host, visitor
limit 1000;
