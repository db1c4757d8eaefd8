//! Captures what a schedule that is meant to fail prints, and keeps it off the screen.
//!
//! A schedule runs on several threads, and other tests run beside it: a witness hears only the
//! threads to which it was given.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Once, PoisonError};

/// What was printed, in order: the first thread that panicked comes before those that panicked
/// because of it.
pub type Witness = Arc<Mutex<Vec<String>>>;

thread_local! {
    static WITNESS: RefCell<Option<Witness>> = const { RefCell::new(None) };
}

/// The witness of this thread.
pub fn of_this_thread() -> Option<Witness> {
    WITNESS.with_borrow(Clone::clone)
}

/// From now on, `witness` hears this thread.
pub fn hears_this_thread(witness: Option<Witness>) {
    WITNESS.set(witness);
}

/// Runs something. If it panics, returns the first line of the first message.
pub fn of<R>(run: impl FnOnce() -> R) -> Result<R, String> {
    listen();
    let witness = Witness::default();
    hears_this_thread(Some(Arc::clone(&witness)));
    let result = catch_unwind(AssertUnwindSafe(run));
    hears_this_thread(None);
    let said = witness.lock().unwrap_or_else(PoisonError::into_inner);
    result.map_err(|_| said.first().cloned().expect("who panics says why"))
}

/// Threads without a witness are heard by whoever listened before.
fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match of_this_thread() {
            Some(witness) => {
                let said = info.payload();
                let text = said.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| said.downcast_ref::<&str>().copied());
                let text = text.unwrap_or("it did not say");
                let line = text.lines().next().unwrap_or_default();
                // The text that the assertion itself adds says nothing about the rule.
                let why = line.split_once(" failed: ").map_or(line, |(_, why)| why).to_owned();
                witness.lock().unwrap_or_else(PoisonError::into_inner).push(why);
            }
            None => before(info),
        }));
    });
}
