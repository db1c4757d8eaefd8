//! The version of the program, the commit it was built from, and what is built in.

/// The version of the crate.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The shortened commit that it was built from, or `unknown commit`.
pub const COMMIT: &str = env!("BUILD_COMMIT");
/// Version and commit, as in the first line of a run.
pub const FULL: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")");

/// What `--version` shows: in addition, the built-in C libraries and their features.
pub fn long() -> String {
    let origin = if cfg!(feature = "vendored") { "built in" } else { "of the system" };
    let (librdkafka, features) = crate::kafka::library();
    let openssl = openssl::version::version();
    format!("{FULL}\nlibrdkafka {librdkafka}: {features}\n{openssl}, {origin}")
}
