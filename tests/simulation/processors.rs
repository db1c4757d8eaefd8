//! Work that is divided among the processors.
//!
//! Of all threads of a schedule one moves at a time, and hands over to the next at every step. On a
//! processor of their own, that is a change of tasks; on several, it wakes an idle processor, which
//! takes a quarter of the whole time.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Runs `work` on every processor at once: it gets its number and how many there are. What it starts
/// stays on that processor.
///
/// # Panics
///
/// If one of them panics, which has then said why.
pub fn on_each<R: Send>(work: impl Fn(usize, usize) -> R + Sync) -> Vec<R> {
    let processors = processors();
    std::thread::scope(|scope| {
        let start = |number: usize| {
            let (work, processors) = (&work, &processors);
            scope.spawn(move || {
                if let Some(processor) = processors[number] {
                    // Without it, the result is the same, later.
                    let _ = sched_setaffinity(None, &only(processor));
                }
                work(number, processors.len())
            })
        };
        let threads: Vec<_> = (0..processors.len()).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("it has failed: see above")).collect()
    })
}

/// The processors that this process may use; one without a number if that is unknown.
fn processors() -> Vec<Option<usize>> {
    let Ok(allowed) = sched_getaffinity(None) else { return vec![None] };
    (0..CpuSet::MAX_CPU).filter(|number| allowed.is_set(*number)).map(Some).collect()
}

fn only(processor: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(processor);
    set
}
