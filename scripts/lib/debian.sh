# shellcheck shell=bash
# A minimal Debian in a directory, of the same release and with the settings of this machine.
# Sourced after setup.sh, not run. The caller sets:
#
#   work   a directory for a log
#   root   the directory for the Debian
#
# shellcheck disable=SC2154

release() { (source /etc/os-release && echo "${!1:-}"); }

# Lines of sources.list for the parts of Debian that this machine uses itself.
mirrors() {
    local codename
    codename=$(release VERSION_CODENAME)
    # The words in dollars are apt's.
    # shellcheck disable=SC2016
    apt-get indextargets --format 'deb $(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        grep -E " $codename(-updates|-security|/updates)? main\$" | sort -u
}

install_debian() {
    local codename mirror
    codename=$(release VERSION_CODENAME)
    mirror=$(mirrors | awk -v codename="$codename" '$3 == codename { print $2; exit }')
    say "installing the smallest Debian $codename, from $mirror"
    # TMPDIR does not exist in the root.
    env -u TMPDIR debootstrap --variant=minbase --include=ca-certificates,git \
        "$codename" "$root" "$mirror" >"$work/log" 2>&1 ||
        { tail -n 20 "$work/log" >&2 && die "debootstrap failed"; }
}

# How this machine reaches its download servers.
copy_settings() {
    local file
    mirrors >"$root/etc/apt/sources.list"
    apt-config dump Acquire | grep -v '::IndexTargets' >"$root/etc/apt/apt.conf.d/99machine"
    for file in /etc/apt/auth.conf /etc/apt/auth.conf.d /etc/apt/preferences.d \
        /etc/resolv.conf /etc/hosts /etc/pip.conf /usr/local/share/ca-certificates \
        "${CARGO_HOME:-$HOME/.cargo}/config.toml=/root/.cargo/config.toml" \
        "$HOME/.m2/settings.xml=/root/.m2/settings.xml" \
        "$HOME/.config/pip=/root/.config/pip"; do
        [[ ! -e ${file%=*} ]] || copy "${file%=*}" "${file#*=}"
    done
    env -u TMPDIR chroot "$root" update-ca-certificates >"$work/log" 2>&1 ||
        { cat "$work/log" >&2 && die "update-ca-certificates failed"; }
}

# copy FROM TO: TO is a path in the root, and is replaced.
copy() {
    mkdir -p "$root$(dirname "$2")"
    rm -rf "${root:?}$2"
    cp -RL --preserve=mode,timestamps -- "$1" "$root$2"
}
