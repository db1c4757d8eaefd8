# What a restart takes, and what it costs to be ready for one.
# A part of scripts/bench, and checked with it.

# ---- recovery ------------------------------------------------------------------------------

case_recovery() {
    export KAFKA_TOPIC=recovery
    # Twenty seconds of a site on which two million people are at once, one look each twenty
    # seconds: half of them have looked. Nobody's session ends for two hours.
    local backlog=1500000 i epoch open_sessions
    local -a start=(-w 2 --gap 2h)
    local -a worst=() killed=() killed_load=() again=() stopping=() restarted=() load=()
    fill --historical 1m --density 100000 --number "$backlog" --visitors 100000000

    say "killed right after the backlog was read: all of it is read again"
    for ((i = 1; i <= runs; i++)); do
        run_job "worst-$i" "${start[@]}"
        wait_for_records "$backlog"
        kill_and_start "${start[@]}"
        worst+=("$took")
        end_job KILL
    done

    run_job recovery "${start[@]}"
    wait_for_records "$backlog"
    # At the pace of a clock from here on. The same few come again and again, so that the number
    # of open sessions stays what it is.
    "$program" produce --rate 2000 --visitors 10000 >"$work/produce.log" 2>&1 &
    producer=$!
    say "a minute, so that every shard has been saved"
    sleep 65
    for ((i = 1; i <= runs; i++)); do
        kill_and_start "${start[@]}"
        killed+=("$took")
        killed_load+=("$(loading_seconds)")
        again+=("$(sed -n 's/.*: \([0-9,]*\) epochs* to read again.*/\1/p' "$job_log" | tr -d ,)")
        # A random part of the interval later.
        sleep "$((3 + RANDOM % 12))"
    done
    for ((i = 1; i <= runs; i++)); do
        clock stopping end_job TERM
        epoch=$(newest_epoch)
        clock restarted start_and_commit "$epoch" "${start[@]}"
        load+=("$(loading_seconds)")
        sleep 3
    done
    open_sessions=$(loaded_sessions)
    end_job KILL
    end_producer
    drop_topic recovery
    result recovery "open sessions" "" "$open_sessions"
    result recovery "kill -9 to the first commit" s "${killed[@]}"
    result recovery "... of it, loading the open sessions" s "${killed_load[@]}"
    result recovery "... epochs that were read again" "" "${again[@]}"
    result recovery "the same, $backlog records unsaved" s "${worst[@]}"
    result recovery "clean stop" s "${stopping[@]}"
    result recovery "start to the first commit" s "${restarted[@]}"
    result recovery "... of it, loading the open sessions" s "${load[@]}"
}

# Kills the job and starts it again at once; took is the time to the first commit.
kill_and_start() {
    local began=$EPOCHREALTIME epoch
    end_job KILL
    epoch=$(newest_epoch)
    start_and_commit "$epoch" "$@"
    took=$(since "$began")
}

# start_and_commit EPOCH OPTIONS...: until a later epoch is committed.
start_and_commit() {
    local epoch=$1
    shift
    start_job "$@"
    wait_for_sql "select max(epoch) > $epoch from sessionizer.shard_progress
        where job = '$KAFKA_GROUP'"
}

newest_epoch() {
    sql "select max(epoch) from sessionizer.shard_progress where job = '$KAFKA_GROUP'"
}

# How long it took, in the log of the last start.
loading_seconds() { sed -n 's/.* open sessions in \([0-9.]*\) s$/\1/p' "$job_log"; }

# How many were loaded, in the same line.
loaded_sessions() {
    sed -n 's/.* loaded \([0-9,]*\) open sessions in .*/\1/p' "$job_log" | tr -d ,
}

# ---- snapshots -----------------------------------------------------------------------------

case_snapshots() {
    export KAFKA_TOPIC=snapshots
    local backlog=4000000 i interval
    local intervals=(24h 60s 5s 2s)
    local -A rates=() cpus=() takens=()
    # As in `recovery`, with fewer people at once and more time: the sessions of a site that has
    # been running for some minutes.
    fill --historical 10m --density 25000 --number "$backlog" --visitors 100000000
    # The first round does not count: it brings the topic into memory.
    for ((i = 0; i <= runs; i++)); do
        for interval in "${intervals[@]}"; do
            measure_backlog "$interval" "$i" "$backlog"
            ((i)) || continue
            rates[$interval]+=" $rate"
            cpus[$interval]+=" $cpu"
            takens[$interval]+=" $taken"
        done
    done
    run_job last -w 2
    wait_for_records "$backlog"
    end_job TERM
    start_and_commit "$(newest_epoch)" -w 2
    result snapshots "open sessions at the end" "" "$(loaded_sessions)"
    end_job KILL
    drop_topic snapshots
    # shellcheck disable=SC2086 # words on purpose
    for interval in "${intervals[@]}"; do
        result snapshots "every $interval: throughput" "events/s" ${rates[$interval]}
        result snapshots "every $interval: CPU time" s ${cpus[$interval]}
        result snapshots "every $interval: snapshots of a shard" "" ${takens[$interval]}
    done
    # From the shortest interval, where they weigh most. In 60 s at full speed the job takes 60
    # times the CPU time of a second, and one snapshot of each of the 128 shards.
    local cost share
    # shellcheck disable=SC2086
    cost=$(awk -v with="$(median ${cpus[2s]})" -v without="$(median ${cpus[24h]})" \
        -v taken="$(median ${takens[2s]})" \
        'BEGIN { printf "%.3f", (with - without) / (taken / 128) }')
    # shellcheck disable=SC2086
    share=$(awk -v cost="$cost" -v rate="$(median ${rates[24h]})" -v backlog="$backlog" \
        -v cpu="$(median ${cpus[24h]})" \
        'BEGIN { printf "%.2f", 100 * cost / (60 * cpu / (backlog / rate)) }')
    result snapshots "CPU time of one of each shard" s "$cost"
    result snapshots "... share of all, every 60s" "%" "$share"
}

# measure_backlog INTERVAL NUMBER RECORDS: sets rate, cpu and taken.
measure_backlog() {
    local began name=every-$1-$2
    sql "select pg_stat_reset()" >/dev/null
    run_job "$name" -w 2 --snapshot-interval "$1"
    wait_for_sql "select max(epoch) > 0 from sessionizer.shard_progress where job = '$name'"
    began=$EPOCHREALTIME
    wait_for_records "$3"
    rate=$(awk -v n="$3" -v s="$(since "$began")" 'BEGIN { printf "%.0f", n / s }')
    cpu=$(cpu_seconds "$job")
    end_job TERM
    # Each snapshot replaces the one before, so the statistics tell how many there were; the stop
    # has saved every shard once more. A connection brings its numbers when it ends.
    sleep 0.5
    taken=$(($(sql "select n_tup_upd from pg_stat_user_tables
        where schemaname = 'sessionizer' and relname = 'snapshots'") - 128))
    sql "delete from sessionizer.jobs where job = '$name'; drop table \"$name\"" >/dev/null
    say "every $1: $rate events/s, $cpu s of CPU, $taken snapshots"
}

