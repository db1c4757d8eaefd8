//! `sessionizer schema`: prints the migrations as SQL, for the owner of the schema to run if the
//! job's login may not change it.

use sessionizer_core::fault::Fault;

use crate::commands::output::print_document;
use crate::ledger::schema::script;

/// Prints the statements that bring any older version up to the newest one.
pub fn schema() -> Result<(), Fault> {
    print_document(script().as_bytes())
}
