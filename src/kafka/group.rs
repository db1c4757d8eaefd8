//! The committed offsets of a consumer group: where another job of that group has stopped.

use std::collections::BTreeMap;
use std::ops::ControlFlow::{Break, Continue};
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset as RdOffset, TopicPartitionList};
use sessionizer_core::binding::Offset;
use sessionizer_core::fault::Fault;

use crate::kafka::{Admin, REQUEST_TIMEOUT, RETRY_PAUSE, refused};
use crate::retry;

/// The metadata of an offset that this program has committed begins with this, followed by the name
/// of the job. At such an offset, sessions may be open that another job does not know.
const MARK: &str = "sessionizer";

/// The metadata that a job commits with its offsets.
pub(super) fn mark(job: &str) -> String {
    format!("{MARK} {job}")
}

/// A committed offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupOffset {
    /// The next record to read.
    pub offset: Offset,
    /// Whether this program committed it, for tools that show lag, rather than the job before it.
    pub ours: bool,
}

/// Who has committed an offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Committer {
    ThisJob,
    AnotherJob,
    AnotherProgram,
}

/// By topic and partition: an offset, and who has committed it.
pub type OffsetsBy = BTreeMap<(String, i32), (Offset, Committer)>;

/// By topic and partition.
pub type CommittedOffsets = BTreeMap<(String, i32), GroupOffset>;

/// The same, with the metadata of each offset.
type Marked = BTreeMap<(String, i32), (Offset, String)>;

impl Admin {
    /// Returns the committed offsets of a group; partitions without one are left out.
    /// `Ok(None)`: this login may not read them.
    pub fn committed(
        &self,
        group: &str,
        partitions: &[(String, i32)],
        timeout: Duration,
    ) -> Result<Option<CommittedOffsets>, Fault> {
        let ours = |metadata: &str| metadata.split(' ').next() == Some(MARK);
        let found = self.marked(group, partitions, timeout)?;
        Ok(found.map(|found| {
            let committed = |(place, (offset, metadata)): (_, (_, String))| {
                (place, GroupOffset { offset, ours: ours(&metadata) })
            };
            found.into_iter().map(committed).collect()
        }))
    }

    /// Returns the offsets of a group, and whose they are, as a job sees it.
    pub fn committed_by(
        &self,
        (group, job): (&str, &str),
        partitions: &[(String, i32)],
        timeout: Duration,
    ) -> Result<OffsetsBy, Fault> {
        let found = self.marked(group, partitions, timeout)?.unwrap_or_default();
        let with_committer = |(place, (offset, metadata)): (_, (Offset, String))| {
            let committer = match metadata.split(' ').next() {
                _ if metadata == mark(job) => Committer::ThisJob,
                Some(MARK) => Committer::AnotherJob,
                _ => Committer::AnotherProgram,
            };
            (place, (offset, committer))
        };
        Ok(found.into_iter().map(with_committer).collect())
    }

    fn marked(
        &self,
        group: &str,
        partitions: &[(String, i32)],
        timeout: Duration,
    ) -> Result<Option<Marked>, Fault> {
        let mut client = self.config.client();
        client.set("group.id", group).set("allow.auto.create.topics", "false");
        client.set("enable.auto.commit", "false");
        let consumer: BaseConsumer<_> =
            BaseConsumer::from_config_and_context(&client, self.context.clone())
                .map_err(|why| refused(&self.config, &why))?;
        let ask = || {
            let mut wanted = TopicPartitionList::new();
            for (topic, partition) in partitions {
                wanted.add_partition(topic, *partition);
            }
            match consumer.committed_offsets(wanted, REQUEST_TIMEOUT) {
                Ok(found) => Break(Some(found)),
                Err(why) if is_denied(&why) => Break(None),
                Err(why) => Continue(why),
            }
        };
        let found = retry::until(timeout, RETRY_PAUSE, ask).map_err(|why| {
            Fault::environment(format!(
                "Kafka at {} does not say which offsets the consumer group {group} has \
                 committed: {why}",
                self.config.brokers
            ))
        })?;
        let Some(found) = found else { return Ok(None) };
        let mut committed = BTreeMap::new();
        for element in found.elements() {
            if let Err(why) = element.error() {
                if is_denied(&why) {
                    return Ok(None);
                }
                return Err(Fault::environment(format!(
                    "Kafka at {} does not say which offset of {}[{}] the consumer group {group} \
                     has committed: {why}",
                    self.config.brokers,
                    element.topic(),
                    element.partition()
                )));
            }
            if let RdOffset::Offset(offset) = element.offset() {
                let place = (element.topic().to_owned(), element.partition());
                committed.insert(place, (Offset::new(offset), element.metadata().to_owned()));
            }
        }
        Ok(Some(committed))
    }
}

fn is_denied(why: &KafkaError) -> bool {
    why.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed)
}
