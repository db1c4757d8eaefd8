# shellcheck shell=bash
# Finds or installs a usable Docker. Sourced after setup.sh, not run.
#
# Where no daemon answers, root of a Debian gets one of its own: with a directory and a socket of
# its own, which end with the script that asked for it.

# docker_obstacle: prints why Docker and compose are not available here, or nothing.
docker_obstacle() {
    local complaint
    if have docker && complaint=$(docker version 2>&1) && find_compose; then
        return
    elif ((EUID == 0)) && have apt-get; then
        # What a private daemon needs of this system.
        unshare --mount --net true 2>/dev/null ||
            echo "no docker daemon answers, and this system does not let root make namespaces"
    elif ! have docker; then
        echo "docker is not installed"
    elif [[ ${complaint:-} ]] && ! docker version >/dev/null 2>&1; then
        echo "no docker daemon answers: ${complaint##*$'\n'}"
    else
        echo "neither docker compose nor docker-compose is installed"
    fi
}

# Sets compose, the words of the command.
# shellcheck disable=SC2034 # for whoever sources this
find_compose() {
    if docker compose version >/dev/null 2>&1; then
        compose=(docker compose)
    elif have docker-compose && docker-compose version >/dev/null 2>&1; then
        compose=(docker-compose)
    else
        return 1
    fi
}

# The Dockerfile needs BuildKit, which newer clients have only with the plugin buildx. That of Debian
# has it built in.
have_buildkit() {
    docker buildx version >/dev/null 2>&1 && return
    local major
    major=$(docker --version | sed -n 's/.*version \([0-9]*\)\..*/\1/p')
    ((${major:-99} < 23))
}

docker_dir=

# Sets compose. The caller must call stop_docker in the end.
need_docker() {
    have docker || need_packages "runs containers" docker.io
    have_buildkit || PATH=/usr/bin:$PATH
    have_buildkit || die "docker is here without BuildKit: install its plugin buildx"
    docker version >/dev/null 2>&1 || start_docker
    find_compose || need_packages "reads docker-compose.yml" docker-compose
    find_compose || die "docker-compose does not work"
}

start_docker() {
    local waited
    have dockerd || need_packages "runs containers" docker.io
    # iptables of Debian is not among what it needs, but only recommended.
    have iptables || need_packages "connects containers" iptables
    docker_dir=$(mktemp -d "${TMPDIR:-/tmp}/sessionizer-docker.XXXXXX")
    say "no docker daemon answers: starting one in $docker_dir"
    export DOCKER_HOST=unix://$docker_dir/socket
    setsid dockerd --host "$DOCKER_HOST" --data-root "$docker_dir/data" \
        --exec-root "$docker_dir/exec" --pidfile "$docker_dir/pid" \
        >"$docker_dir/log" 2>&1 </dev/null &
    for ((waited = 0; waited < 300; waited++)); do
        docker version >/dev/null 2>&1 && return
        kill -0 "$!" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 5 "$docker_dir/log" >&2
    die "dockerd does not run here"
}

stop_docker() {
    local pid waited
    [[ $docker_dir ]] || return 0
    if pid=$(cat "$docker_dir/pid" 2>/dev/null) && kill "$pid" 2>/dev/null; then
        for ((waited = 0; waited < 300; waited++)); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
    fi
    # Of containers in the network of this machine.
    umount "$docker_dir"/exec/netns/* 2>/dev/null || true
    rm -rf --one-file-system "$docker_dir"
}
