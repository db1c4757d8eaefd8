# A flood of large records that are no events.
# A part of scripts/bench, and checked with it.

# ---- flood ---------------------------------------------------------------------------------

case_flood() {
    local i count=$((events < 500000 ? 1000 : events / 500)) budget=256 size=100000
    local held=() after=() waited=()
    export KAFKA_TOPIC=flood
    fill_with_letters "$count" "$size"
    measure_raw "raw, to bring the topic into memory" 1
    for ((i = 1; i <= runs; i++)); do
        measure_raw "raw, 1 consumer, $i of $runs" 1
        keep flood-raw
        measure "a flood, $i of $runs" -w 2 --memory "${budget}MiB"
        keep flood
        lists[flood.mb]+=" $(calculate "$rate * $size / 1e6" 1)"
        forget_job
        # Whole, or they would all fit.
        run_job "flood-$i" -w 2 --memory "${budget}MiB" --dead-letter-bytes "$size"
        wait_for_records 1
        lock_dead_letters
        sleep 20
        held+=("$(memory_now VmHWM)")
        waited+=("$(records_now)")
        unlock_dead_letters
        wait_for_records "$count"
        after+=("$(memory_now VmHWM)")
        end_job TERM
        forget_job
        say "locked, $i of $runs: ${held[-1]} MB at most, $(thousands "${waited[-1]}") of" \
            "$(thousands "$count") records written before; ${after[-1]} MB in the end"
    done
    drop_topic flood
    report flood flood "bad records of $((size / 1000)) kB"
    # shellcheck disable=SC2086 # words on purpose
    result flood "... megabytes read" MB/s ${lists[flood.mb]}
    ratio flood "... throughput / raw, consumers: 1" flood.rate flood-raw.rate
    result flood "locked: records written before" "" "${waited[@]}"
    result flood "locked: peak memory" MB "${held[@]}"
    result flood "... until all is written" MB "${after[@]}"
    lists[flood-held.rss]=${after[*]}
    lists[flood-budget.rss]=${after[*]//*/$(calculate "$budget * 1.048576" 1)}
    ratio flood "... peak memory / --memory" flood-held.rss flood-budget.rss
}

# fill_with_letters COUNT BYTES: records of capital letters.
fill_with_letters() {
    say "filling the topic $KAFKA_TOPIC"
    scripts/services kafka tool "$work/kafka" org.apache.kafka.tools.TopicCommand \
        --create --topic "$KAFKA_TOPIC" --partitions 4 >/dev/null
    scripts/services kafka tool "$work/kafka" org.apache.kafka.tools.ProducerPerformance \
        --topic "$KAFKA_TOPIC" --num-records "$1" --record-size "$2" --throughput -1 \
        >"$work/produce.log" 2>&1 || die "the producer failed: $(tail -n 3 "$work/produce.log")"
}

# Keeps dead letters from being written, until unlock_dead_letters.
lock_dead_letters() {
    psql -qAtX "$psql_url" >/dev/null 2>&1 \
        -c "begin; lock table sessionizer.dead_letters; select pg_sleep(3600)" &
    poller=$!
    wait_for_sql "select exists (select from pg_locks where granted
        and relation = 'sessionizer.dead_letters'::regclass and mode = 'AccessExclusiveLock')"
}

unlock_dead_letters() {
    sql "select pg_terminate_backend(pid) from pg_stat_activity
        where query like '%pg_sleep(3600)%' and pid <> pg_backend_pid()" >/dev/null
    wait "$poller" || true
    poller=
}
