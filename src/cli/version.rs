//! Which program this is: its version, the commit it was built from, and what is built in.

/// The version of the crate.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from, shortened, or `unknown commit`.
pub const COMMIT: &str = env!("BUILD_COMMIT");
/// Version and commit, as the first line of a run shows them.
pub const FULL: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")");

/// What `--version` shows: also the C libraries that are built in, and what they can do.
pub fn long() -> String {
    let origin = if cfg!(feature = "vendored") { "built in" } else { "of the system" };
    let (librdkafka, features) = crate::kafka::library();
    let openssl = openssl::version::version();
    format!("{FULL}\nlibrdkafka {librdkafka}: {features}\n{openssl}, {origin}")
}
