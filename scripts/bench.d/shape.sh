# What the shape of the traffic changes.
# A part of scripts/bench, and checked with it.

# ---- flat ----------------------------------------------------------------------------------

case_flat() {
    local i count visitors partitions workers name
    local -a counts=(100000 1000000)
    local -a crowds=(1000 50000 1000000 10000000)
    # A trial has fewer events than that, and need not have one number twice.
    for count in "$((events * 2))" "$((events * 4))"; do
        [[ " ${counts[*]} " == *" $count "* ]] || counts+=("$count")
    done
    # One dimension after the other, so that the topics need not all be there at once. A turn goes
    # once along a dimension.
    for count in "${counts[@]}"; do
        KAFKA_TOPIC=count-$count fill "${ordinary[@]}" --number "$count"
    done
    for ((i = 1; i <= runs; i++)); do
        for count in "${counts[@]}"; do
            KAFKA_TOPIC=count-$count flat "count-$count" "$(thousands "$count") events" -w 2
        done
    done
    for count in "${counts[@]}"; do
        drop_topic "count-$count"
        flat_result "count-$count" "$(thousands "$count") events"
    done
    for visitors in "${crowds[@]}"; do
        KAFKA_TOPIC=visitors-$visitors \
            fill "${ordinary[@]}" --number "$events" --visitors "$visitors"
    done
    for ((i = 1; i <= runs; i++)); do
        for visitors in "${crowds[@]}"; do
            KAFKA_TOPIC=visitors-$visitors \
                flat "visitors-$visitors" "$(thousands "$visitors") visitors" -w 2
        done
    done
    for visitors in "${crowds[@]}"; do
        drop_topic "visitors-$visitors"
        flat_result "visitors-$visitors" "$(thousands "$visitors") visitors"
    done
    for partitions in 1 4 64; do
        KAFKA_TOPIC=partitions-$partitions \
            fill "${ordinary[@]}" --number "$events" --partitions "$partitions"
    done
    for ((i = 1; i <= runs; i++)); do
        for partitions in 1 4 64; do
            KAFKA_TOPIC=partitions-$partitions \
                flat "partitions-$partitions" "$partitions partitions" -w 2
        done
    done
    for partitions in 1 4 64; do
        drop_topic "partitions-$partitions"
        flat_result "partitions-$partitions" "partitions: $partitions"
    done
    backlog_topic
    for ((i = 1; i <= runs; i++)); do
        for workers in 1 2 8; do
            flat "workers-$workers" "$workers workers" -w "$workers"
        done
    done
    for workers in 1 2 8; do
        flat_result "workers-$workers" "workers: $workers"
    done
}

# flat LIST LABEL OPTIONS...
flat() {
    export KAFKA_TOPIC
    measure "$2, $i of $runs" "${@:3}"
    keep "flat-$1"
    forget_job
}

# flat_result LIST NAME
# shellcheck disable=SC2086 # words on purpose
flat_result() {
    result flat "$2: CPU time of an event" µs ${lists[flat-$1.each]}
    result flat "... throughput" "events/s" ${lists[flat-$1.rate]}
    result flat "... peak memory" MB ${lists[flat-$1.rss]}
}

# ---- hot key and late ----------------------------------------------------------------------

case_hot_key() {
    local i hot
    for hot in 0 0.5; do
        KAFKA_TOPIC=hot-$hot fill "${ordinary[@]}" --number "$events" --hot "$hot"
    done
    for ((i = 1; i <= runs; i++)); do
        for hot in 0 0.5; do
            export KAFKA_TOPIC=hot-$hot
            measure "hot: $hot, $i of $runs" -w 2
            keep "hot-$hot"
            forget_job
        done
    done
    for hot in 0 0.5; do
        drop_topic "hot-$hot"
        report hot-key "hot-$hot" "share of one visitor: $hot"
    done
    ratio hot-key "half from one visitor: CPU time / even" hot-0.5.cpu hot-0.cpu
    ratio hot-key "... throughput / even" hot-0.5.rate hot-0.rate
}

case_late() {
    local i late shares=(0 0.001 0.01 0.1)
    for late in "${shares[@]}"; do
        KAFKA_TOPIC=late-$late fill "${ordinary[@]}" --number "$events" --late "$late"
    done
    for ((i = 1; i <= runs; i++)); do
        for late in "${shares[@]}"; do
            export KAFKA_TOPIC=late-$late
            measure "late: $late, $i of $runs" -w 2
            keep "late-$late"
            forget_job
        done
    done
    for late in "${shares[@]}"; do
        drop_topic "late-$late"
        report late "late-$late" "share of stragglers: $late"
        [[ $late == 0 ]] ||
            ratio late "$late stragglers: CPU time / none" "late-$late.cpu" late-0.cpu
        [[ $late == 0 ]] ||
            ratio late "$late stragglers: throughput / none" "late-$late.rate" late-0.rate
    done
}

# ---- skew ----------------------------------------------------------------------------------

# Two topics of one job: three partitions, and one that is an hour of event time behind. They are
# 5,000 seconds long however many events there are, so an hour is worth many sessions: more than
# --drift-sessions allows if there are 20 million events, fewer if there are 5.
case_skew() {
    local i name rate=$((events / 20000)) # A quarter of the events a second.
    local -a skewed=("${ordinary[@]}" --visitors "$((events / 20))")
    local -a others=(--density "$((3 * rate))" --partitions 3 --number "$((events * 3 / 4))" --seed 1)
    local -a one=(--density "$rate" --partitions 1 --number "$((events / 4))" --seed 2)
    local -a names=(even default)
    local -A options=([even]="" [default]="" [off]="") topics=([even]=rest,even)
    if grep -q -e '--max-drift' <("$program" --help); then
        # As good as without: the longest that it takes.
        options[off]="--max-drift 366d"
        names+=(off)
    else
        say "this version has no --max-drift: nothing pauses what is far ahead"
    fi
    topics[default]=rest,behind
    topics[off]=rest,behind
    KAFKA_TOPIC=rest fill "${skewed[@]}" --historical 2024-05-01T12:00:00Z "${others[@]}"
    KAFKA_TOPIC=even fill "${skewed[@]}" --historical 2024-05-01T12:00:00Z "${one[@]}"
    KAFKA_TOPIC=behind fill "${skewed[@]}" --historical 2024-05-01T11:00:00Z "${one[@]}"
    for ((i = 1; i <= runs; i++)); do
        for name in "${names[@]}"; do
            export KAFKA_TOPIC=${topics[$name]}
            # shellcheck disable=SC2086 # words on purpose
            measure "skew, $name, $i of $runs" -w 2 ${options[$name]}
            keep "skew-$name"
            forget_job
        done
    done
    report skew skew-even "no skew"
    report skew skew-default "an hour behind"
    ratio skew "an hour behind: peak memory / no skew" skew-default.rss skew-even.rss
    ratio skew "... throughput / no skew" skew-default.rate skew-even.rate
    if [[ ${options[off]} ]]; then
        report skew skew-off "an hour behind, nothing paused"
        ratio skew "nothing paused: peak memory / no skew" skew-off.rss skew-even.rss
        ratio skew "... throughput / no skew" skew-off.rate skew-even.rate
    fi
    for name in rest even behind; do
        drop_topic "$name"
    done
}
