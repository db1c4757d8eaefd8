# How soon a session is in the table, and a job that has nothing to do.
# A part of scripts/bench, and checked with it.

# ---- latency -------------------------------------------------------------------------------

live_s=40
live_rate=10000
declare -A epoch_ms=([1s]=1000 [100ms]=100)

# Events carry the time of their sending, so the event that closes a session, of the partition that
# brings it last, is sent when the session's end and the out-of-orderness have passed. When a row
# is visible is seen every 5 ms: the transaction that wrote it has moved the progress of a shard.
case_latency() {
    local i epoch
    local -a epochs=(1s 100ms)
    for ((i = 1; i <= runs; i++)); do
        for epoch in "${epochs[@]}"; do
            measure_latency "$epoch"
        done
    done
    # shellcheck disable=SC2086 # words on purpose
    for epoch in "${epochs[@]}"; do
        result latency "epochs of $epoch: rows" "" ${lists[latency-$epoch.rows]}
        result latency "... p50" ms ${lists[latency-$epoch.p50]}
        result latency "... p99" ms ${lists[latency-$epoch.p99]}
        result latency "... p99 beyond the epoch" ms ${lists[latency-$epoch.beyond]}
        result latency "... most" ms ${lists[latency-$epoch.most]}
        result latency "... CPU, share of a core" % ${lists[latency-$epoch.cpu]}
    done
    backlog_topic
    measure_raw "raw, to bring the topic into memory" 1
    for ((i = 1; i <= runs; i++)); do
        for epoch in "${epochs[@]}"; do
            measure "backlog, epochs of $epoch, $i of $runs" -w 2 --epoch "$epoch"
            keep "epoch-$epoch"
            forget_job
        done
    done
    for epoch in "${epochs[@]}"; do
        report latency "epoch-$epoch" "backlog, epochs of $epoch"
    done
    ratio latency "throughput, epochs of 100ms / 1s" epoch-100ms.rate epoch-1s.rate
    ratio latency "CPU time, epochs of 100ms / 1s" epoch-100ms.cpu epoch-1s.cpu
}

# measure_latency EPOCH
measure_latency() {
    local gap_s=2 disorder_s=1 name=live-$1-$i rows p50 p99 most used
    export KAFKA_TOPIC=$name
    "$limits" live --rate "$live_rate" --seconds "$live_s" >/dev/null 2>"$work/produce.log" &
    producer=$!
    sleep 1
    run_job "$name" -w 2 --epoch "$1" --gap "${gap_s}s" --out-of-orderness "${disorder_s}s"
    wait_for_records 1
    watch_commits
    used=$(cpu_seconds "$job")
    wait "$producer" || die "the producer failed: $(tail -n 3 "$work/produce.log")"
    producer=
    used=$(calculate "100 * ($(cpu_seconds "$job") - $used) / ($live_s - 1)" 1)
    sleep 1
    end_job TERM
    end_poller
    # Without the first seconds and what closes only when nothing comes any more.
    read -r rows p50 p99 most < <(sql "
        with closed as (
            select session_end + interval '$disorder_s s' as at, xmin::text as xid from \"$name\"
        ), window_ as (
            select max(session_end) - interval '$((live_s - 10)) s' as low,
                   max(session_end) - interval '$((gap_s + disorder_s + 1)) s' as high
            from \"$name\"
        ), latency as (
            select extract(epoch from seen.at - closed.at) * 1000 as ms
            from closed join seen using (xid), window_ where closed.at between low and high
        )
        select count(*), round(percentile_cont(0.5) within group (order by ms)),
               round(percentile_cont(0.99) within group (order by ms)), round(max(ms))
        from latency" | tr '|' ' ')
    [[ $rows != 0 ]] || die "no session was measured"
    lists[latency-$1.rows]+=" $rows"
    lists[latency-$1.p50]+=" $p50"
    lists[latency-$1.p99]+=" $p99"
    lists[latency-$1.beyond]+=" $((p99 - epoch_ms[$1]))"
    lists[latency-$1.most]+=" $most"
    lists[latency-$1.cpu]+=" $used"
    say "epochs of $1, $i of $runs: $rows rows, p50 $p50 ms, p99 $p99 ms, most $most ms;" \
        "$used % of a core"
    forget_job
    drop_topic "$name"
}

# Notes for every transaction of the job when it was first seen.
watch_commits() {
    sql "drop table if exists seen;
        create unlogged table seen (xid text primary key, at timestamptz)" >/dev/null
    psql -qAtX "$psql_url" >/dev/null 2>&1 <<SQL &
set synchronous_commit = off;
do \$\$ begin
    loop
        insert into seen select distinct xmin::text, clock_timestamp()
            from sessionizer.shard_progress where job = '$KAFKA_GROUP' on conflict do nothing;
        commit;
        if not exists (select from sessionizer.jobs where job = '$KAFKA_GROUP') then return; end if;
        perform pg_sleep(0.005);
    end loop;
end \$\$
SQL
    poller=$!
}

# ---- start ---------------------------------------------------------------------------------

case_start() {
    local i used first=() idle=() resident=()
    export KAFKA_TOPIC=empty
    # A topic is made by whoever writes to it; it stays empty.
    fill --number 0
    for ((i = 1; i <= runs; i++)); do
        KAFKA_GROUP=start-$i
        clock first start_and_commit_first
        sleep 2
        used=$(cpu_seconds "$job")
        sleep 30
        idle+=("$(calculate "100 * ($(cpu_seconds "$job") - $used) / 30" 2)")
        resident+=("$(memory_now VmHWM)")
        end_job TERM
        forget_job
        say "start, $i of $runs: ${first[-1]} s, idle ${idle[-1]} % of a core, ${resident[-1]} MB"
    done
    drop_topic empty
    result start "start to the first commit" s "${first[@]}"
    result start "idle, share of a core" % "${idle[@]}"
    result start "peak memory" MB "${resident[@]}"
}

start_and_commit_first() {
    start_job
    wait_for_sql "select max(epoch) > 0 from sessionizer.shard_progress
        where job = '$KAFKA_GROUP'"
}
