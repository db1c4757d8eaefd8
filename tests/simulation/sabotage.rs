//! Broken rules: each shows that a schedule notices when the protocol is violated.
//!
//! Rules are broken in what surrounds the operators (the ledger, the feed, the plan, the clock),
//! never in the operators themselves. Rules inside them were broken by hand; the README.md next to
//! this file lists both.

use sessionizer::ledger::RecoveredState;
use sessionizer_core::binding::Status;
use sessionizer_core::plan::{RecoveryPlan, ShardProgress};
use sessionizer_core::session::{Open, SessionTable};
use sessionizer_core::time::{Epoch, EventTime};

use crate::ledger::gap;
use crate::{processors, schedule, witness};

/// How many schedules a broken rule may survive.
const SEEDS: u64 = 300;

/// A rule of the protocol that is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sabotage {
    NoFence,
    RunsNotTold,
    FenceDoesNotWait,
    NoIdempotence,
    ProgressForgotten,
    LostReplyIsFailure,
    LostReplyIsSuccess,
    ProgressDoesNotWait,
    SaidAndNotDone,
    RowsWithoutProgress,
    ProgressWithoutRows,
    DeadLettersWithoutProgress,
    TotalsWithoutProgress,
    ProgressWithoutTotals,
    SnapshotsWithoutProgress,
    SnapshotsUnderTheEndOfTheirRun,
    BindingsOfTheFirstWriterOnly,
    BindingsOfOnePartitionOnly,
    SilentEpochsUnbound,
    BindingsTrimmedTooEarly,
    EpochsTrimmedTooEarly,
    LastBindingTrimmed,
    EpochsGoBack,
    AnotherPromiseInTheReplay,
    BaseWatermarkForgotten,
    IdlenessForgotten,
    RulesForgotten,
    ClockForgotten,
    ReplayJudgedByTheClockOfToday,
    FutureJudgedByTheEpoch,
    EpochsWaitForTheWallClock,
    EpochsFollowTheWallClock,
    EveryProcessHasItsOwnEpochs,
    ReplayFromTheLastBinding,
    ReplayToThePresentEnd,
    PositionSkipsARecord,
    NewPartitionFromItsEnd,
    CaughtUpTooSoon,
    StaleEndBelieved,
    AnswerCountsAsOfItsArrival,
    OpenTransactionIsSilence,
    EndsForgotten,
    HorizonForgotten,
    LatenessForgotten,
    NoClosure,
    RowsLookedUpTooNarrowly,
    CorrectedRowsStay,
    LateBeforeOnTime,
    MemoryNeverReleased,
    PastOfAnotherMoment,
    PastMissesARow,
    PastIsReadTwice,
    ForgottenStaysOpen,
    ForgottenOffsetsNotNoted,
    RedrivenLetterStays,
    RedrivenMergedTwice,
    CutLettersNotReadAgain,
    ForgottenLettersMerged,
}

impl Sabotage {
    /// Whether the rule is one of the statistics.
    pub fn is_of_statistics(self) -> bool {
        use Sabotage::{PastIsReadTwice, PastMissesARow, PastOfAnotherMoment};
        matches!(self, PastOfAnotherMoment | PastMissesARow | PastIsReadTwice)
    }

    /// Whether the rule is one of the commands that change a stopped job.
    pub fn is_of_commands(self) -> bool {
        use Sabotage::{CutLettersNotReadAgain, ForgottenLettersMerged};
        use Sabotage::{ForgottenOffsetsNotNoted, ForgottenStaysOpen};
        use Sabotage::{RedrivenLetterStays, RedrivenMergedTwice};
        let forget = matches!(self, ForgottenStaysOpen | ForgottenOffsetsNotNoted);
        let redrive = matches!(self, RedrivenLetterStays | RedrivenMergedTwice);
        let cut = matches!(self, CutLettersNotReadAgain | ForgottenLettersMerged);
        forget || redrive || cut
    }
}

/// What happens when each rule is broken.
const RULES: &[(Sabotage, &str)] = &[
    (Sabotage::NoFence, "commits of an older generation are taken"),
    (Sabotage::RunsNotTold, "two starts of one generation are taken for the same"),
    (Sabotage::FenceDoesNotWait, "a commit in flight goes in after the fence was taken"),
    (Sabotage::NoIdempotence, "a commit is taken whatever the shard's epoch is, and reported lost"),
    (Sabotage::ProgressForgotten, "a restart suppresses nothing"),
    (Sabotage::LostReplyIsFailure, "a lost reply is taken for a failure"),
    (Sabotage::LostReplyIsSuccess, "a lost reply is taken for a success"),
    (Sabotage::ProgressDoesNotWait, "progress is read while the commit is still under way"),
    (Sabotage::SaidAndNotDone, "a commit is acknowledged and lost"),
    (Sabotage::RowsWithoutProgress, "rows go in, progress does not"),
    (Sabotage::ProgressWithoutRows, "progress goes in, rows do not"),
    (Sabotage::DeadLettersWithoutProgress, "dead letters go in, progress does not"),
    (Sabotage::TotalsWithoutProgress, "totals and bindings go in, progress does not"),
    (Sabotage::ProgressWithoutTotals, "progress goes in, totals and bindings do not"),
    (Sabotage::SnapshotsWithoutProgress, "snapshots go in, progress does not"),
    (Sabotage::SnapshotsUnderTheEndOfTheirRun, "a snapshot is filed under the last epoch of a run"),
    (Sabotage::BindingsOfTheFirstWriterOnly, "only one writer brings bindings"),
    (Sabotage::BindingsOfOnePartitionOnly, "only one partition's bindings are kept"),
    (Sabotage::SilentEpochsUnbound, "epochs in which nothing came are not replayed"),
    (Sabotage::BindingsTrimmedTooEarly, "bindings are trimmed up to the newest snapshot"),
    (Sabotage::EpochsTrimmedTooEarly, "epochs are trimmed up to the newest snapshot"),
    (Sabotage::LastBindingTrimmed, "a partition's last binding is trimmed with its epoch"),
    (Sabotage::EpochsGoBack, "the first epoch is the clock's, which was set back"),
    (Sabotage::AnotherPromiseInTheReplay, "the replay makes the promises of the present"),
    (Sabotage::BaseWatermarkForgotten, "the watermark at the base is forgotten"),
    (Sabotage::RulesForgotten, "an epoch is read again under the rules of today"),
    (Sabotage::ClockForgotten, "the replay judges the future by the epoch"),
    (Sabotage::ReplayJudgedByTheClockOfToday, "the replay judges the future by today's clock"),
    (Sabotage::FutureJudgedByTheEpoch, "the future is judged by the epoch, not by the clock"),
    (Sabotage::EpochsWaitForTheWallClock, "an epoch ends when the wall clock has passed it"),
    (Sabotage::EpochsFollowTheWallClock, "epochs follow the wall clock forward and back"),
    (Sabotage::EveryProcessHasItsOwnEpochs, "each process begins with the epoch of its own clock"),
    (Sabotage::IdlenessForgotten, "who was idle at the base is forgotten"),
    (Sabotage::ReplayFromTheLastBinding, "reading begins at the last binding, not at the base"),
    (Sabotage::ReplayToThePresentEnd, "the replay reads to the present end"),
    (Sabotage::PositionSkipsARecord, "the feed's position skips a record"),
    (Sabotage::NewPartitionFromItsEnd, "a partition that appears is read from its end"),
    (Sabotage::CaughtUpTooSoon, "the feed is caught up with what it has not read"),
    (Sabotage::StaleEndBelieved, "an end counts as of when it is handled, not when it was fetched"),
    (
        Sabotage::AnswerCountsAsOfItsArrival,
        "an answer counts as of when it comes, not its question",
    ),
    (
        Sabotage::OpenTransactionIsSilence,
        "records that an open transaction holds back are taken for none",
    ),
    (Sabotage::EndsForgotten, "the replay does not know which partitions had ended"),
    (Sabotage::HorizonForgotten, "the horizon is not in the snapshot"),
    (Sabotage::LatenessForgotten, "that a session is late is not in the snapshot"),
    (Sabotage::NoClosure, "late sessions are merged one by one with the rows as they were"),
    (Sabotage::RowsLookedUpTooNarrowly, "rows exactly a gap away are not looked up"),
    (Sabotage::CorrectedRowsStay, "corrected rows are not deleted"),
    (Sabotage::LateBeforeOnTime, "late sessions look up rows before the run's rows are in"),
    (Sabotage::MemoryNeverReleased, "memory is used up and never released"),
    (Sabotage::PastOfAnotherMoment, "the statistics begin with the table of a later moment"),
    (Sabotage::PastMissesARow, "a row of the start is missing in the statistics"),
    (Sabotage::PastIsReadTwice, "the rows of the start are in the statistics twice"),
    (Sabotage::ForgottenStaysOpen, "a forgotten visitor stays in the snapshots"),
    (Sabotage::ForgottenOffsetsNotNoted, "up to where a visitor was forgotten is not noted"),
    (Sabotage::RedrivenLetterStays, "a dead letter that was merged again is not deleted"),
    (Sabotage::RedrivenMergedTwice, "a dead letter is merged twice"),
    (Sabotage::CutLettersNotReadAgain, "a payload that was cut is not read again"),
    (Sabotage::ForgottenLettersMerged, "a cut dead letter of a forgotten visitor is merged"),
];

/// Changes what a start reads as the broken rule demands.
pub fn durable(sabotage: Option<Sabotage>, durable: &mut RecoveredState, wall_ms: u64) {
    match sabotage {
        Some(Sabotage::ClockForgotten | Sabotage::ReplayJudgedByTheClockOfToday) => {
            let today = sabotage == Some(Sabotage::ReplayJudgedByTheClockOfToday);
            for binding in durable.replay.iter_mut().flat_map(|e| &mut e.bindings) {
                binding.clock_ms = today.then_some(wall_ms);
            }
        }
        Some(Sabotage::BaseWatermarkForgotten) => durable.base.watermark = EventTime::NEVER,
        Some(Sabotage::EndsForgotten) => {
            for binding in durable.replay.iter_mut().flat_map(|e| &mut e.bindings) {
                if binding.status == Status::Ended {
                    (binding.status, binding.quiet_since) = (Status::Active, 0);
                }
            }
        }
        Some(Sabotage::SilentEpochsUnbound) => {
            durable.replay.retain(|bound| !bound.bindings.is_empty());
        }
        Some(Sabotage::IdlenessForgotten) => {
            for binding in &mut durable.base.bindings {
                (binding.status, binding.quiet_since) = (Status::Active, 0);
            }
        }
        Some(Sabotage::AnotherPromiseInTheReplay | Sabotage::ReplayFromTheLastBinding) => {
            let bound: Vec<_> = durable.replay.iter().flat_map(|e| e.bindings.clone()).collect();
            let newest = |partition| bound.iter().rfind(|b| b.partition == partition);
            if sabotage == Some(Sabotage::ReplayFromTheLastBinding) {
                for binding in &mut durable.base.bindings {
                    binding.end = newest(binding.partition).map_or(binding.end, |b| b.end);
                }
            } else {
                for binding in durable.replay.iter_mut().flat_map(|e| &mut e.bindings) {
                    binding.promise = newest(binding.partition).expect("itself").promise;
                }
            }
        }
        _ => {}
    }
}

/// Changes the plan as the broken rule demands; `first` is the wall clock.
pub fn plan(sabotage: Option<Sabotage>, plan: &mut RecoveryPlan, first: Epoch) {
    match sabotage {
        Some(Sabotage::EpochsGoBack) => plan.first_epoch = first,
        Some(Sabotage::ProgressForgotten) => plan.progress.fill(ShardProgress::default()),
        _ => {}
    }
}

/// Changes a loaded shard as the broken rule demands.
pub fn table(sabotage: Option<Sabotage>, table: SessionTable) -> SessionTable {
    let (horizon, forgets) = match sabotage {
        Some(Sabotage::HorizonForgotten) => (EventTime::NEVER, false),
        Some(Sabotage::LatenessForgotten) => (table.horizon(), true),
        _ => return table,
    };
    let open = table.open().map(|open| Open { late: open.late && !forgets, ..open });
    SessionTable::restore(gap(), horizon, open)
}

#[test]
fn every_broken_rule_is_caught() {
    let some = |first, step| RULES.iter().skip(first).step_by(step).map(tried).collect();
    let parts: Vec<Vec<Option<(u64, String)>>> = processors::on_each(some);
    let mut escaped = Vec::new();
    for (index, (_, rule)) in RULES.iter().enumerate() {
        match &parts[index % parts.len()][index / parts.len()] {
            Some((seed, said)) => println!("| {rule} | {seed} | {said} |"),
            None => escaped.push(rule),
        }
    }
    assert!(escaped.is_empty(), "in {SEEDS} schedules nobody noticed that {escaped:?}");
}

/// The first schedule that notices that a rule is broken, and what it says.
fn tried((sabotage, _): &(Sabotage, &str)) -> Option<(u64, String)> {
    (0..SEEDS).find_map(|seed| {
        let result = witness::of(|| schedule::run(seed, Some(*sabotage)));
        Some((seed, result.err()?))
    })
}
