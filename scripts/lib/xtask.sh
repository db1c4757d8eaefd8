# shellcheck shell=bash
# Builds the tool in xtask/ and replaces this process by it. Sourced, not run.

# shellcheck source=setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# xtask ARGUMENTS...: the tool installs what else it needs itself, by scripts/lib/ready, once its
# arguments are known to be valid.
xtask() {
    local built
    need_c_compiler
    need_rust
    # Not by `cargo run`: its variables would be inherited by everything that is measured.
    built=$(cd "$setup_root" && cargo build --release --locked -p xtask && realpath "${program%/*}")
    exec "$built/xtask" "$@"
}
