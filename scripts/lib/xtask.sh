# shellcheck shell=bash
# Builds the tool of xtask/ and becomes it. Sourced, not run.

# shellcheck source=setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# xtask ARGUMENTS...: the tool finds the rest of what it needs itself, by scripts/lib/ready, once it
# has understood its arguments.
xtask() {
    local built
    need_c_compiler
    need_rust
    # Not by `cargo run`, whose variables all that is measured would inherit.
    built=$(cd "$setup_root" && cargo build --release --locked -p xtask && realpath "${program%/*}")
    exec "$built/xtask" "$@"
}
