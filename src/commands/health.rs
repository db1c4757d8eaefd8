//! `sessionizer health`: asks a running job whether it is ready, for images without a shell.

use sessionizer_core::fault::Fault;

use crate::cli::HealthArgs;
use crate::commands::http::{Endpoint, printable};
use crate::config::Environment;

/// Asks, prints the answer, and fails unless the job is ready.
pub fn health(args: &HealthArgs, env: &Environment) -> Result<(), Fault> {
    let path = if args.live { "/livez" } else { "/readyz" };
    let endpoint = Endpoint::find(args.url.as_deref(), &args.job, path, env)?;
    let reply = endpoint.ask()?;
    let body = printable(reply.body.trim_end());
    match reply.status {
        200 => {
            println!("{body}");
            Ok(())
        }
        503 => Err(Fault::environment(body)),
        status => Err(Fault::config(format!(
            "what answers at http://{}{} is not a sessionizer job: {status}: {}",
            endpoint.authority,
            endpoint.path,
            body.lines().next().unwrap_or_default()
        ))),
    }
}
