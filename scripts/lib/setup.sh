# shellcheck shell=bash
# Finds or installs what this machine needs before anything here can run. Sourced, not run.
#
# Every `need_*` function installs only what is missing, and first says on one line what and why.
# Where nothing can be installed (no apt-get, no way to become root) it names what to install by
# hand and ends the script. Nothing here starts, stops or configures servers of the machine.

# The version of Kafka for tests and demo, defined here alone; docker-compose.yml follows it.
kafka_version=4.3.1
# Kafka logs through slf4j 1.7, but no Kafka artifact brings the bridge to its own log4j-core.
log4j_version=2.25.4
maven_dependency_plugin=org.apache.maven.plugins:maven-dependency-plugin:3.11.0
java_major_min=17

setup_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Some containers start without HOME; a bare tilde then still knows the user's own.
[[ ${HOME:-} ]] || { HOME=~ && export HOME; }
# Where cargo puts the program.
# shellcheck disable=SC2034 # for whoever sources this
program=${CARGO_TARGET_DIR:-$setup_root/target}/release/sessionizer
setup_cache=${SESSIONIZER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sessionizer}

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# skipped WHAT WHY...: reports a skipped check. scripts/test counts them (tests/shared/skipped.rs).
skipped() {
    local line
    line="$1: ${*:2}"
    say "SKIPPED: $line"
    [[ ! ${SESSIONIZER_TEST_SKIPPED:-} ]] || echo "$line" >>"$SESSIONIZER_TEST_SKIPPED"
}

have() { command -v "$1" >/dev/null 2>&1; }

# version_at_least HAVE WANT
version_at_least() { printf '%s\n' "$2" "$1" | sort -V -C; }

# Nobody is there to answer in CI, without a terminal, or after `--yes`.
unattended() { [[ ${assume_yes:-} || ${CI:-false} != false || ! -t 0 ]]; }

agree() {
    unattended && return 0
    local answer
    read -r -p "$1 [y/N] " answer && [[ $answer == [yY]* ]]
}

# ---- Debian packages -----------------------------------------------------------------------

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif unattended; then
        sudo -n "$@"
    else
        sudo "$@"
    fi
}

# A new cloud machine updates itself in its first minutes, so waiting for the lock is worthwhile.
# The output of packages matters only if one fails. Java's packages run Java, which would leave
# files in /tmp.
apt_get() {
    local output
    output=$(as_root env DEBIAN_FRONTEND=noninteractive JAVA_TOOL_OPTIONS=-XX:-UsePerfData \
        apt-get -q -o DPkg::Lock::Timeout=300 "$@" </dev/null 2>&1) && return 0
    say "$output"
    return 1
}

# A broken third-party list must not keep packages of other lists from being installed.
apt_update_once() {
    [[ ${apt_updated:-} ]] && return 0
    apt_updated=yes
    apt_get update || say "warning: apt-get update failed; continuing with the lists that are here"
}

installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

available() { [[ $(apt-cache policy "$1" 2>/dev/null) == *"Candidate: "[0-9]* ]]; }

can_install() { have apt-get && { ((EUID == 0)) || have sudo; }; }

# need_packages WHY PACKAGE...: installs packages, or ends the script.
need_packages() {
    try_packages "$@" && return
    have apt-get || die "this needs ${missing[*]} ($1), and there is no apt-get here:" \
        "install what your system calls these, then try again"
    can_install || die "this needs ${missing[*]} ($1), and there is no sudo here:" \
        "run as root \`apt-get install ${missing[*]}\`, then try again"
    die "could not install ${missing[*]};" \
        "run as root \`apt-get install ${missing[*]}\`, then try again"
}

# try_packages WHY PACKAGE...: tries to install packages. Sets missing to those that were missing.
try_packages() {
    local why=$1 package
    missing=()
    shift
    for package; do
        installed "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    can_install || return 1
    say "installing ${missing[*]}: $why"
    apt_update_once
    apt_get install -y --no-install-recommends "${missing[@]}"
}

# ---- compilers -----------------------------------------------------------------------------

need_c_compiler() {
    if ! { have cc && have c++ && have make && have_libc_headers; }; then
        need_packages "librdkafka is built from source" build-essential
    fi
}

have_libc_headers() { cc -E - <<<'#include <stdlib.h>' >/dev/null 2>&1; }

# With OpenSSL, zlib and zstd of the system a first build takes half the time. The tests, the demo
# and the benchmarks are all built with these features, so that nothing is built twice. A plain
# `cargo build` takes the libraries from source, and so does this where they are not available.
#
# Sets cargo_features, arguments for cargo.
# shellcheck disable=SC2034 # for whoever sources this
need_c_libraries() {
    cargo_features=(--no-default-features --features system-zstd)
    have_c_libraries && return
    try_packages "OpenSSL, zlib and zstd, which the program links" \
        libssl-dev zlib1g-dev libzstd-dev pkg-config && have_c_libraries && return
    say "OpenSSL, zlib and zstd of this system cannot be used: they are built from source," \
        "which takes some minutes more"
    cargo_features=()
    # OpenSSL's Configure asks for modules that the perl-base of a minimal system lacks.
    have_perl_modules || need_packages "OpenSSL is built from source" perl
}

have_c_libraries() { have pkg-config && pkg-config --exists openssl zlib libzstd; }

have_perl_modules() { perl -MFindBin -MIPC::Cmd -e 1 2>/dev/null; }

rust_version_min() { sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$setup_root/Cargo.toml"; }

# Empty when there is no cargo, or a rustup without a toolchain behind it.
rust_version() {
    { cargo --version 2>/dev/null || true; } | sed -n '1s/^cargo \([0-9][^ ]*\).*/\1/p'
}

rust_is_new_enough() {
    local version
    version=$(rust_version)
    [[ $version ]] && version_at_least "$version" "$(rust_version_min)"
}

need_rust() {
    local cargo_bin=${CARGO_HOME:-$HOME/.cargo}/bin version want
    rust_is_new_enough && return 0
    # rustup's own directory is on the PATH of login shells only.
    [[ -x $cargo_bin/cargo || -x $cargo_bin/rustup ]] && PATH=$cargo_bin:$PATH
    hash -r
    rust_is_new_enough && return 0

    version=$(rust_version)
    want=$(rust_version_min)
    say "Rust $want or newer is needed; ${version:-none} is here"
    agree "Install the current stable Rust with rustup?" ||
        die "install Rust $want or newer (https://rustup.rs), then try again"
    if have rustup; then
        rustup_stable || die "rustup could not install the stable toolchain"
    else
        debian_rustup || official_rustup || die "could not install Rust; see https://rustup.rs"
    fi
    hash -r
    rust_is_new_enough || die "Rust $want or newer is still missing; see https://rustup.rs"
}

# The toolchain is chosen for this run only; the user's default stays.
rustup_stable() {
    say "installing the stable Rust toolchain with rustup"
    rustup toolchain install stable --profile minimal --component rustfmt --component clippy &&
        export RUSTUP_TOOLCHAIN=stable
}

# Debian 13 and Ubuntu 24.04 package rustup. It cannot be installed beside Debian's own cargo,
# and removing what the user has installed is not up to us.
debian_rustup() {
    can_install && ! installed cargo && ! installed rustc || return 1
    apt_update_once
    available rustup || return 1
    try_packages "brings Rust" rustup || return 1
    rustup_stable && rustup default stable
}

# The second address serves the same script from where it downloads everything else.
official_rustup() {
    local url script=
    have curl || need_packages "downloads rustup" curl ca-certificates
    for url in https://sh.rustup.rs https://static.rust-lang.org/rustup/rustup-init.sh; do
        script=$(curl --proto '=https' --tlsv1.2 -sSf "$url") && break
    done
    [[ $script ]] || return 1
    say "installing Rust: the official installer, $url"
    sh -s -- -y --profile minimal -c rustfmt -c clippy <<<"$script" >&2 || return 1
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
}

need_rust_checks() {
    cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && return 0
    have rustup || die "rustfmt and clippy are missing; install them for your Rust"
    say "installing rustfmt and clippy: the tests check format and lints"
    rustup component add rustfmt clippy || die "rustup could not add rustfmt and clippy"
}

# ---- the browser for the tests of the page -------------------------------------------------

node_major_min=18

# want_browser: whether Chromium, Node.js and the packages of tests/browser are here now, or could
# be installed; if not, prints what is missing.
want_browser() {
    find_chromium >/dev/null || try_packages "shows the page to its tests" chromium fonts-dejavu-core || true
    find_chromium >/dev/null || { echo "Chromium is missing and could not be installed" && return 1; }
    node_is_new_enough || try_packages "runs the tests of the page" nodejs || true
    node_is_new_enough ||
        { echo "Node.js $node_major_min or newer is missing and could not be installed" && return 1; }
    have npm || try_packages "installs what the tests of the page need" npm || true
    have npm || { echo "npm is missing and could not be installed" && return 1; }
    install_browser_packages ||
        { echo "npm could not install the packages of tests/browser" && return 1; }
}

find_chromium() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

node_is_new_enough() {
    local version
    version=$(node --version 2>/dev/null) && version_at_least "${version#v}" "$node_major_min"
}

install_browser_packages() {
    local place=$setup_root/tests/browser
    [[ $place/node_modules/.package-lock.json -nt $place/package-lock.json ]] && return 0
    say "installing the packages of tests/browser/package-lock.json"
    npm ci --prefix "$place" --ignore-scripts --no-audit --no-fund --no-update-notifier </dev/null >&2
}

# ---- PostgreSQL ----------------------------------------------------------------------------

# Debian installs it outside the usual PATH.
have_pgbouncer() { have pgbouncer || [[ -x /usr/sbin/pgbouncer ]]; }

# Prints the directory that holds initdb and pg_ctl; the newest, where there are several.
find_postgres() {
    local bin bins
    mapfile -t bins < <(
        printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV
        pg_config --bindir 2>/dev/null
        have initdb && dirname "$(command -v initdb)"
    )
    for bin in "${bins[@]}"; do
        [[ -x $bin/initdb && -x $bin/pg_ctl ]] && echo "$bin" && return
    done
    return 1
}

# Sets postgres_bin.
# shellcheck disable=SC2034 # scripts/services reads it
need_postgres() {
    postgres_bin=$(find_postgres) && return 0
    (install_postgres) || exit 1
    postgres_bin=$(find_postgres) || die "the package postgresql brought no initdb"
}

# Debian's package creates a cluster and starts it on 5432; a machine that only runs these tests
# did not ask for that. The setting is taken back, so that a later install is as usual. Runs in a
# subshell, for its trap.
install_postgres() {
    local why="runs a private server for the tests"
    if can_install; then
        forbid_cluster ||
            die "could not become root; run as root \`apt-get install postgresql\` ($why)"
        trap allow_cluster EXIT
    fi
    need_packages "$why" postgresql
}

cluster_setting=/etc/postgresql-common/createcluster.d/sessionizer-setup.conf

forbid_cluster() {
    as_root mkdir -p "${cluster_setting%/*}" &&
        as_root tee "$cluster_setting" <<<'create_main_cluster = false' >/dev/null
}

allow_cluster() { as_root rm -f "$cluster_setting"; }

# ---- Kafka ---------------------------------------------------------------------------------

find_java() {
    local java javas major
    mapfile -t javas < <(
        [[ ${JAVA_HOME:-} ]] && echo "$JAVA_HOME/bin/java"
        command -v java
        printf '%s\n' /usr/lib/jvm/*/bin/java | sort -rV
    )
    for java in "${javas[@]}"; do
        [[ -x $java ]] || continue
        major=$("$java" -XX:-UsePerfData -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p')
        ((${major:-0} >= java_major_min)) && echo "$java" && return
    done
    return 1
}

# Sets java.
need_java() {
    java=$(find_java) && return 0
    local package=default-jre-headless candidate
    # The default of an older Ubuntu is too old for Kafka, so the version is asked for by name.
    if can_install; then
        apt_update_once
        for candidate in openjdk-21-jre-headless openjdk-17-jre-headless; do
            available "$candidate" && package=$candidate && break
        done
    fi
    need_packages "Kafka runs on Java $java_major_min or newer" "$package"
    java=$(find_java) || die "Java $java_major_min or newer is missing; install it and try again"
}

# Sets java and kafka_jars.
need_kafka() {
    need_java
    kafka_jars=$setup_cache/kafka-$kafka_version
    [[ -d $kafka_jars ]] && return 0
    have mvn || need_packages "downloads Kafka $kafka_version from Maven Central" maven
    say "downloading Kafka $kafka_version from Maven Central to $kafka_jars"
    (download_kafka) || die "could not download Kafka $kafka_version from Maven Central"
}

# A directory gets its final name only when it is complete, and the first rename wins: tests may
# start several servers at once.
download_kafka() {
    local work
    mkdir -p "$setup_cache" && work=$(mktemp -d "$setup_cache/download.XXXXXX") || return 1
    # shellcheck disable=SC2064 # the directory is known now and gone from scope later
    trap "rm -rf '$work'" EXIT
    cat >"$work/pom.xml" <<POM
<project><modelVersion>4.0.0</modelVersion>
<groupId>sessionizer</groupId><artifactId>kafka</artifactId><version>1</version><dependencies>
$(maven_dependency org.apache.kafka kafka_2.13 "$kafka_version")
$(maven_dependency org.apache.kafka kafka-tools "$kafka_version")
$(maven_dependency org.apache.logging.log4j log4j-slf4j-impl "$log4j_version")
</dependencies></project>
POM
    MAVEN_OPTS="${MAVEN_OPTS:-} -XX:-UsePerfData -Djava.io.tmpdir=$work" \
        mvn -q -B -C -f "$work/pom.xml" "$maven_dependency_plugin:copy-dependencies" \
        -DoutputDirectory="$work/jars" </dev/null >"$work/log" 2>&1 ||
        { cat "$work/log" >&2 && return 1; }
    mv -T "$work/jars" "$kafka_jars" 2>/dev/null || [[ -d $kafka_jars ]]
}

# maven_dependency GROUP ARTIFACT VERSION
maven_dependency() {
    printf '<dependency><groupId>%s</groupId><artifactId>%s</artifactId>' "$1" "$2"
    printf '<version>%s</version></dependency>\n' "$3"
}

# ---- Prometheus ----------------------------------------------------------------------------

# find_prometheus PROGRAM: prints the path of prometheus or promtool. If it is not installed, it is
# taken out of Debian's package, because installing that would start a server.
find_prometheus() {
    local program=$1 at=$setup_cache/prometheus/usr/bin/$1 work
    command -v "$program" && return
    if ! [[ -x $at ]]; then
        have apt-get && have dpkg-deb || return
        work=$(mktemp -d) || return
        (cd "$work" && { apt-get -q download prometheus || { apt_update_once &&
            apt-get -q download prometheus; }; } >&2 && dpkg-deb -x prometheus_*.deb whole) &&
            mkdir -p "$setup_cache" && { mv -T "$work/whole" "$setup_cache/prometheus" ||
                [[ -x $at ]]; }
        rm -rf "$work"
    fi
    [[ -x $at ]] && printf '%s\n' "$at"
}
