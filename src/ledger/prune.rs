//! Removes dead letters that are old enough, some at a time, beside the commits and never in one.
//!
//! What was counted stays counted: the balance adds up what the commits have booked, not rows. Of
//! events that decode and were dead letters all the same the audit needs to know where they are, so
//! of those only the payload goes.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use log::{debug, info, warn};
use postgres::Client;

use crate::dataflow::ports::LedgerError;
use crate::ledger::LedgerConfig;
use crate::ledger::connect::{classify, connect};
use crate::ui::text::{duration, plural};

/// So many at a time: a transaction of a moment.
const BATCH: i64 = 5_000;
/// How often old dead letters are looked for: a part of what they are kept, but not less and not
/// more than this.
const EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3_600));
/// When they are looked for first, and how long it takes from one batch to the next.
const FIRST: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// Removes old dead letters now and then, until what is returned is dropped.
pub fn keep_dead_letters(config: &LedgerConfig, keep: Duration) -> Sender<()> {
    let (running, over) = channel::<()>();
    let config = config.clone();
    let every = (keep / 20).clamp(EVERY.0, EVERY.1);
    let work = move || {
        let wait = |long| over.recv_timeout(long) == Err(RecvTimeoutError::Timeout);
        let mut failing = false;
        let mut next = every.min(FIRST);
        while wait(next) {
            next = every;
            match prune(&config, keep, || wait(PAUSE)) {
                Ok(removed) => {
                    failing = false;
                    if removed > 0 {
                        let letters = plural(removed, "dead letter");
                        info!("removed {letters} older than {}", duration(keep));
                    }
                }
                Err(why) if failing => debug!("old dead letters are not removed: {why}"),
                Err(why) => {
                    failing = true;
                    warn!("old dead letters are not removed, will keep trying: {why}");
                }
            }
        }
    };
    let thread = thread::Builder::new().name("prune".to_owned());
    thread.spawn(work).expect("a thread can be started");
    running
}

/// Removes what is older than `keep`; `go_on` is asked between two batches. Gives how many dead
/// letters were removed.
fn prune(
    config: &LedgerConfig,
    keep: Duration,
    mut go_on: impl FnMut() -> bool,
) -> Result<u64, LedgerError> {
    let mut client = connect(config)?;
    // Whoever locks the table is not to be held up by us in turn.
    client
        .batch_execute("set lock_timeout to '5s'")
        .map_err(|why| classify(&why, "removing old dead letters"))?;
    let keep_ms = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
    let mut removed = 0;
    for (what, select) in [
        ("delete from sessionizer.dead_letters", "reason not in ('future', 'late')"),
        (
            "update sessionizer.dead_letters set payload = null",
            "reason in ('future', 'late') and payload is not null",
        ),
    ] {
        let statement = format!(
            "{what} where ctid = any(array(
                 select ctid from sessionizer.dead_letters
                 where job = $1 and read_at < now() - $2::int8 * interval '1 ms' and {select}
                 limit $3))"
        );
        while go_on() {
            let batch = one_batch(&mut client, &statement, &config.job, keep_ms)?;
            if what.starts_with("delete") {
                removed += batch;
            }
            if batch < BATCH as u64 {
                break;
            }
        }
    }
    Ok(removed)
}

fn one_batch(
    client: &mut Client,
    statement: &str,
    job: &str,
    keep_ms: i64,
) -> Result<u64, LedgerError> {
    client
        .execute(statement, &[&job, &keep_ms, &BATCH])
        .map_err(|why| classify(&why, "removing old dead letters"))
}
