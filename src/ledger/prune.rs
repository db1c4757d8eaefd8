//! Deletes old dead letters in batches, alongside the commits and never inside one.
//!
//! The counts stay: the balance adds up what the commits have recorded, not rows. The audit needs
//! the positions of dead letters that do decode (late and future events), so those lose only their
//! payload.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use log::{debug, info, warn};
use postgres::Client;

use crate::dataflow::ports::LedgerError;
use crate::ledger::LedgerConfig;
use crate::ledger::connect::connect;
use crate::ledger::errors::classify;
use crate::ui::text::{duration, plural};

/// How many to delete in one transaction, to keep it short.
const BATCH: i64 = 5_000;
/// The bounds of the interval at which old dead letters are looked for: a fraction of how long they
/// are kept.
const CHECK_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3_600));
/// When to look for the first time, and the pause between two batches.
const FIRST_CHECK_DELAY: Duration = Duration::from_secs(60);
const BATCH_PAUSE: Duration = Duration::from_millis(50);

/// Deletes old dead letters from time to time, until the returned sender is dropped.
pub fn keep_dead_letters(config: &LedgerConfig, keep: Duration) -> Sender<()> {
    let (running, over) = channel::<()>();
    let config = config.clone();
    let every = (keep / 20).clamp(CHECK_INTERVAL.0, CHECK_INTERVAL.1);
    let work = move || {
        let wait = |long| over.recv_timeout(long) == Err(RecvTimeoutError::Timeout);
        let mut failing = false;
        let mut next = every.min(FIRST_CHECK_DELAY);
        while wait(next) {
            next = every;
            match prune(&config, keep, || wait(BATCH_PAUSE)) {
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

/// Deletes dead letters older than `keep`, and asks `go_on` before each batch. Returns how many
/// were deleted.
fn prune(
    config: &LedgerConfig,
    keep: Duration,
    mut go_on: impl FnMut() -> bool,
) -> Result<u64, LedgerError> {
    let mut client = connect(config)?;
    // Do not wait long for a lock on the table: others would queue behind us in turn.
    client
        .batch_execute("set lock_timeout to '5s'")
        .map_err(|why| classify(&why, "removing old dead letters"))?;
    let keep_ms = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
    let mut removed = 0;
    for (removes, what, select) in [
        (true, "delete from sessionizer.dead_letters", "reason not in ('future', 'late')"),
        (
            false,
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
            if removes {
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
