//! How commands print, and how they end if the ledger fails.

use std::fs;
use std::io::{Error, ErrorKind, Result as IoResult, Write, stdout};
use std::path::Path;

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
        .map_err(|why| Fault::environment(format!("cannot write to standard output: {why}")))
}

/// The result of printing a report. A reader may stop early (`audit | head`); that does not change
/// the verdict.
pub fn printed(written: IoResult<()>) -> Result<(), Fault> {
    still_read(written).map(drop).map_err(|why| {
        Fault::environment(format!("the report cannot be written to standard output: {why}"))
    })
}

/// The fault that ends a command. `explain` says what a failure means that may pass by itself.
pub fn give_up(error: LedgerError, explain: impl FnOnce(&str) -> String) -> Fault {
    match error {
        LedgerError::Fatal(fault) => fault,
        LedgerError::Retry(why) => Fault::environment(explain(&why.to_string())),
    }
}

/// The fault that ends a command which only reads.
pub fn unreadable(error: LedgerError) -> Fault {
    give_up(error, |why| format!("Postgres cannot be read: {why}"))
}

/// Writes a file as a whole: what was there before stays if the new content cannot be written, for
/// example to a full disk.
pub fn replace(file: &Path, content: &[u8]) -> IoResult<()> {
    // The file itself may be in another directory than a link to it. A pipe cannot be replaced, and
    // where nothing is, nothing can be lost.
    let known = fs::canonicalize(file).and_then(|target| Ok((fs::metadata(&target)?, target)));
    let Some((found, target)) = known.ok().filter(|(found, _)| found.is_file()) else {
        return fs::write(file, content);
    };
    let mut beside = target.clone().into_os_string();
    beside.push(".new");
    let written = fs::write(&beside, content)
        .and_then(|()| fs::set_permissions(&beside, found.permissions()))
        .and_then(|()| fs::rename(&beside, &target));
    match written {
        // The file may be written, and its directory not.
        Err(why) if why.kind() == ErrorKind::PermissionDenied => {
            _ = fs::remove_file(&beside);
            fs::write(target, content)
        }
        Err(why) => {
            _ = fs::remove_file(&beside);
            Err(why)
        }
        Ok(()) => Ok(()),
    }
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
    Fault::environment(format!("standard output cannot be written: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_or_not_at_all() {
        let directory = std::env::temp_dir().join(format!("replace-{}", std::process::id()));
        fs::create_dir(&directory).expect("a directory");
        let file = directory.join("report.html");
        for content in [&b"yesterday"[..], b"today"] {
            replace(&file, content).expect("it can be written");
            assert_eq!(fs::read(&file).expect("it was written"), content);
        }
        // Nothing can be written beside it.
        fs::create_dir(directory.join("report.html.new")).expect("a directory");
        assert!(replace(&file, b"tomorrow").is_err());
        assert_eq!(fs::read(&file).expect("it is still there"), b"today");
        fs::remove_dir_all(directory).expect("it can be removed");
    }
}
