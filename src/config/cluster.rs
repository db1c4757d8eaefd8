//! Where the secret shared by the processes of a cluster is kept.

use std::path::PathBuf;

use sessionizer_core::secret::Secret;

use crate::cli::RunArgs;
use crate::cluster::SecretSource;
use crate::config::{Environment, Problems};

/// The variable that holds the secret itself. There is no such flag, because everybody on the
/// machine can see the arguments of a process.
pub(super) const SECRET: &str = "SESSIONIZER_CLUSTER_SECRET";

/// Reads where the secret is: in a file, in the variable, or nowhere.
pub(super) fn read_cluster_secret(
    problems: &mut Problems<'_>,
    args: &RunArgs,
    env: &Environment,
) -> Option<SecretSource> {
    let file = args.cluster_secret_file.as_deref().filter(|path| !path.trim().is_empty());
    let secret = match (file, env.secret(SECRET)) {
        (Some(_), Some(_)) => {
            problems.add(SECRET, "is set, and so is --cluster-secret-file: only one can be");
            None
        }
        (Some(file), None) => Some(SecretSource::File(PathBuf::from(file))),
        (None, secret) => secret.map(|secret| SecretSource::Variable(Secret::new(secret))),
    };
    if secret.is_some() && args.cluster_insecure {
        problems.add("--cluster-insecure", "contradicts the cluster secret: only one can be set");
    }
    secret
}

/// The secret without one newline at its end, which belongs to the file and not to the secret.
pub(super) fn without_newline(secret: &str) -> &str {
    let secret = secret.strip_suffix('\n').unwrap_or(secret);
    secret.strip_suffix('\r').unwrap_or(secret)
}
