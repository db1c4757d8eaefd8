//! `sessionizer schema`: the migrations as SQL, for whoever may change the schema where the job's
//! login may not.

use sessionizer_core::fault::Fault;

use crate::commands::man::print;
use crate::ledger::schema::script;

/// Prints what leads from any older version to the newest one.
pub fn schema() -> Result<(), Fault> {
    print(script().as_bytes())
}
