//! What a start needs and Kafka no longer has: finds it, and has it accepted or refuses to start.

use log::warn;
use sessionizer_core::binding::{Binding, Offset, Partition, Status};
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::plan::RecoveryPlan;

use crate::config::Config;
use crate::dataflow::ports::LedgerError;
use crate::job::recover::last_binding;
use crate::ledger;
use crate::ledger::Loss;
use crate::ui::text::plural;

/// A topic never loses partitions: if it has fewer than the job has read, it was deleted and
/// created again. The missing ones are not read, and the watermark does not wait for them. Returns
/// the losses, without those that an earlier start has accepted. `counts` are the numbers of
/// partitions, by topic.
pub(super) fn retire_what_is_gone(plan: &mut RecoveryPlan, counts: &[i32]) -> Vec<Loss> {
    let mut losses = Vec::new();
    for part in plan.partitions.iter_mut().filter(|part| !part.retired) {
        let Partition { topic, number } = part.start.partition;
        let count = counts[usize::from(topic)];
        if number < count {
            continue;
        }
        let last = last_binding(part, &plan.replay);
        let now = plan.topic_ids[usize::from(topic)];
        // Accepting the loss binds an end and the new topic's id to the partition.
        let accepted = match now.zip(last.topic_id) {
            Some((now, then)) => now == then,
            None => last.status == Status::Ended,
        };
        part.retired = true;
        // If the new topic ever gets such a partition, it is read from the beginning.
        part.restart = Some(Offset::ZERO);
        if accepted {
            continue;
        }
        losses.push(Loss {
            topic: plan.topics[usize::from(topic)].clone(),
            partition: number,
            from: part.start.end,
            to: None,
            read_to: last.end,
            available: None,
            reason: format!(
                "the topic was deleted and created again with {}",
                plural(count as u64, "partition")
            ),
        });
    }
    losses
}

/// Finds what a partition needs but Kafka no longer has. `from` is where reading begins, `last` the
/// last binding; Kafka has the offsets from `oldest` to `end`. `same` says whether the topic is
/// still the one that was bound.
pub(super) fn find_loss(
    topic: &str,
    (from, last): (Offset, &Binding),
    (oldest, end): (Offset, Offset),
    same: Option<bool>,
) -> Option<Loss> {
    // Nobody knows how long a deleted topic was.
    let (from, to, reason) = if same == Some(false) {
        (from, None, "the topic was deleted and created again")
    } else if end < last.end && same.is_none() {
        (from, None, "the topic was deleted and created again, or its end was lost")
    } else if end < last.end {
        (end, Some(last.end), "the end of the log was lost (an unclean leader election?)")
    } else if from < oldest {
        (from, Some(oldest), "retention has deleted the records in between")
    } else {
        return None;
    };
    let (topic, partition) = (topic.to_owned(), last.partition.number);
    let (available, reason) = (Some((oldest, end)), reason.to_owned());
    Some(Loss { topic, partition, from, to, read_to: last.end, available, reason })
}

/// Records the losses, or refuses to start.
pub(super) fn accept(
    plan: &mut RecoveryPlan,
    config: &Config,
    losses: &[Loss],
) -> Result<(), Fault> {
    if !config.accept_lost_offsets {
        return Err(refuse(losses));
    }
    let places = places(losses);
    warn!("continuing without what is lost (--accept-lost-offsets): {places}");
    let newest = ledger::accept_losses(&config.ledger, losses, plan.first_epoch);
    plan.lost_before = Some(newest.map_err(|error| match error {
        LedgerError::Fatal(fault) => fault,
        LedgerError::Retry(why) => Fault::environment(format!("cannot note what is lost: {why}")),
    })?);
    Ok(())
}

fn places(losses: &[Loss]) -> String {
    let places: Vec<String> = losses.iter().map(ToString::to_string).collect();
    places.join("; ")
}

pub(super) fn refuse(losses: &[Loss]) -> Fault {
    let problem = format!("{}. What is in Postgres stays right", places(losses));
    let remedy = "Start with --accept-lost-offsets to continue without them (the loss is counted \
                  in sessionizer.balance), or begin afresh with what is there: `sessionizer reset` \
                  removes the job and its rows";
    Fault::config(Message::new(problem).remedy(". ", remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_and_gone_is_reported_with_both_ends() {
        let partition = Partition { topic: 0, number: 3 };
        let at = Offset::new;
        let last = Binding { end: at(9), ..Binding::initial(partition, Offset::ZERO) };
        let find = |from, (oldest, end), same| {
            find_loss("t", (at(from), &last), (at(oldest), at(end)), same)
        };
        let same = Some(true);
        assert_eq!(find(5, (5, 9), same), None);
        assert_eq!(find(9, (9, 9), None), None);
        let gone = find(4, (5, 9), same).expect("retention");
        assert_eq!((gone.from, gone.to, gone.read_to), (at(4), Some(at(5)), at(9)));
        let text = gone.to_string();
        assert!(text.contains("t[3]") && text.contains("offset 4") && text.contains("5 to 9"));
        for (available, same) in [((0, 8), None), ((0, 20), Some(false))] {
            let gone = find(4, available, same).expect("created again");
            assert_eq!(gone.to, None);
            assert!(gone.to_string().contains("created again"));
        }
        let cut = find(4, (0, 8), same).expect("the end is gone");
        assert_eq!((cut.from, cut.to, cut.read_to), (at(8), Some(at(9)), at(9)));
        assert!(cut.to_string().contains("offset 9, but Kafka has 0 to 8: the end"));
    }
}
