# What was found, for people and as JSON.
# A part of scripts/bench, and checked with it.

results=()

# result CASE WHAT UNIT VALUE...
result() {
    local sorted
    mapfile -t sorted < <(printf '%s\n' "${@:4}" | sort -g)
    results+=("$1|$2|$3|$(median "${@:4}")|${sorted[0]}|${sorted[-1]}|$(IFS=, && echo "${*:4}")")
}

median() { printf '%s\n' "$@" | sort -g | sed -n "$((($# + 1) / 2))p"; }

# Whole numbers from 10,000 on get separators: nobody counts zeros.
thousands() {
    local number=$1
    if [[ $number =~ ^[0-9]{5,}$ ]]; then
        printf '%s' "$number" | sed -E ':a; s/([0-9])([0-9]{3})($|,)/\1,\2\3/; ta'
    else
        printf '%s' "$number"
    fi
}

print_results() {
    local row case what unit median least most
    printf '\n%s\n%s\n%s events, %s runs\n\n' \
        "$machine" "$versions" "$(thousands "$events")" "$runs"
    printf '%-10s %-46s %12s %12s %12s  %s\n' case measured median least most unit
    for row in "${results[@]}"; do
        IFS='|' read -r case what unit median least most _ <<<"$row"
        printf '%-10s %-46s %12s %12s %12s  %s\n' "$case" "$what" \
            "$(thousands "$median")" "$(thousands "$least")" "$(thousands "$most")" "$unit"
    done
}

write_json() {
    local row case what unit median least most values comma=
    printf '{"machine": "%s", "versions": "%s", "events": %d, "runs": %d, "results": [\n' \
        "$machine" "$versions" "$events" "$runs"
    for row in "${results[@]}"; do
        IFS='|' read -r case what unit median least most values <<<"$row"
        printf '%s  {"case": "%s", "measured": "%s", ' "$comma" "$case" "$what"
        printf '"unit": "%s", "median": %s, "least": %s, "most": %s, "values": [%s]}' \
            "$unit" "$median" "$least" "$most" "$values"
        comma=$',\n'
    done
    printf '\n]}\n'
}

describe_machine() {
    local model memory
    model=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)
    memory=$(awk '/^MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo)
    machine="$(nproc) cores, ${memory} GiB, ${model:-CPU unknown}, $(uname -sr)"
    machine+=", load before $(cut -d ' ' -f 1 /proc/loadavg)"
    versions="$("$program" --version), $(git describe --always --dirty 2>/dev/null || echo no git)"
    versions+=", $(rustc --version), Kafka $kafka_version"
    versions+=", PostgreSQL $(sql "show server_version")"
    say "$machine"
}
