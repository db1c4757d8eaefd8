# shellcheck shell=bash
# Finds free ports on loopback. Sourced, not run.

# On Linux, ephemeral ports start at 32768. Below that, no client takes the port while its server is
# down, and a restart finds it free.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 10000))
        answers "$port" || break
    done
    echo "$port"
}

# free_ports N: prints the first of N consecutive free ports.
free_ports() {
    local first port
    while :; do
        first=$(free_port)
        for ((port = first + 1; port < first + $1; port++)); do
            answers "$port" && continue 2
        done
        break
    done
    echo "$first"
}

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# write_hosts N FIRST: a hostfile for N processes on ports from FIRST on.
write_hosts() {
    local i
    for ((i = 0; i < $1; i++)); do
        echo "127.0.0.1:$(($2 + i))"
    done
}
