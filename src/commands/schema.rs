//! `sessionizer schema`: the migrations as SQL, for whoever may change the schema where the job's
//! login may not.

use sessionizer_core::fault::Fault;

use crate::cli::SchemaArgs;
use crate::commands::man::print;
use crate::ledger::schema::{NEWEST, script};

/// Prints what leads from a version to the newest one.
pub fn schema(args: &SchemaArgs) -> Result<(), Fault> {
    let version = args.version.parse().ok().filter(|version| (0..=NEWEST).contains(version));
    let version = version.ok_or_else(|| {
        Fault::Config(format!(
            "there is no version {} of the schema: VERSION must be a number from 0 to {NEWEST}",
            args.version
        ))
    })?;
    print(script(version).as_bytes())
}
