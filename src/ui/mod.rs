//! What people see: log lines, progress bars, numbers and durations, and what the job waits for.

use std::ffi::OsStr;
use std::io::IsTerminal;

pub mod bars;
pub mod logging;
pub mod text;
pub mod tls;
pub mod trouble;
pub mod waiting;

/// Whether a stream is a terminal on which a line can be drawn again. One with TERM=dumb, such as a
/// shell in an editor, would show the control characters.
pub fn can_redraw(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("TERM").as_deref() != Some(OsStr::new("dumb"))
}
