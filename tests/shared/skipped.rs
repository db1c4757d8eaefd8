//! A test that skips something reports it: on the screen, and to `scripts/test`, which counts.

use std::io::Write;

/// Reports what is skipped and why, bypassing the capture of the tests' output.
pub fn skipped(what: &str, why: &str) {
    let line = format!("{what}: {why}\n");
    let _ = write!(std::io::stderr(), "SKIPPED: {line}");
    if let Some(path) = std::env::var_os("SESSIONIZER_TEST_SKIPPED") {
        let file = std::fs::File::options().append(true).create(true).open(path);
        // One write for a whole line, because tests run side by side.
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.expect("what is skipped can be counted");
    }
}
