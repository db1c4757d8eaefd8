//! `sessionizer health`: asks a running job whether it is ready, for images without a shell.

use sessionizer_core::fault::Fault;

use crate::cli::HealthArgs;
use crate::commands::ask::{Place, printable};
use crate::config::Environment;

/// Asks, prints the answer, and fails unless the job is ready.
pub fn health(args: &HealthArgs, env: &Environment) -> Result<(), Fault> {
    let path = if args.live { "/livez" } else { "/readyz" };
    let place = Place::find(args.url.as_deref(), path, env)?;
    let told = place.ask().map_err(|why| {
        Fault::Environment(format!("no job answers at http://{}: {why}", place.authority))
    })?;
    let said = printable(told.body.trim_end());
    match told.status {
        200 => {
            println!("{said}");
            Ok(())
        }
        503 => Err(Fault::Environment(said)),
        status => Err(Fault::Config(format!(
            "what answers at http://{}{} is no job of this kind: {status}: {}",
            place.authority,
            place.path,
            said.lines().next().unwrap_or_default()
        ))),
    }
}
