//! The ids that Kafka gives to topics. rdkafka has no safe way to query them, so this module owns
//! the calls to librdkafka's C interface.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::ops::ControlFlow::{Break, Continue};
use std::ptr;
use std::time::Duration;

use rdkafka::bindings as c;
use rdkafka::client::{Client, ClientContext};
use sessionizer_core::binding::TopicId;

use crate::retry;

/// How often, and at what interval, to look for a controller among the brokers.
const CONTROLLER_TIMEOUT: Duration = Duration::from_millis(200);
const CONTROLLER_PAUSE: Duration = Duration::from_millis(100);

/// Returns the ids of topics, in their order; `None` where no answer comes in time.
pub fn topic_ids<C: ClientContext>(
    client: &Client<C>,
    topics: &[String],
    timeout: Duration,
) -> Vec<Option<TopicId>> {
    if topics.is_empty() || !has_controller(client, &topics[0], timeout) {
        return vec![None; topics.len()];
    }
    let names: Vec<CString> =
        topics.iter().filter_map(|topic| CString::new(topic.as_str()).ok()).collect();
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let mut found = vec![None; topics.len()];
    // SAFETY: the client outlives this call, and so do `names`, which librdkafka copies. Each
    // of the four objects created here is destroyed once, after the last use of its contents:
    // the ids point into the event. librdkafka returns null only for an event that did not come
    // in time and for a result of another kind; both are checked before use.
    unsafe {
        let native = client.native_ptr();
        let queue = c::rd_kafka_queue_new(native);
        let wanted =
            c::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let options = c::rd_kafka_AdminOptions_new(
            native,
            c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
        );
        let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        c::rd_kafka_AdminOptions_set_request_timeout(options, millis, ptr::null_mut(), 0);
        c::rd_kafka_DescribeTopics(native, wanted, options, queue);
        let event = c::rd_kafka_queue_poll(queue, millis);
        if !event.is_null() {
            let result = c::rd_kafka_event_DescribeTopics_result(event);
            if !result.is_null() {
                let mut count = 0;
                let all = c::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
                for at in 0..count.min(found.len()) {
                    let topic = *all.add(at);
                    let name = CStr::from_ptr(c::rd_kafka_TopicDescription_name(topic));
                    let id = c::rd_kafka_TopicDescription_topic_id(topic);
                    let place = names.iter().position(|wanted| wanted.as_c_str() == name);
                    if let Some(place) = place.filter(|_| !id.is_null()) {
                        found[place] = read(id);
                    }
                }
            }
            c::rd_kafka_event_destroy(event);
        }
        c::rd_kafka_AdminOptions_destroy(options);
        c::rd_kafka_TopicCollection_destroy(wanted);
        c::rd_kafka_queue_destroy(queue);
    }
    found
}

/// Whether a broker can answer. librdkafka sends the request to the controller, and waits for the
/// whole timeout if the brokers name a controller that is not among them. librdkafka's own mock
/// cluster always does; an old cluster does so briefly, while a new controller is elected.
fn has_controller<C: ClientContext>(client: &Client<C>, topic: &str, timeout: Duration) -> bool {
    let named = || {
        // Brokers that do not answer or name no controller now may do so later.
        let Ok(metadata) = client.fetch_metadata(Some(topic), timeout) else { return Break(()) };
        // SAFETY: the client outlives this call, which takes no other pointer.
        let controller = unsafe { c::rd_kafka_controllerid(client.native_ptr(), 0) };
        let known = metadata.brokers().iter().any(|broker| broker.id() == controller);
        if controller < 0 || known { Break(()) } else { Continue(()) }
    };
    retry::until(CONTROLLER_TIMEOUT, CONTROLLER_PAUSE, named).is_ok()
}

/// Returns the id in Kafka's notation; `None` if it is all zeros.
///
/// # Safety
/// `id` must point to an id of librdkafka.
unsafe fn read(id: *const c::rd_kafka_Uuid_t) -> Option<TopicId> {
    // SAFETY: the caller guarantees `id`; the text belongs to it and ends with a NUL.
    let text = unsafe {
        let bits = c::rd_kafka_Uuid_most_significant_bits(id)
            | c::rd_kafka_Uuid_least_significant_bits(id);
        let text = c::rd_kafka_Uuid_base64str(id);
        if bits == 0 || text.is_null() {
            return None;
        }
        CStr::from_ptr(text)
    };
    // librdkafka writes ids in standard Base64; Kafka's own tools use the URL-safe alphabet.
    TopicId::named(&text.to_str().ok()?.replace('+', "-").replace('/', "_"))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::kafka::{Admin, EmbeddedBroker, KafkaConfig};

    #[test]
    fn a_cluster_without_a_controller_is_not_waited_for() {
        let broker = EmbeddedBroker::start("t", 1).expect("a broker");
        let topics = vec!["t".to_owned()];
        let config = KafkaConfig {
            queued_bytes: crate::kafka::QUEUED_BYTES,
            brokers: broker.address(),
            group: "g".to_owned(),
            topics: topics.clone(),
            login: None,
            extra: Vec::new(),
        };
        let admin = Admin::new(&config).expect("a client");
        admin.topics(Duration::from_secs(60), || false).expect("the broker answers");
        let began = Instant::now();
        assert_eq!(admin.topic_ids(&topics), [None]);
        assert!(began.elapsed() < Duration::from_secs(3), "waited {:?}", began.elapsed());
    }
}
