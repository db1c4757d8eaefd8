//! Warnings of a reader that has come to a standstill: what waits, and for whom. Nothing here
//! decides what is read in which epoch.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use sessionizer_core::binding::{Offset, Partition};
use sessionizer_core::epoch_clock::HumanDuration;

use crate::dataflow::ports::Feed;
use crate::dataflow::source::partition::ReadProgress;
use crate::dataflow::source::reader::Reader;

/// Partitions of which nothing has come for too long: what of them waits, and for how many
/// milliseconds.
#[derive(Default)]
pub(super) struct Standstill {
    /// May have more to read, and do not move.
    pub(super) stuck: Vec<(Partition, Offset, u64)>,
    /// Open transactions hold back these offsets.
    pub(super) held_back: Vec<(Partition, Range<Offset>, u64)>,
}

impl<F: Feed> Reader<F> {
    /// Notes whether a partition has come to a standstill. `away` says whether Kafka is.
    pub(super) fn watch(
        &mut self,
        at: usize,
        progress: &ReadProgress,
        (now_ms, away): (u64, bool),
        standstill: &mut Standstill,
    ) {
        let ReadProgress { position, ended, reads, quiet_ms_ago } = *progress;
        let part = &mut self.parts[at];
        let partition = part.generator.bound().partition;
        // A reader that may not read does not wait for more, nor does one that waits for Kafka.
        let may_read = self.pause.left() > 0 && !away;
        let waits = reads && !ended && quiet_ms_ago.is_none() && may_read;
        if let Some(ms) = part.watchdog.look(waits.then_some(position), now_ms) {
            standstill.stuck.push((partition, position, ms));
        }
        let held = (reads && !ended).then(|| self.feed.held_by_transaction(partition)).flatten();
        if let Some(ms) = part.transaction.look(held.map(|_| position), now_ms) {
            standstill.held_back.push((partition, position..held.unwrap_or(position), ms));
        }
    }

    /// Warns that epochs are cut but do not become durable, and says whom they wait for.
    pub(super) fn warn_nothing_durable(&self, for_ms: u64) {
        let failing = crate::ui::waiting::all().into_iter();
        let failing = failing.filter(|wait| wait.retries && wait.what.is_postgres());
        let refuses = failing.map(|wait| wait.why.unwrap_or_else(|| "no answer".to_owned())).next();
        let waits_for = match (refuses, self.run_state.metrics.writers_committing.load(Relaxed)) {
            (Some(why), _) => format!("Postgres, which fails: {why}"),
            (None, 0) if self.config.processes > 1 => {
                "another process, or for sessions of this one".to_owned()
            }
            (None, 0) => "another worker of this process".to_owned(),
            (None, _) => "Postgres: a commit is under way".to_owned(),
        };
        log::warn!(
            "nothing has become durable for {}: the job waits for {waits_for}. Nothing is lost; \
             reading stops meanwhile{}",
            HumanDuration(for_ms),
            self.pause.explain()
        );
    }

    /// Warns that these partitions do not move although they may have more to read, and fetches
    /// them again.
    pub(super) fn warn_stuck(&mut self, stuck: &[(Partition, Offset, u64)]) {
        let Some((partition, position, for_ms)) = stuck.first() else { return };
        if crate::ui::waiting::waits_for_kafka() {
            return; // That has been reported, and it is the cause.
        }
        let others = match stuck.len() - 1 {
            0 => String::new(),
            others => format!(" ({others} other partitions as well)"),
        };
        log::warn!(
            topic = self.plan.topic(*partition),
            partition = partition.number,
            offset = position.get();
            "{}[{}]: nothing has come for {}, and offset {position} is not known to be its \
             end{others}: the broker does not answer, the partition has no leader, or a record \
             cannot be fetched. It is fetched again; the watermark waits for it",
            self.plan.topic(*partition),
            partition.number,
            HumanDuration(*for_ms)
        );
        for (partition, ..) in stuck {
            self.feed.fetch_again(*partition);
        }
    }

    /// Warns that open transactions hold back records of these partitions.
    pub(super) fn warn_held_back(&self, held: &[(Partition, Range<Offset>, u64)]) {
        let Some((partition, offsets, for_ms)) = held.first() else { return };
        let others = match held.len() - 1 {
            0 => String::new(),
            others => format!(" ({others} other partitions as well)"),
        };
        log::warn!(
            topic = self.plan.topic(*partition),
            partition = partition.number,
            offset = offsets.start.get();
            "{}[{}]: an open transaction has held back offsets {} up to {} for {}{others}: Kafka \
             delivers nothing after its beginning until its producer commits or aborts, or its \
             transaction.timeout.ms has passed. The watermark waits for it. \
             `kafka-transactions.sh describe-producers --topic {} --partition {}` shows where it \
             began, and `abort` with that --start-offset ends it",
            self.plan.topic(*partition),
            partition.number,
            offsets.start,
            offsets.end,
            HumanDuration(*for_ms),
            self.plan.topic(*partition),
            partition.number
        );
    }
}
