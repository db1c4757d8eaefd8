//! Progress on standard error: lines that stay, and below them one line that is rewritten.
//!
//! Nothing here fails: if standard error is closed (`scripts/chaos | head`), the run goes on.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

const CLEAR: &str = "\r\x1b[K";

/// Whether the last line on the terminal is one that [`show`] will rewrite.
static SHOWN: Mutex<bool> = Mutex::new(false);

fn shown() -> MutexGuard<'static, bool> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes a line that stays.
pub fn say(text: impl AsRef<str>) {
    let mut shown = shown();
    let clear = if std::mem::take(&mut *shown) { CLEAR } else { "" };
    let _ = writeln!(std::io::stderr(), "{clear}{}", text.as_ref());
}

/// Rewrites the line below the others; does nothing unless there is a terminal.
pub fn show(text: &str) {
    let mut shown = shown();
    let mut err = std::io::stderr();
    if err.is_terminal() {
        *shown = true;
        let _ = write!(err, "{CLEAR}{text}");
        let _ = err.flush();
    }
}

/// Clears that line.
pub fn clear() {
    if std::mem::take(&mut *shown()) {
        let _ = write!(std::io::stderr(), "{CLEAR}");
    }
}

/// Shows once a second how long something has been running.
pub struct Ticker {
    label: String,
    began: Instant,
    last_s: u64,
}

impl Ticker {
    pub fn new(label: impl Into<String>) -> Self {
        Ticker { label: label.into(), began: Instant::now(), last_s: 0 }
    }

    /// Call this often. `more` is appended to the line.
    pub fn tick(&mut self, more: impl FnOnce() -> String) {
        let seconds = self.began.elapsed().as_secs();
        if seconds > self.last_s {
            self.last_s = seconds;
            show(&format!("{}: {seconds} s{}", self.label, more()));
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        clear();
    }
}
