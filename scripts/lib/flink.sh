# Builds the Flink jobs of bench/flink with Maven, runs them live, and drains them. Sourced after
# setup.sh and ports.sh, and checked together with its callers. A caller that starts a live job must
# set work, KAFKA_* and POSTGRES_URL.

# The JVM options of Flink's own start scripts: the collector, and access for its serializers.
# shellcheck disable=SC2034 # for whoever sources this
flink_options=(
    -XX:+UseG1GC
    --add-opens=java.base/java.lang=ALL-UNNAMED
    --add-opens=java.base/java.lang.reflect=ALL-UNNAMED
    --add-opens=java.base/java.net=ALL-UNNAMED
    --add-opens=java.base/java.nio=ALL-UNNAMED
    --add-opens=java.base/java.text=ALL-UNNAMED
    --add-opens=java.base/java.time=ALL-UNNAMED
    --add-opens=java.base/java.util=ALL-UNNAMED
    --add-opens=java.base/java.util.concurrent=ALL-UNNAMED
    --add-opens=java.base/java.util.concurrent.atomic=ALL-UNNAMED
    --add-opens=java.base/java.util.concurrent.locks=ALL-UNNAMED
)

# Builds the two jobs with Maven, into the cache. Sets java and peer_jars.
need_peer() {
    local log
    need_java
    have mvn || need_packages "builds the jobs for Flink, from Maven Central" maven
    have "${java%/*}/javac" || have javac ||
        need_packages "compiles the jobs for Flink" default-jdk-headless
    peer_jars=$setup_cache/peer
    say "building bench/flink (the first time, Flink is downloaded from Maven Central)"
    log=$(mvn -q -B -f bench/flink/pom.xml "-Dout=$peer_jars" package </dev/null 2>&1) ||
        die "bench/flink cannot be built: $(tail -n 5 <<<"$log")"
}

# flink_start TABLE CHECKPOINT_EVERY_MS [CHECKPOINT]: the live job of the Table API, from its last
# checkpoint if that is named. Sets flink, its process id, and flink_job; returns when a checkpoint
# is complete.
flink_start() {
    local deadline=$((SECONDS + 120))
    flink_log=$work/flink-$1.log
    flink_port=$(free_port)
    mkdir -p "$work/flink-conf"
    cat >"$work/flink-conf/config.yaml" <<CONF
rest:
  address: 127.0.0.1
  port: $flink_port
execution:
  target: remote
CONF
    PEER_TABLE=$1 PEER_CHECKPOINT_EVERY_MS=$2 PEER_RESTORE=${3:-} PEER_REST_PORT=$flink_port \
        PEER_CHECKPOINTS=$work/checkpoints-$1 \
        "$java" -Xmx1g "${flink_options[@]}" -cp "$peer_jars/peer.jar:$peer_jars/lib/*" \
        sessionizer.peer.Peer sql live >>"$flink_log" 2>&1 &
    flink=$!
    flink_job=
    until [[ $flink_job ]] && flink_ask "checkpoints" |
        grep -c '"completed":[1-9]' >/dev/null; do
        kill -0 "$flink" 2>/dev/null || die "the Flink job ended: $(tail -n 3 "$flink_log")"
        ((SECONDS < deadline)) || die "the Flink job makes no checkpoint: $(tail -n 5 "$flink_log")"
        sleep 0.3
        flink_job=$(curl -s "http://127.0.0.1:$flink_port/jobs" | grep -oE '[0-9a-f]{32}') || true
    done
}

# flink_ask WHAT: the answer of Flink's REST interface, about the job.
flink_ask() { curl -s "http://127.0.0.1:$flink_port/jobs/$flink_job/$1"; }

# flink_command ARGUMENTS: what `flink ARGUMENTS` does, without the distribution.
flink_command() {
    FLINK_CONF_DIR=$work/flink-conf "$java" -Xmx256m "${flink_options[@]}" \
        -cp "$peer_jars/peer.jar:$peer_jars/lib/*" \
        org.apache.flink.client.cli.CliFrontend "$@" 2>>"$work/flink-command.log"
}

# flink_drain: stops the job as users do. Sets savepoint.
flink_drain() {
    local output
    say "$ flink stop --drain --savepointPath $work/savepoints $flink_job"
    output=$(flink_command stop --drain --savepointPath "file://$work/savepoints" "$flink_job") ||
        die "flink stop --drain failed: $output"
    say "  ${output##*$'\n'}"
    # shellcheck disable=SC2034 # for whoever sources this
    savepoint=$(sed -n 's/.*Path: //p' <<<"$output")
    wait "$flink" || die "the Flink job failed: $(tail -n 3 "$flink_log")"
    flink=
}

# flink_dropped: how many late events the job has dropped.
flink_dropped() {
    local vertex metric sum=0 number address=http://127.0.0.1:$flink_port/jobs/$flink_job
    for vertex in $(flink_ask "" | grep -oE '"id":"[0-9a-f]{32}"' | cut -d'"' -f4 | sort -u); do
        for metric in $(flink_ask "vertices/$vertex/metrics" |
            grep -oE '[^"]*numLateRecordsDropped'); do
            number=$(curl -sG "$address/vertices/$vertex/metrics" \
                --data-urlencode "get=$metric" | grep -oE '"value":"[0-9]+"' | cut -d'"' -f4)
            sum=$((sum + ${number:-0}))
        done
    done
    echo "$sum"
}
