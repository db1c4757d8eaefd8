//! The records of one partition, fetched from librdkafka in batches.
//!
//! One call to librdkafka returns up to [`BATCH`] records. One by one, each record would cost a
//! call, an event of its own and two reads of the clock: 2.6 CPU seconds for two million records
//! instead of 2.0 (docs/DECISIONS.md). The safe interface has no such call, so this module owns the
//! unsafe code for it. Records are borrowed, and freed when the reader moves past them. The module
//! does not know which offsets are wanted.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::ptr;
use std::sync::Arc;

use rdkafka::bindings as c;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use sessionizer_core::binding::Offset;

use crate::dataflow::ports::Record;

/// The most records that one call fetches: enough to make the call cheap, few enough that they are
/// still in the cache when they are read.
const BATCH: usize = 1_024;
/// Roughly the most bytes that one call fetches: records taken out of the queue no longer count
/// towards its limit.
const BATCH_BYTES: usize = 512 * 1_024;
/// The minimum number of records that one call asks for, however large they are.
const MIN_BATCH: usize = 4;

/// What comes next in a partition.
pub enum NextItem<'a> {
    Record(Record<'a>),
    /// The broker reports that no record follows at or after this offset. Transaction markers,
    /// which are not records, may lie before it.
    End(Offset),
    Failed(RDKafkaErrorCode),
}

/// The queue of one partition, and the messages taken out of it.
pub struct Batches<C: ConsumerContext + 'static> {
    consumer: Arc<BaseConsumer<C>>,
    topic: CString,
    partition: i32,
    /// Keeps the callback alive for as long as `native` is used.
    _queue: PartitionQueue<C>,
    native: *mut c::rd_kafka_queue_t,
    /// We own those from `next` up to `fetched`: each is destroyed once, in `pass`.
    messages: Box<[*mut c::rd_kafka_message_t; BATCH]>,
    next: usize,
    fetched: usize,
    /// How many to fetch with the next call.
    want: usize,
    /// Kafka's timestamps of the first and the last message of the last fetch.
    stamps: Option<(i64, i64)>,
}

// SAFETY: librdkafka's queues and messages belong to no thread. Any thread may use and destroy
// them, one at a time, which `&mut self` guarantees.
unsafe impl<C: ConsumerContext + 'static> Send for Batches<C> {}

impl<C: ConsumerContext + 'static> Batches<C> {
    /// Splits off the queue of a partition. Call this before assigning the partition, or its first
    /// records could arrive on the common queue. `None` if librdkafka has no queue for it.
    pub fn split(
        consumer: &Arc<BaseConsumer<C>>,
        topic: &str,
        partition: i32,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Option<Self> {
        let mut queue = consumer.split_partition_queue(topic, partition)?;
        queue.set_nonempty_callback(wake);
        let topic = CString::new(topic).ok()?;
        let client = consumer.client().native_ptr();
        // SAFETY: the client and the name outlive the call. The handle is a reference of its own to
        // the queue, released once, in `drop`.
        let native = unsafe { c::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition) };
        let messages = Box::new([ptr::null_mut(); BATCH]);
        (!native.is_null()).then(|| Batches {
            consumer: Arc::clone(consumer),
            topic,
            partition,
            _queue: queue,
            native,
            messages,
            next: 0,
            fetched: 0,
            want: MIN_BATCH,
            stamps: None,
        })
    }

    /// Returns what comes next, without waiting; the same again until [`Self::pass`].
    pub fn peek(&mut self) -> Option<NextItem<'_>> {
        if self.next == self.fetched {
            self.fetch();
        }
        let message = *self.messages[..self.fetched].get(self.next)?;
        // SAFETY: we own the messages from `next` up to `fetched`, they are not destroyed, and the
        // borrow of `self` ends before they can be. librdkafka returns no null message. The payload
        // is null, or `len` bytes that live as long as the message.
        let (error, offset, payload) = unsafe {
            let message = &*message;
            let bytes = message.payload.cast::<u8>().cast_const();
            let payload =
                (!bytes.is_null()).then(|| std::slice::from_raw_parts(bytes, message.len));
            (message.err, Offset::new(message.offset), payload)
        };
        Some(match error {
            c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {
                NextItem::Record(Record { offset, payload })
            }
            c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PARTITION_EOF => NextItem::End(offset),
            error => NextItem::Failed(error.into()),
        })
    }

    /// Whether a fetched message has not been passed yet.
    pub fn holds(&self) -> bool {
        self.next < self.fetched
    }

    /// Returns where the partition ended according to the last fetch response; sends no request.
    pub fn known_end(&self) -> Option<Offset> {
        let (mut low, mut high) = (-1, -1);
        // SAFETY: the consumer and the name outlive the call, which writes to the two numbers.
        let error = unsafe {
            c::rd_kafka_get_watermark_offsets(
                self.consumer.client().native_ptr(),
                self.topic.as_ptr(),
                self.partition,
                &raw mut low,
                &raw mut high,
            )
        };
        let known = error == c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0;
        known.then_some(Offset::new(high))
    }

    /// Returns how far this partition has been read, by Kafka's timestamps. This is approximate:
    /// only the first and the last message of a fetch are asked for theirs.
    pub fn read_up_to_ms(&self) -> Option<i64> {
        self.stamps.map(|(first, last)| if self.holds() { first } else { last })
    }

    /// Moves past what [`Self::peek`] returned.
    pub fn pass(&mut self) {
        assert!(self.next < self.fetched, "a message was fetched");
        // SAFETY: we own it, and `next` moves past it, so it is never used again.
        unsafe { c::rd_kafka_message_destroy(self.messages[self.next]) };
        self.next += 1;
    }

    fn fetch(&mut self) {
        // SAFETY: we own the queue until `drop`, and the array has room for `BATCH` pointers, which
        // `want` never exceeds.
        let count = unsafe {
            c::rd_kafka_consume_batch_queue(self.native, 0, self.messages.as_mut_ptr(), self.want)
        };
        self.next = 0;
        self.fetched = usize::try_from(count).unwrap_or(0);
        if let [first, .., last] | [first @ last] = self.messages[..self.fetched] {
            // SAFETY: both have just been fetched and are not destroyed yet.
            let (first, last) = unsafe { (timestamp(first), timestamp(last)) };
            self.stamps = first.zip(last).or(self.stamps);
        }
        let mut bytes = 0;
        for message in &self.messages[..self.fetched] {
            // SAFETY: the messages have just been fetched and are not destroyed yet.
            bytes += unsafe { (**message).len };
        }
        if let Some(each) = bytes.checked_div(self.fetched) {
            let want = BATCH_BYTES.checked_div(each).unwrap_or(BATCH);
            self.want = want.min(self.want * 4).clamp(MIN_BATCH, BATCH);
        }
    }
}

/// The timestamp of a message, in milliseconds since 1970; `None` if it has none, such as an event
/// that is not a record.
///
/// # Safety
/// The message is not destroyed.
unsafe fn timestamp(message: *const c::rd_kafka_message_t) -> Option<i64> {
    let mut kind = c::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    // SAFETY: the caller's promise; the call writes to `kind`.
    let stamp = unsafe { c::rd_kafka_message_timestamp(message, &raw mut kind) };
    (stamp >= 0).then_some(stamp)
}

impl<C: ConsumerContext + 'static> Drop for Batches<C> {
    fn drop(&mut self) {
        while self.next < self.fetched {
            self.pass();
        }
        // SAFETY: this releases the reference taken in `split`; `_queue` and the consumer are
        // dropped after it.
        unsafe { c::rd_kafka_queue_destroy(self.native) };
    }
}
