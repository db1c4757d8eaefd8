# The limits of the machine, and how near the job comes.
# A part of scripts/bench, and checked with it.

# ---- raw -----------------------------------------------------------------------------------

case_raw() {
    local i consumers
    backlog_topic
    measure_raw "raw, to bring the topic into memory" 1
    for ((i = 1; i <= runs; i++)); do
        for consumers in 1 2; do
            measure_raw "raw, $consumers consumers, $i of $runs" "$consumers"
            keep "raw-$consumers"
        done
    done
    report_raw raw raw
    measure_copy
}

# measure_raw LABEL CONSUMERS: sets what measure does, without a table.
measure_raw() {
    local before began records
    before=$(kafka_seconds)
    began=$EPOCHREALTIME
    launch "$limits" raw --consumers "$2"
    await "$1"
    wall=$(since "$began")
    records=$(measured records)
    rate=$(calculate "$records / $(measured seconds)" 0)
    each=$(calculate "1e6 * $cpu / $records" 3)
    postgres_cpu=0
    kafka_cpu=$(calculate "$(kafka_seconds) - $before" 2)
    say "$1: $(thousands "$rate") events/s, $cpu s of CPU ($each µs an event)"
}

# measured NAME: of the line that a subcommand of limits prints.
measured() {
    awk -v name="$1" '{ for (i = 1; i < NF; i += 2) if ($i == name) print $(i + 1) }' "$work/out"
}

# report_raw CASE PREFIX
# shellcheck disable=SC2086 # words on purpose
report_raw() {
    local consumers
    for consumers in 1 2; do
        result "$1" "raw, consumers: $consumers" "events/s" ${lists[$2-$consumers.rate]}
        result "$1" "... CPU time" s ${lists[$2-$consumers.cpu]}
        result "$1" "... CPU time of an event" µs ${lists[$2-$consumers.each]}
        result "$1" "... CPU time of Kafka" s ${lists[$2-$consumers.kafka_cpu]}
    done
}

# The sessions of the backlog from a file into a table as the job makes it.
measure_copy() {
    local i began before rows seconds rates=() cpus=()
    measure "the job, for its table" -w 2
    sql "\\copy (select * from \"$KAFKA_GROUP\" order by session_end) to '$work/rows' binary"
    for ((i = 1; i <= runs; i++)); do
        sql "create table copied (like \"$KAFKA_GROUP\" including all)"
        before=$(postgres_seconds)
        began=$EPOCHREALTIME
        sql "\\copy copied from '$work/rows' binary"
        seconds=$(since "$began")
        rows=$(sql "select count(*) from copied")
        rates+=("$(calculate "$rows / $seconds" 0)")
        cpus+=("$(calculate "$(postgres_seconds) - $before" 2)")
        say "COPY of $(thousands "$rows") sessions, $i of $runs: $seconds s"
        sql "drop table copied; checkpoint"
    done
    rm "$work/rows"
    forget_job
    result raw "COPY of the sessions, in one go" "rows/s" "${rates[@]}"
    result raw "... rows" "" "$rows"
    result raw "... CPU time of PostgreSQL" s "${cpus[@]}"
}

# ---- backlog -------------------------------------------------------------------------------

case_backlog() {
    local i workers consumers
    backlog_topic
    measure_raw "raw, to bring the topic into memory" 1
    for ((i = 1; i <= runs; i++)); do
        for workers in 1 2; do
            measure_raw "raw, $workers consumers, $i of $runs" "$workers"
            keep "beside-$workers"
            measure "-w $workers, $i of $runs" -w "$workers"
            keep "backlog-$workers"
            forget_job
        done
    done
    report_raw backlog beside
    for workers in 1 2; do
        report backlog "backlog-$workers" "-w $workers"
        for consumers in 1 2; do
            ratio backlog "-w $workers: throughput / raw, consumers: $consumers" \
                "backlog-$workers.rate" "beside-$consumers.rate"
            ratio backlog "... CPU time / raw" "backlog-$workers.cpu" "beside-$consumers.cpu"
        done
    done
    ratio backlog "-w 2: throughput / -w 1" backlog-2.rate backlog-1.rate
}

# ---- cluster -------------------------------------------------------------------------------

# What it costs that two workers are two processes: all that goes between them is serialised; and,
# with a secret, encrypted.
case_cluster() {
    local i
    backlog_topic
    write_hosts 2 "$(free_ports 2)" >"$work/hosts"
    (umask 077 && head -c 32 /dev/urandom | base64 >"$work/cluster-secret")
    measure_raw "raw, to bring the topic into memory" 1
    for ((i = 1; i <= runs; i++)); do
        measure "one process of two workers, $i of $runs" -w 2
        keep cluster-1x2
        forget_job
        runner=(scripts/bench.d/together 2 "$work/hosts" "$program")
        measure "two processes of one worker, $i of $runs" -w 1
        runner=("$program")
        keep cluster-2x1
        forget_job
        runner=(env "SESSIONIZER_CLUSTER_SECRET_FILE=$work/cluster-secret"
            scripts/bench.d/together 2 "$work/hosts" "$program")
        measure "two processes of one worker, encrypted, $i of $runs" -w 1
        runner=("$program")
        keep cluster-2x1-encrypted
        forget_job
    done
    # shellcheck disable=SC2046,SC2086 # words on purpose
    for i in 1x2 2x1 2x1-encrypted; do
        result cluster "$i: throughput" "events/s" ${lists[cluster-$i.rate]}
        result cluster "$i: events per CPU-second" "" $(quotients "1e6" "${lists[cluster-$i.each]}" 0)
    done
    ratio cluster "two processes: throughput / one" cluster-2x1.rate cluster-1x2.rate
    ratio cluster "... CPU time / one" cluster-2x1.cpu cluster-1x2.cpu
    ratio cluster "encrypted: throughput / not" cluster-2x1-encrypted.rate cluster-2x1.rate
    ratio cluster "... CPU time / not" cluster-2x1-encrypted.cpu cluster-2x1.cpu
}

# ---- scaling -------------------------------------------------------------------------------

case_scaling() {
    local i workers
    for ((i = 1; i <= runs; i++)); do
        for workers in 1 2; do
            launch "$limits" compute -w "$workers" --events "$events"
            await "-w $workers, $i of $runs"
            # Making the events is not what is measured.
            cpu=$(measured cpu)
            rate=$(calculate "$events / $(measured seconds)" 0)
            each=$(calculate "1e6 * $cpu / $events" 3)
            lists[scaling-$workers.rate]+=" $rate"
            lists[scaling-$workers.each]+=" $each"
            say "-w $workers, $i of $runs: $(thousands "$rate") events/s, $each µs an event"
        done
    done
    # shellcheck disable=SC2086 # words on purpose
    for workers in 1 2; do
        result scaling "-w $workers: throughput" "events/s" ${lists[scaling-$workers.rate]}
        result scaling "-w $workers: CPU time of an event" µs ${lists[scaling-$workers.each]}
    done
    ratio scaling "-w 2: throughput / -w 1" scaling-2.rate scaling-1.rate
}
