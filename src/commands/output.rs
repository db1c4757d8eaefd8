//! How commands print, and how they end if the ledger fails.

use std::io::{Error, ErrorKind, Result as IoResult, Write, stdout};

use sessionizer_core::fault::Fault;

use crate::dataflow::ports::LedgerError;

/// Prints a text. Returns whether anybody still reads it: with `status --watch | head`, nobody does
/// after a while. That is no error.
pub fn print(text: &str) -> Result<bool, Fault> {
    still_read(write(text.as_bytes())).map_err(|why| unwritable(&why))
}

/// Prints a text. It is an error if nobody reads it: nobody may confirm what could not be shown, so
/// a closed output must not count as a yes.
pub fn say(text: &str) -> Result<(), Fault> {
    write(text.as_bytes()).map_err(|why| unwritable(&why))
}

/// Prints what is made for a file or another program.
pub fn print_document(text: &[u8]) -> Result<(), Fault> {
    still_read(write(text))
        .map(drop)
        .map_err(|why| Fault::Environment(format!("cannot write to standard output: {why}")))
}

/// The result of printing a report. A reader may stop early (`audit | head`); that does not change
/// the verdict.
pub fn printed(written: IoResult<()>) -> Result<(), Fault> {
    still_read(written).map(drop).map_err(|why| {
        Fault::Environment(format!("the report cannot be written to standard output: {why}"))
    })
}

/// The fault that ends a command. `explain` says what a failure means that may pass by itself.
pub fn give_up(error: LedgerError, explain: impl FnOnce(&str) -> String) -> Fault {
    match error {
        LedgerError::Fatal(fault) => fault,
        LedgerError::Retry(why) => Fault::Environment(explain(&why)),
    }
}

/// The fault that ends a command which only reads.
pub fn unreadable(error: LedgerError) -> Fault {
    give_up(error, |why| format!("Postgres cannot be read: {why}"))
}

fn write(text: &[u8]) -> IoResult<()> {
    let mut out = stdout().lock();
    out.write_all(text).and_then(|()| out.flush())
}

fn still_read(written: IoResult<()>) -> IoResult<bool> {
    match written {
        Ok(()) => Ok(true),
        Err(why) if why.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(why) => Err(why),
    }
}

fn unwritable(why: &Error) -> Fault {
    Fault::Environment(format!("standard output cannot be written: {why}"))
}
