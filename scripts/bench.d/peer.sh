# The same job on Apache Flink, in turn with this one.
# A part of scripts/bench, and checked with it.

# shellcheck source=../lib/flink.sh
source scripts/lib/flink.sh

# The heap has its size from the start, as Flink's own start scripts have it, or grows to it.
flink_heap=()

case_peer() {
    local i way
    need_peer
    backlog_topic
    measure_raw "raw, to bring the topic into memory" 1
    for ((i = 1; i <= runs; i++)); do
        for way in sql stream; do
            flink_heap=(-Xms4g -Xmx4g)
            measure_peer "Flink, $way, $i of $runs" "$way"
            keep_peer "$way"
            # The other way to be fair: what it takes when it is not given everything at once.
            flink_heap=(-Xms64m -Xmx4g)
            measure_peer "Flink, $way, a heap that grows, $i of $runs" "$way"
            keep_peer "$way-grows"
        done
        measure "sessionizer, $i of $runs" -w 2
        reads=$(reads_after "$KAFKA_GROUP" "$wall")
        keep_peer ours
        lists[peer-ours.rows]+=" $(rate_of_rows "$KAFKA_GROUP")"
        ((i > 1)) || compare_tables
        sql "drop table peer_sql, peer_stream"
        forget_job
    done
    report_peer "Flink, Table API" sql
    report_peer "Flink, Table API, a heap that grows" sql-grows
    report_peer "Flink, DataStream API" stream
    report_peer "Flink, DataStream API, a heap that grows" stream-grows
    report_peer "sessionizer -w 2" ours
    for way in sql sql-grows stream stream-grows; do
        # From the first row to the last, all events counted: the rule that is known for both.
        ratio peer "sessionizer / $way: throughput" peer-ours.rows "peer-$way.rate"
        ratio peer "... less what ours read before its first commit" peer-ours.rate \
            "peer-$way.rate"
        ratio peer "... from start to end" "peer-$way.wall" peer-ours.wall
        ratio peer "... events per CPU-second" "peer-$way.each" peer-ours.each
        ratio peer "... peak memory" peer-ours.rss "peer-$way.rss"
    done
}

# keep_peer WAY: what was measured, and when it began to write.
keep_peer() {
    keep "peer-$1"
    lists[peer-$1.reads]+=" $reads"
}

# report_peer NAME WAY
# shellcheck disable=SC2086 # words on purpose
report_peer() {
    report peer "peer-$2" "$1"
    result peer "$1: from start to the first row" s ${lists[peer-$2.reads]}
}

# rate_of_rows TABLE: all events over the seconds from the first row to the last.
rate_of_rows() {
    sql "select round(sum(num_logs) / extract(epoch from max(pg_xact_commit_timestamp(xmin))
        - min(pg_xact_commit_timestamp(xmin)))) from \"$1\""
}

# measure_peer LABEL WAY: as measure, for one of the two.
measure_peer() {
    local table=peer_$2 before began rows events_in
    # As the job makes its own, but without a time zone: that is what Flink's sink can write.
    sql "drop table if exists $table; create table $table (ip text collate \"C\",
        host text collate \"C\", session_start timestamp(3), session_end timestamp(3),
        num_logs bigint, primary key (ip, host, session_start))" 2>/dev/null
    rm -rf "$work/checkpoints"
    before="$(postgres_seconds) $(kafka_seconds)"
    began=$EPOCHREALTIME
    launch env PEER_TABLE="$table" PEER_CHECKPOINTS="$work/checkpoints" \
        POSTGRES_URL="$POSTGRES_URL" \
        "$java" "${flink_heap[@]}" "${flink_options[@]}" \
        -cp "$peer_jars/peer.jar:$peer_jars/lib/*" \
        sessionizer.peer.Peer "$2"
    await "$1"
    wall=$(since "$began")
    # Of all its events: how many came before the first row nobody knows, and it favours Flink.
    read -r rows events_in seconds < <(sql "select count(*), sum(num_logs),
            extract(epoch from max(pg_xact_commit_timestamp(xmin))
                - min(pg_xact_commit_timestamp(xmin)))
        from $table" | tr '|' ' ')
    ((rows)) || die "$1: no session came: $(tail -n 3 "$job_log")"
    reads=$(reads_after "$table" "$wall")
    rate=$(calculate "$events_in / ($seconds > 0 ? $seconds : $wall)" 0)
    each=$(calculate "1e6 * $cpu / $events_in" 3)
    read -r postgres_cpu kafka_cpu < <(echo "$before $(postgres_seconds) $(kafka_seconds)" |
        awk '{ printf "%.2f %.2f\n", $3 - $1, $4 - $2 }')
    say "$1: $(thousands "$rate") events/s, $cpu s of CPU ($each µs an event), $rss MB;" \
        "$wall s in all, $reads s to the first row"
}

# reads_after TABLE WALL: seconds from the start to the first row, of a process that has just ended.
reads_after() {
    sql "select round(extract(epoch from min(pg_xact_commit_timestamp(xmin))
        - (clock_timestamp() - interval '$2 s'))::numeric, 2) from \"$1\""
}

# All three must have found the same, else nothing is comparable.
compare_tables() {
    local ours other differing
    ours="select ip, host, session_start at time zone 'UTC' as session_start,
        session_end at time zone 'UTC' as session_end, num_logs from \"$KAFKA_GROUP\""
    for other in peer_sql peer_stream; do
        differing=$(sql "with ours as ($ours)
            select (select count(*) from (table ours except all table $other) a)
                 + (select count(*) from (table $other except all table ours) b)")
        say "$other: $differing rows differ from ours"
        result peer "$other: rows that differ from ours" "" "$differing"
    done
}
