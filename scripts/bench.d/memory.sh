# What memory is used for, and what happens when nothing flows.
# A part of scripts/bench, and checked with it.

# ---- memory --------------------------------------------------------------------------------

# The dataflow alone, so that what Kafka's client holds is not mistaken for sessions; then the
# whole job with a million, which saves them as well.
case_memory() {
    local i sessions count=3 empty=0
    # The first is what there is without any.
    local -a open=(1000 100000 1000000 10000000)
    ((runs > count)) || count=$runs
    for ((i = 1; i <= count; i++)); do
        for sessions in "${open[@]}"; do
            launch "$limits" memory --sessions "$sessions"
            await "$(thousands "$sessions") open sessions, $i of $count"
            lists[memory-$sessions.rss]+=" $(calculate "$(measured rss_kib) * 1024 / 1e6" 1)"
            ((sessions > 1000)) || empty=$(measured rss_kib)
            lists[memory-$sessions.each]+=" $(calculate \
                "($(measured rss_kib) - $empty) * 1024 / $sessions" 1)"
            say "$(thousands "$sessions") open sessions: $(measured rss_kib) KiB"
        done
    done
    # shellcheck disable=SC2086 # words on purpose
    for sessions in "${open[@]}"; do
        result memory "$(thousands "$sessions") open sessions: resident" MB \
            ${lists[memory-$sessions.rss]}
        ((sessions == 1000)) ||
            result memory "... growth a session" bytes ${lists[memory-$sessions.each]}
    done
    memory_of_the_job
}

memory_of_the_job() {
    local i before resident=() peaks=() each=() open_sessions
    local -a start=(-w 2 --gap 2h --snapshot-interval 10s)
    export KAFKA_TOPIC=memory
    # Two million people at once, one look each twenty seconds: half of them have looked.
    fill --historical 1m --density 100000 --number 1500000 --visitors 100000000
    for ((i = 1; i <= runs; i++)); do
        run_job "memory-$i" "${start[@]}"
        wait_for_records 1500000
        # Every shard is saved once or twice.
        sleep 15
        resident+=("$(memory_now VmRSS)")
        peaks+=("$(memory_now VmHWM)")
        end_job TERM
        start_and_commit "$(newest_epoch)" "${start[@]}"
        open_sessions=$(loaded_sessions)
        end_job KILL
        forget_job
        say "the job with $(thousands "$open_sessions") open sessions, $i of $runs:" \
            "${resident[-1]} MB, at most ${peaks[-1]} MB"
    done
    drop_topic memory
    result memory "the whole job, open sessions" "" "$open_sessions"
    result memory "... resident" MB "${resident[@]}"
    result memory "... at most" MB "${peaks[@]}"
}

# ---- flow ----------------------------------------------------------------------------------

# PostgreSQL goes away in the middle of a backlog, and comes back after a minute.
case_flow() {
    local i began epoch records count=$((events < 1000000 ? 4000000 : events * 4))
    local before=() during=() back=() rates=() rates_before=() cpus=() away_cpu
    # Long enough not to be over before; what is read and not yet committed is a part of it.
    export KAFKA_TOPIC=flow
    fill "${ordinary[@]}" --number "$count"
    for ((i = 1; i <= runs; i++)); do
        KAFKA_GROUP=flow-$i
        run_job "$KAFKA_GROUP" -w 2
        wait_for_records "$((count / 40))"
        began=$EPOCHREALTIME
        records=$(records_now)
        wait_for_records "$((count / 4))"
        rates_before+=("$(calculate "($(records_now) - $records) / $(since "$began")" 0)")
        before+=("$(memory_now VmHWM)")
        scripts/services postgres stop "$work/postgres"
        away_cpu=$(cpu_seconds "$job")
        sleep 60
        cpus+=("$(calculate "$(cpu_seconds "$job") - $away_cpu" 2)")
        during+=("$(memory_now VmHWM)")
        scripts/services postgres start "$work/postgres" >/dev/null
        began=$EPOCHREALTIME
        epoch=$(newest_epoch)
        wait_for_sql "select max(epoch) > $epoch from sessionizer.shard_progress
            where job = '$KAFKA_GROUP'"
        back+=("$(since "$began")")
        began=$EPOCHREALTIME
        records=$(records_now)
        wait_for_records "$((count / 8 * 7))"
        rates+=("$(calculate "($(records_now) - $records) / $(since "$began")" 0)")
        end_job TERM
        forget_job
        say "away for a minute, $i of $runs: ${before[-1]} MB before, ${during[-1]} MB at most;" \
            "${back[-1]} s to the first commit, $(thousands "${rates_before[-1]}") events/s" \
            "before and $(thousands "${rates[-1]}") after"
    done
    drop_topic flow
    result flow "peak memory before PostgreSQL stops" MB "${before[@]}"
    result flow "... at the end of the minute" MB "${during[@]}"
    result flow "CPU time in the minute" s "${cpus[@]}"
    result flow "PostgreSQL is back: to the first commit" s "${back[@]}"
    result flow "throughput before" "events/s" "${rates_before[@]}"
    result flow "throughput after" "events/s" "${rates[@]}"
    lists[flow-before.rate]=${rates_before[*]}
    lists[flow-after.rate]=${rates[*]}
    ratio flow "... after / before" flow-after.rate flow-before.rate
}

records_now() {
    sql "select coalesce(max(records), 0) from sessionizer.balance where job = '$KAFKA_GROUP'"
}
