//! Kafka alone: how fast records can be read, and live events at a steady rate.

use std::thread;
use std::time::{Duration, Instant};

use sessionizer::commands::produce::event::WebEvent;
use sessionizer::commands::produce::pace::Pace;
use sessionizer::config;
use sessionizer::config::Problems;
use sessionizer::job::clock::now_ms;
use sessionizer::kafka::{Admin, KafkaConfig, Publisher, Range, create_topic, scan};
use sessionizer_core::fault::Fault;

use crate::cpu_seconds;

fn kafka() -> Result<KafkaConfig, Fault> {
    let env = config::Environment::new(std::env::vars_os());
    let mut problems = Problems::new(&env);
    let config = config::read_kafka(&mut problems, &[], true, &env);
    config.filter(|_| problems.is_empty()).ok_or_else(|| problems.fault())
}

/// Reads a topic to its end and throws the records away.
pub fn raw(consumers: usize) -> Result<(), Fault> {
    let config = kafka()?;
    let admin = Admin::new(&config)?;
    let topic = &config.topics[0];
    let count = admin.topics(Duration::from_secs(10), || false)?[0];
    let mut shares = vec![Vec::new(); consumers.clamp(1, count as usize)];
    for partition in 0..count {
        let (start, end) = admin.offsets(topic, partition)?;
        let share = partition as usize % shares.len();
        shares[share].push(Range { topic: topic.clone(), partition, start, end });
    }
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let read = |ranges: Vec<Range>| {
        let config = config.clone();
        thread::spawn(move || {
            let (mut records, mut bytes, mut first) = (0u64, 0u64, None);
            scan(
                &config,
                &ranges,
                || false,
                |_, record| {
                    first.get_or_insert_with(Instant::now);
                    records += 1;
                    bytes += record.payload.map_or(0, |payload| payload.len() as u64);
                    true
                },
            )?;
            Ok((records, bytes, first))
        })
    };
    let threads: Vec<_> = shares.into_iter().map(read).collect();
    let (mut records, mut bytes, mut first) = (0, 0, began);
    for (at, thread) in threads.into_iter().enumerate() {
        let (more, more_bytes, begin) = thread.join().expect("a consumer does not panic")?;
        records += more;
        bytes += more_bytes;
        // The job is timed from its first commit, so this is timed from the first record.
        let begin = begin.unwrap_or(began);
        first = if at == 0 { begin } else { first.min(begin) };
    }
    let (seconds, cpu) = (first.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    println!("records {records} bytes {bytes} seconds {seconds:.3} cpu {cpu:.2}");
    Ok(())
}

/// Sends live events.
pub fn live(rate: f64, seconds: f64, partitions: i32) -> Result<(), Fault> {
    // The number of visitors at once, and of events that each sends.
    let (at_once, events) = ((rate / 2.0).max(1.0) as u64, 8);
    let config = kafka()?;
    create_topic(&config, partitions, || Ok(()))?;
    let publisher = Publisher::new(&config, "none")?;
    let (began, mut pace) = (Instant::now(), Pace::new(rate));
    let mut sent = 0;
    while began.elapsed().as_secs_f64() < seconds {
        for _ in 0..pace.due(began.elapsed()) {
            // They begin and end at different times, so that some do at every moment.
            let (place, round) = (sent % at_once, sent / at_once);
            let visitor = place + (round + place % events) / events * at_once;
            let event = event(visitor, now_ms() as i64);
            publisher.send(Some(&event.ip), Some(&event.to_json()))?;
            sent += 1;
        }
        thread::sleep(Duration::from_millis(1));
    }
    publisher.flush()?;
    println!("records {sent} seconds {:.3}", began.elapsed().as_secs_f64());
    Ok(())
}

/// An event of about 360 bytes; `ip` and `host` have 15 each.
pub fn event(visitor: u64, event_time_ms: i64) -> WebEvent<'static> {
    let octet = |shift: u32| (visitor >> shift) & 255;
    let ip = format!("1{:02}.{:03}.{:03}.{:03}", octet(24), octet(16), octet(8), octet(0));
    WebEvent {
        url: "/blog/what-a-session-is?page=2".into(),
        referrer: "https://www.example.org/blog".into(),
        user_agent: "Mozilla/5.0 (X11; Linux x86_64; rv:131.0) Gecko/20100101 Firefox/131.0".into(),
        host: "www.example.org".into(),
        ip: ip.into(),
        headers: vec![
            ("accept".into(), "text/html,application/xhtml+xml".into()),
            ("accept-language".into(), "en-GB,en;q=0.5".into()),
        ],
        event_time_ms,
    }
}
