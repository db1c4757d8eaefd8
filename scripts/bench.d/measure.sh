# How a process is run and what is counted meanwhile.
# A part of scripts/bench, and checked with it.

limits=${CARGO_TARGET_DIR:-target}/release/examples/limits

job=
producer=
poller=
job_log=

# ---- processes -----------------------------------------------------------------------------

# launch COMMAND...: starts it in the background, counted; job is its process id.
launch() {
    job_log=$work/job.log
    rm -f "$work/pid" "$work/times"
    # Its only child is the command, so what the children of this shell have used is what the
    # command has, all threads and children included.
    (
        trap '' INT
        "$@" >"$work/out" 2>"$job_log" &
        echo "$!" >"$work/pid.new"
        mv "$work/pid.new" "$work/pid"
        status=0
        { wait "$!" || status=$?; } 2>/dev/null
        times >"$work/times"
        exit "$status"
    ) &
    launched=$!
    until [[ -e $work/pid ]]; do
        sleep 0.002
    done
    job=$(<"$work/pid")
    peak=0
}

# await LABEL: until the process that was launched has ended, which it has to do in good order.
# Sets rss, in MB, and cpu.
await() {
    local status=0 began=$SECONDS shown=0
    while kill -0 "$launched" 2>/dev/null; do
        look_at_memory
        if [[ -t 2 ]] && ((SECONDS > shown)); then
            shown=$SECONDS
            printf '\r\033[K%s: %d s, %d MB' "$1" "$((SECONDS - began))" "$((peak / 1000))" >&2
        fi
        read -rt 0.05 <> <(:) || true
    done
    [[ ! -t 2 ]] || printf '\r\033[K' >&2
    wait "$launched" || status=$?
    job=
    ((status == 0)) || die "$1 failed ($status): $(tail -n 3 "$job_log")"
    rss=$((peak / 1000))
    cpu=$(awk 'NR == 2 { for (i = 1; i <= 2; i++) {
        split($i, t, /[ms]/); sum += 60 * t[1] + t[2] } printf "%.2f", sum }' "$work/times")
}

# The kernel keeps the peak, so looking now and then is enough. In bytes / 1000.
look_at_memory() {
    local name value
    while read -r name value _; do
        if [[ $name == VmHWM: ]]; then
            peak=$((value * 1024 / 1000))
            break
        fi
    done 2>/dev/null <"/proc/$job/status" || true
}

# run_job NAME OPTIONS...: another job, with a table of that name.
run_job() {
    KAFKA_GROUP=$1
    shift
    start_job "$@"
}

start_job() {
    job_log=$work/job.log
    "$program" --table "$KAFKA_GROUP" "$@" 2>"$job_log" &
    job=$!
}

# end_job SIGNAL
end_job() {
    kill "-$1" "$job"
    wait "$job" 2>/dev/null || [[ $1 == KILL ]] ||
        die "the job failed: $(tail -n 3 "$job_log")"
    job=
}

end_producer() {
    kill -TERM "$producer"
    wait "$producer" || die "the producer failed: $(tail -n 3 "$work/produce.log")"
    producer=
}

# ---- a whole backlog -----------------------------------------------------------------------

# measure LABEL OPTIONS...: a new job reads the topic to its end. Sets, of the job, wall (s), rate
# (events/s from the first commit to the last), cpu (s), each (µs of CPU an event), rss (MB), and
# postgres_cpu and kafka_cpu (s).
measure() {
    local label=$1 before began records
    shift
    KAFKA_GROUP=job-$((jobs_run++))
    before="$(postgres_seconds) $(kafka_seconds)"
    sql "drop table if exists first; create unlogged table first as
        select clock_timestamp() as at, 0::bigint as records limit 0" >/dev/null
    watch_first_commit
    began=$EPOCHREALTIME
    launch "${runner[@]}" --table "$KAFKA_GROUP" --until-end "$@"
    await "$label"
    wall=$(since "$began")
    end_poller
    read -r records seconds read_before < <(sql "select b.records,
            extract(epoch from max(pg_xact_commit_timestamp(p.xmin)) - max(f.at)), max(f.records)
        from sessionizer.balance b join sessionizer.shard_progress p using (job), first f
        where b.job = '$KAFKA_GROUP' group by 1" | tr '|' ' ')
    # All were there at the first commit: a trial with few events.
    ((records > read_before)) || { seconds=$wall && read_before=0; }
    rate=$(calculate "($records - $read_before) / $seconds" 0)
    each=$(calculate "1e6 * $cpu / $records" 3)
    read -r postgres_cpu kafka_cpu < <(echo "$before $(postgres_seconds) $(kafka_seconds)" |
        awk '{ printf "%.2f %.2f\n", $3 - $1, $4 - $2 }')
    say "$label: $(thousands "$rate") events/s, $cpu s of CPU ($each µs an event), $rss MB;" \
        "$wall s in all, PostgreSQL $postgres_cpu s, Kafka $kafka_cpu s"
}

jobs_run=0
# What runs the job.
runner=("$program")

# Keeps when the first commit was seen, and how many records were in it.
watch_first_commit() {
    psql -qAtX "$psql_url" >/dev/null 2>&1 <<SQL &
do \$\$ begin
    for i in 1..60000 loop
        if to_regclass('sessionizer.balance') is not null then
            execute 'insert into first select clock_timestamp(), records
                from sessionizer.balance where records > 0 and job = ''$KAFKA_GROUP''';
            commit;
            if exists (select from first) then return; end if;
        end if;
        perform pg_sleep(0.01);
        commit;
    end loop;
end \$\$
SQL
    poller=$!
}

end_poller() {
    kill "$poller" 2>/dev/null || true
    wait "$poller" 2>/dev/null || true
    poller=
}

# Forgets the last job and its table; many of them would slow the database down.
forget_job() {
    sql "delete from sessionizer.jobs where job = '$KAFKA_GROUP';
        drop table if exists \"$KAFKA_GROUP\"" >/dev/null
}

# keep PREFIX: puts what measure found into the lists of that name, for report.
keep() {
    local what
    for what in rate cpu each rss wall postgres_cpu kafka_cpu; do
        lists[$1.$what]+=" ${!what}"
    done
}

declare -A lists=()

# report CASE PREFIX NAME: the results of those lists.
# shellcheck disable=SC2086 # words on purpose
report() {
    result "$1" "$3: throughput" "events/s" ${lists[$2.rate]}
    result "$1" "$3: CPU time" s ${lists[$2.cpu]}
    result "$1" "$3: CPU time of an event" µs ${lists[$2.each]}
    result "$1" "$3: events per CPU-second" "" $(quotients "1e6" "${lists[$2.each]}" 0)
    result "$1" "$3: peak memory" MB ${lists[$2.rss]}
    result "$1" "$3: from start to end" s ${lists[$2.wall]}
    result "$1" "$3: CPU time of PostgreSQL" s ${lists[$2.postgres_cpu]}
    result "$1" "$3: CPU time of Kafka" s ${lists[$2.kafka_cpu]}
}

# ratio CASE WHAT A B: of two lists, turn by turn.
# shellcheck disable=SC2086 # words on purpose
ratio() {
    result "$1" "$2" "×" $(quotients "${lists[$3]}" "${lists[$4]}" 3)
}

# quotients LIST LIST DECIMALS: one by one; a single dividend serves for all.
quotients() {
    awk -v a="$1" -v b="$2" -v decimals="$3" 'BEGIN {
        many = split(a, x, " "); n = split(b, y, " ")
        if (many != 1 && many != n) { print many " turns and " n >"/dev/stderr"; exit 1 }
        for (i = 1; i <= n; i++) printf "%.*f ", decimals, x[many == 1 ? 1 : i] / y[i]
    }'
}

# ---- topics --------------------------------------------------------------------------------

# fill OPTION VALUE...: writes the topic KAFKA_TOPIC, of four partitions unless said otherwise; of
# an option that is there twice, the last counts.
fill() {
    local -A last=([--partitions]=4)
    local -a options=()
    local name
    while (($#)); do
        last[$1]=$2
        shift 2
    done
    for name in "${!last[@]}"; do
        options+=("$name" "${last[$name]}")
    done
    say "filling the topic $KAFKA_TOPIC"
    "$program" produce "${options[@]}" 2>"$work/produce.log" ||
        die "the producer failed: $(tail -n 3 "$work/produce.log")"
}

# What most cases read: a site with 100 events a second, 50,000 visitors, eight events a visit, up
# to ten seconds out of order; about 360 bytes an event. No unusual ways to write an event: Flink's
# JSON format does not know them all.
ordinary=(--historical 300d --density 100 --visitors 50000 --disorder 10s --odd 0)

# backlog_topic: KAFKA_TOPIC is the ordinary backlog, filled once.
backlog_topic() {
    export KAFKA_TOPIC=backlog
    [[ ${backlog_filled:-} ]] || fill "${ordinary[@]}" --number "$events"
    backlog_filled=yes
}

drop_topic() {
    scripts/services kafka tool "$work/kafka" org.apache.kafka.tools.TopicCommand \
        --delete --topic "$1" >/dev/null
}

# ---- clocks and counters -------------------------------------------------------------------

sql() {
    PGOPTIONS="-c client_min_messages=warning" psql -qAtX -v ON_ERROR_STOP=1 "$psql_url" -c "$1"
}

# Waits within the server until a query gives true: no client is started again and again.
wait_for_sql() {
    sql "do \$\$ declare holds boolean; begin
        for i in 1..24000 loop
            if to_regclass('sessionizer.balance') is not null then
                execute \$q\$ $1 \$q\$ into holds;
                if holds then return; end if;
            end if;
            perform pg_sleep(0.005);
            commit; -- Else it would not learn of a table that is made meanwhile.
        end loop;
        raise exception 'it never happened';
    end \$\$" || die "the job does not get on: $(tail -n 3 "$job_log")"
}

wait_for_records() {
    wait_for_sql "select records >= $1 from sessionizer.balance where job = '$KAFKA_GROUP'"
}

# Seconds since a moment of EPOCHREALTIME.
since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.3f", b - a }'; }

# clock LIST COMMAND...: adds the seconds it takes to the list.
clock() {
    local -n list=$1
    local began=$EPOCHREALTIME
    shift
    "$@"
    list+=("$(since "$began")")
}

# What a process has used so far, in all its threads.
cpu_seconds() {
    awk -v hz="$(getconf CLK_TCK)" \
        '{ sub(/.*\) /, ""); printf "%.2f", ($12 + $13) / hz }' "/proc/$1/stat"
}

kafka_seconds() { cpu_seconds "$(<"$work/kafka/pid")"; }

# The server, the processes it has, and those that have ended.
postgres_seconds() {
    local server
    server=$(head -n 1 "$work/postgres/data/postmaster.pid")
    # Others may end between their being listed and being read.
    { cat /proc/[0-9]*/stat 2>/dev/null || true; } |
        awk -v server="$server" -v hz="$(getconf CLK_TCK)" '
        { pid = $1; sub(/.*\) /, "") }
        pid == server { sum += $12 + $13 + $14 + $15 }
        $2 == server { sum += $12 + $13 }
        END { printf "%.2f", sum / hz }'
}

# memory_now NAME: a line of the job's status, VmRSS or VmHWM, in MB.
memory_now() {
    awk -v name="$1:" '$1 == name { printf "%.1f", $2 * 1024 / 1e6 }' "/proc/$job/status"
}

# calculate EXPRESSION DECIMALS
calculate() { awk "BEGIN { printf \"%.*f\", $2, $1 }"; }
