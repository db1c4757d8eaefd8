//! The records of one partition, fetched from librdkafka many at a time.
//!
//! One call of librdkafka hands out up to [`BATCH`] records; one by one each would cost a call, an
//! event of its own and two looks at the clock: 2.6 CPU seconds for two million records where this
//! takes 2.0 (docs/DECISIONS.md). The safe interface has no such call, so this room
//! holds it. What comes out is borrowed and goes when it is passed over. It knows nothing of
//! offsets that are wanted or not.
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

/// How many records one call fetches at most: enough to make the call cheap, few enough that they
/// are still in the cache when their turn comes.
const BATCH: usize = 1_024;
/// And about how many bytes, for what has been fetched does not count in the queue any more.
const BATCH_BYTES: usize = 512 * 1_024;
/// At least so many, however large they are.
const LEAST: usize = 4;

/// What comes next in a partition.
pub enum Next<'a> {
    Record(Record<'a>),
    /// The broker says that nothing lies behind this offset. Markers of transactions lie before
    /// it that are no records.
    End(Offset),
    Failed(RDKafkaErrorCode),
}

/// A queue of one partition and what has been taken out of it.
pub struct Batches<C: ConsumerContext + 'static> {
    consumer: Arc<BaseConsumer<C>>,
    topic: CString,
    partition: i32,
    /// Keeps the callback for as long as `native` is used.
    _queue: PartitionQueue<C>,
    native: *mut c::rd_kafka_queue_t,
    /// Those from `next` up to `fetched` are ours: each is destroyed once, when it is passed over.
    messages: Box<[*mut c::rd_kafka_message_t; BATCH]>,
    next: usize,
    fetched: usize,
    /// How many to fetch next.
    want: usize,
}

// SAFETY: librdkafka's queues and messages belong to no thread; any may use and destroy them, one
// at a time, which `&mut self` sees to.
unsafe impl<C: ConsumerContext + 'static> Send for Batches<C> {}

impl<C: ConsumerContext + 'static> Batches<C> {
    /// Splits the queue of a partition off; before it is assigned, or the first records could come
    /// by the common queue. `None` if librdkafka has none for it.
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
        // SAFETY: the client outlives the call, and so does the name. The handle is a reference of
        // its own to the queue, given back once, in `drop`.
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
            want: LEAST,
        })
    }

    /// What comes next, without waiting; the same again until it is passed over.
    pub fn peek(&mut self) -> Option<Next<'_>> {
        if self.next == self.fetched {
            self.fetch();
        }
        let message = *self.messages[..self.fetched].get(self.next)?;
        // SAFETY: a message between `next` and `fetched` is ours and not destroyed, and the borrow
        // of `self` ends before it can be. librdkafka gives no null ones; the payload is null, or
        // that many bytes which live as long as the message.
        let (error, offset, payload) = unsafe {
            let message = &*message;
            let bytes = message.payload.cast::<u8>().cast_const();
            let payload =
                (!bytes.is_null()).then(|| std::slice::from_raw_parts(bytes, message.len));
            (message.err, message.offset, payload)
        };
        Some(match error {
            c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {
                Next::Record(Record { offset, payload })
            }
            c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PARTITION_EOF => Next::End(offset),
            error => Next::Failed(error.into()),
        })
    }

    /// Whether something was fetched that has not been passed over.
    pub fn holds(&self) -> bool {
        self.next < self.fetched
    }

    /// Where the partition ended by the last answer to a fetch; asks nobody.
    pub fn known_end(&self) -> Option<Offset> {
        let (mut low, mut high) = (-1, -1);
        // SAFETY: the consumer and the name outlive the call; the two numbers are written to.
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
        known.then_some(high)
    }

    /// Passes over what [`Self::peek`] gave.
    pub fn pass(&mut self) {
        assert!(self.next < self.fetched, "something was given");
        // SAFETY: it is ours, and `next` moves behind it: nobody sees it again.
        unsafe { c::rd_kafka_message_destroy(self.messages[self.next]) };
        self.next += 1;
    }

    fn fetch(&mut self) {
        // SAFETY: the queue is ours until `drop`, and the array has room for `BATCH` pointers, which
        // `want` never exceeds.
        let count = unsafe {
            c::rd_kafka_consume_batch_queue(self.native, 0, self.messages.as_mut_ptr(), self.want)
        };
        self.next = 0;
        self.fetched = usize::try_from(count).unwrap_or(0);
        let mut bytes = 0;
        for message in &self.messages[..self.fetched] {
            // SAFETY: they have just been fetched, and are not destroyed yet.
            bytes += unsafe { (**message).len };
        }
        if let Some(each) = bytes.checked_div(self.fetched) {
            let want = BATCH_BYTES.checked_div(each).unwrap_or(BATCH);
            self.want = want.min(self.want * 4).clamp(LEAST, BATCH);
        }
    }
}

impl<C: ConsumerContext + 'static> Drop for Batches<C> {
    fn drop(&mut self) {
        while self.next < self.fetched {
            self.pass();
        }
        // SAFETY: the reference taken in `split`; `_queue` and the consumer go after this.
        unsafe { c::rd_kafka_queue_destroy(self.native) };
    }
}
