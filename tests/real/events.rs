//! Which records are events, and how time affects them.

use std::collections::BTreeSet;

use crate::kafka::{PAST_MS, at_once, start, wait_for_records};
use crate::oracle::{Event, GAP_MS, Row, event, sessions};
use crate::world::{World, chrono_now_ms, eventually, finish, json};

const HOUR_MS: i64 = 3_600_000;

/// An event with these parts inserted as raw JSON.
fn raw(ip: &str, host: &str, time: &str) -> String {
    format!(r#"{{"ip":{ip},"host":{host},"event_time":{time}}}"#)
}

fn row(ip: &str, host: &str, start_ms: i64, end_ms: i64, count: i64) -> Row {
    (ip.to_owned(), host.to_owned(), start_ms, end_ms, count)
}

/// The newest committed watermark; `i64::MIN` while there is none.
fn watermark(world: &World) -> i64 {
    let value = world.value("select max(watermark_ms) from sessionizer.epochs");
    value.parse().unwrap_or(i64::MIN)
}

/// Pseudorandom numbers, the same in each run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) as usize % bound
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }

    /// Incompressible printable ASCII that needs no escaping in JSON.
    fn text(&mut self, bytes: usize) -> String {
        let letter = |chance: &mut Chance| match (b' ' + chance.below(94) as u8) as char {
            '"' | '\\' => '~',
            letter => letter,
        };
        (0..bytes).map(|_| letter(self)).collect()
    }
}

#[test]
fn every_record_that_is_no_event_is_a_dead_letter_with_its_place_and_its_bytes() {
    let world = World::new("letters");
    world.create_topic(3);
    let (ip, host, time) = (r#""i""#, r#""h""#, "1700000000000");
    let future = (chrono_now_ms() + 2 * HOUR_MS).to_string();
    let long = format!(r#""{}""#, "x".repeat(2_600));
    let letters: Vec<(&str, Vec<u8>)> = [
        ("bad_json", "{".to_owned()),
        ("bad_json", "not json".to_owned()),
        ("bad_json", "[]".to_owned()),
        ("bad_json", "null".to_owned()),
        ("bad_json", format!("{} {{}}", raw(ip, host, time))),
        ("bad_json", raw(r#""\ud800""#, host, time)),
        ("no_ip", "{}".to_owned()),
        ("no_ip", raw("null", host, time)),
        ("no_ip", raw(r#""""#, host, time)),
        ("no_ip", raw("[[1]]", host, time)),
        ("no_host", raw(ip, "17", time)),
        ("no_host", raw(ip, r#"{"a":"b"}"#, time)),
        ("no_time", raw(ip, host, "null")),
        ("no_time", raw(ip, host, r#""""#)),
        ("bad_time", raw(ip, host, "1700000000.5")),
        ("bad_time", raw(ip, host, "true")),
        ("bad_time", raw(ip, host, r#""yesterday""#)),
        ("bad_time", raw(ip, host, r#""2023-02-29T00:00:00Z""#)),
        ("bad_time", raw(ip, host, "-99999999999999")),
        ("bad_time", raw(ip, host, "18446744073709551616")),
        ("nul_in_key", raw(r#""a\u0000b""#, host, time)),
        ("nul_in_key", raw(ip, r#""\u0000""#, time)),
        ("key_too_long", raw(ip, &long, time)),
        ("future", raw(ip, host, &future)),
        ("empty", String::new()),
    ]
    .map(|(reason, payload)| (reason, payload.into_bytes()))
    .into_iter()
    .chain([
        ("bad_json", b"\xff\xfe\x00 not UTF-8".to_vec()),
        ("bad_json", b"{\"ip\":\"\xc3\x28\",\"host\":\"h\",\"event_time\":1}".to_vec()),
        ("bad_json", vec![0; 7]),
    ])
    .collect();
    let mut want = Vec::new();
    for (at, (reason, payload)) in letters.iter().enumerate() {
        let (partition, offset) = (at % 3, at / 3);
        want.push(vec![
            partition.to_string(),
            offset.to_string(),
            (*reason).to_owned(),
            payload.iter().map(|byte| format!("{byte:02x}")).collect(),
            payload.len().to_string(),
        ]);
    }
    want.sort_by_key(|row| (row[0].clone(), row[1].parse::<u64>().expect("an offset")));
    for partition in 0..3 {
        let mine = letters.iter().skip(partition).step_by(3);
        world.send(partition as i32, mine.map(|(_, payload)| Some(payload)));
    }
    world.run_to_end(&["-w", "2"]);
    let found = world.query(&format!(
        "select partition, \"offset\", reason, encode(payload, 'hex'), payload_bytes
         from sessionizer.dead_letters
         where topic = '{}' and detail <> '' and read_at > now() - interval '5 minutes'
         order by 1, 2",
        world.name
    ));
    assert_eq!(found, want);
    assert_eq!((world.rows(), world.imbalance()), (BTreeSet::new(), "0".to_owned()));
}

#[test]
fn a_dead_letter_keeps_no_more_than_configured() {
    let world = World::new("bounded-letters");
    world.create_topic(1);
    // One is JSON and one is not; what a decoder says of either must not be as long as it is.
    let text = "x".repeat(100_000);
    let payloads = [format!("\"{text}\""), text, "{".repeat(10), "{".repeat(11)];
    world.send(0, payloads.each_ref().map(Some));
    at_once([("default", 4_096), ("ten", 10), ("none", 0)], |(job, bytes)| {
        let bound = bytes.to_string();
        let bound = match job {
            "default" => Vec::new(),
            _ => vec!["--dead-letter-bytes", &*bound],
        };
        world.run_to_end(&[&["--job", job, "--table", job], &*bound].concat());
        let letters = world.query(&format!(
            "select convert_from(payload, 'UTF8'), payload_bytes, length(detail) < 1000
             from sessionizer.dead_letters where job = '{job}' order by \"offset\""
        ));
        let want = payloads.each_ref().map(|payload| {
            let kept = &payload[..payload.len().min(bytes)];
            vec![kept.to_owned(), payload.len().to_string(), "t".to_owned()]
        });
        assert!(letters == want, "--dead-letter-bytes {bytes}: {}", shortened(&letters));
    });
}

fn shortened(rows: &[Vec<String>]) -> String {
    let short = |text: &String| text.chars().take(40).collect::<String>();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(short).collect()).collect();
    format!("{rows:?}")
}

#[test]
fn other_fields_may_be_anything_and_the_last_of_a_double_counts() {
    let world = World::new("fields");
    world.create_topic(1);
    let others = [
        r#""url":7,"referrer":[],"user_agent":{"a":{"b":[null,true,1e400]}},"headers":"none""#,
        r#""url":null,"url":"/","x":"\ud83d\ude00","":"","\u0000":"\u0000","IP":"I","ip ":"j""#,
        r#""ip":17,"host":null,"event_time":"soon""#,
    ];
    let deep = format!(r#""headers":{}{}"#, "[".repeat(5_000), "]".repeat(5_000));
    // A broker takes a megabyte by default.
    let long = format!(r#""url":"/{}""#, "x".repeat(990_000));
    let others = others.into_iter().chain([deep.as_str(), long.as_str()]);
    let payloads: Vec<String> = others
        .enumerate()
        .map(|(at, other)| {
            let time_ms = PAST_MS + at as i64;
            format!(" {{{other},\n\"ip\":\"i\",\"host\":\"h\",\"event_time\":{time_ms}}}\t")
        })
        .collect();
    world.send(0, payloads.iter().map(Some));
    // The same event twice is two events.
    world.send(0, payloads.iter().map(Some));
    world.run_to_end(&[]);
    assert_eq!(world.rows(), [row("i", "h", PAST_MS, PAST_MS + 4 + GAP_MS, 10)].into());
}

#[test]
fn times_are_understood_as_people_write_them() {
    let world = World::new("times");
    world.create_topic(1);
    let times = [
        "1700000000123",
        r#""2023-11-14T22:13:20.123Z""#,
        r#""2023-11-14t22:13:20.123z""#,
        r#""2023-11-14 22:13:20.123""#,
        r#""2023-11-14T22:13:20.123999999Z""#,
        r#""2023-11-15T00:13:20.123+02:00""#,
        r#""2023-11-14T16:43:20.123-0530""#,
    ];
    let names: Vec<String> = (0..times.len()).map(|at| format!("\"{at}\"")).collect();
    let events = names.iter().zip(times).map(|(name, time)| Some(raw(name, r#""h""#, time)));
    world.send(0, events);
    let odd = [("-62135596800000", "the year 1"), ("-1", "before 1970"), ("0", "1970")];
    world.send(0, odd.map(|(time, name)| Some(raw(&format!("\"{name}\""), r#""h""#, time))));
    world.run_to_end(&[]);
    let at = |ip: &str, time_ms: i64| row(ip, "h", time_ms, time_ms + GAP_MS, 1);
    let mut want: BTreeSet<Row> =
        (0..times.len()).map(|name| at(&name.to_string(), 1_700_000_000_123)).collect();
    want.extend(odd.map(|(time, name)| at(name, time.parse().expect("a number"))));
    assert_eq!(world.rows(), want);
}

#[test]
fn keys_arrive_byte_for_byte() {
    let world = World::new("bytes");
    world.create_topic(1);
    let odd: Vec<&str> = [
        "1.2.3.4| 1.2.3.4|1.2.3.4 |2001:db8::1|0|A|a|-|%s|\"|\\|\\N|\\.|'; drop table x; --",
        "|münchen.example|mu\u{308}nchen.example|日本|\u{1f600}|\u{202e}abc|\u{feff}",
        "|\u{fffd}|\u{10ffff}|\u{1}\u{1f}\u{7f}|\t|\n|\r\n",
    ]
    .iter()
    .flat_map(|some| some.split('|').filter(|one| !one.is_empty()))
    .collect();
    let mut events = Vec::new();
    for (at, one) in odd.iter().enumerate() {
        events.push(event(one, odd[(at + 1) % odd.len()], PAST_MS));
        events.push(event("i", one, PAST_MS + 1));
    }
    world.send_events(0, &events);
    // The same keys again, every character as an escape.
    let escaped = |text: &str| -> String {
        text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect()
    };
    let mut later = events.clone();
    later.iter_mut().for_each(|event| event.time_ms += 10);
    world.send(
        0,
        later.iter().map(|event| {
            let quoted = |text: &str| format!("\"{}\"", escaped(text));
            Some(raw(&quoted(&event.ip), &quoted(&event.host), &event.time_ms.to_string()))
        }),
    );
    world.run_to_end(&["-w", "2"]);
    assert_eq!(world.rows(), sessions(events.iter().chain(&later)));
    // And once more as stragglers, which have to find their rows.
    later.iter_mut().for_each(|event| event.time_ms += GAP_MS);
    world.send_events(0, &later);
    world.run_to_end(&[]);
    let rows = world.rows();
    assert_eq!(rows.len(), events.len());
    assert!(rows.iter().all(|row| row.4 == 3), "{rows:?}");
    assert_eq!(world.dead_letters(), []);
}

#[test]
fn the_longest_key_fits_the_index_and_a_longer_one_is_a_dead_letter() {
    let world = World::new("long-keys");
    world.create_topic(1);
    let mut chance = Chance(1);
    let mut events = Vec::new();
    for ip_bytes in [1, 2, 126, 127, 128, 1_300, 2_473, 2_474, 2_599] {
        let (ip, host) = (chance.text(ip_bytes), chance.text(2_600 - ip_bytes));
        events.push(event(&ip, &host, PAST_MS));
    }
    let emoji = "\u{1f600}".repeat(325);
    events.push(event(&emoji, &emoji, PAST_MS));
    world.send_events(0, &events);
    let longer = [(1, 2_600), (2_600, 1), (1_300, 1_301)];
    let longer = longer.map(|(ip, host)| event(&chance.text(ip), &chance.text(host), PAST_MS));
    world.send_events(0, &longer);
    world.run_to_end(&[]);
    assert_eq!(world.rows(), sessions(&events));
    assert_eq!(world.dead_letters(), [("key_too_long".to_owned(), 3)]);
    // Stragglers of such keys as well.
    let late: Vec<Event> = events
        .iter()
        .map(|before| Event { time_ms: before.time_ms - GAP_MS, ..before.clone() })
        .collect();
    world.send_events(0, &late);
    world.run_to_end(&[]);
    assert_eq!(world.rows(), sessions(events.iter().chain(&late)));
}

#[test]
fn an_event_in_the_future_moves_nothing() {
    let world = World::new("future");
    world.create_topic(1);
    let job = start(&world, &["--idle-timeout", "1h"]);
    let now_ms = chrono_now_ms();
    let (minute_ms, year_ms) = (60_000, 365 * 24 * HOUR_MS);
    // By default, an event may be at most five minutes ahead of the clock.
    let inside = event("inside", "h", now_ms + 4 * minute_ms);
    let valid = [event("a", "h", now_ms - 10 * minute_ms), event("b", "h", now_ms), inside];
    let future = [now_ms + 6 * minute_ms, now_ms + year_ms].map(|at| event("a", "h", at));
    world.send_events(0, &valid[..2]);
    world.send_events(0, &future);
    wait_for_records(&world, 4);
    assert_eq!(watermark(&world), now_ms - 15_000);
    let old = sessions(&valid[..1]);
    assert_eq!(world.rows(), old, "what the valid events have closed, and that only");
    world.send_events(0, &valid[2..]);
    wait_for_records(&world, 5);
    assert_eq!(watermark(&world), now_ms + 4 * minute_ms - 15_000);
    assert_eq!(world.rows(), old);
    assert_eq!(world.dead_letters(), [("future".to_owned(), 2)]);
    job.stop();
    world.run_to_end(&[]);
    assert_eq!(world.rows(), sessions(&valid));
}

#[test]
fn the_reach_into_the_future_can_be_set() {
    let world = World::new("max-future");
    world.create_topic(1);
    let now_ms = chrono_now_ms();
    let events = [event("a", "h", now_ms + 20 * HOUR_MS), event("b", "h", now_ms + 26 * HOUR_MS)];
    world.send_events(0, &events);
    world.run_to_end(&["--max-future", "1day"]);
    assert_eq!(world.rows(), sessions(&events[..1]));
    assert_eq!(world.dead_letters(), [("future".to_owned(), 1)]);
}

#[test]
fn an_active_partition_holds_the_watermark_back_until_it_goes_on() {
    let world = World::new("active");
    world.create_topic(2);
    let job = start(&world, &["--idle-timeout", "1h", "-w", "2"]);
    let ahead: Vec<Event> =
        (0..10).map(|hour| event("ahead", "h", PAST_MS + hour * HOUR_MS)).collect();
    world.send_events(0, &ahead);
    wait_for_records(&world, 10);
    // Nothing is known of the other partition, so nothing is promised.
    assert_eq!((watermark(&world), world.rows()), (i64::MIN, BTreeSet::new()));
    let behind = event("behind", "h", PAST_MS + HOUR_MS);
    world.send_events(1, [&behind]);
    wait_for_records(&world, 11);
    assert_eq!(watermark(&world), PAST_MS + HOUR_MS - 15_000);
    assert_eq!(world.rows(), sessions(&ahead[..1]));
    let behind = [behind, event("behind", "h", PAST_MS + 8 * HOUR_MS)];
    world.send_events(1, &behind[1..]);
    wait_for_records(&world, 12);
    assert_eq!(watermark(&world), PAST_MS + 8 * HOUR_MS - 15_000);
    assert_eq!(world.rows(), sessions(ahead[..8].iter().chain(&behind[..1])));
    job.stop();
    world.run_to_end(&[]);
    assert_eq!(world.rows(), sessions(ahead.iter().chain(&behind)));
}

#[test]
fn an_idle_partition_holds_nobody_back() {
    let world = World::new("idle");
    world.create_topic(3);
    // One partition is empty, one has fallen silent, and one continues.
    let silent = event("silent", "h", PAST_MS);
    world.send_events(1, [&silent]);
    let job = start(&world, &["--idle-timeout", "500ms"]);
    let mut sent = Vec::new();
    let want = sessions([&silent]);
    eventually("the silent partition's session has closed", || {
        sent.push(event("active", "h", PAST_MS + HOUR_MS + sent.len() as i64));
        world.send_events(0, &sent[sent.len() - 1..]);
        world.rows() == want
    });
    // The watermark follows the one that continues.
    assert!(watermark(&world) <= sent[sent.len() - 1].time_ms - 15_000);
    // Events of a partition that resumes behind the watermark are late, but not lost.
    let late = event("silent", "h", PAST_MS + GAP_MS);
    world.send_events(1, [&late]);
    let newest = event("active", "h", PAST_MS + 2 * HOUR_MS);
    world.send_events(0, [&newest]);
    let want = sessions([&silent, &late]);
    eventually("the late event is in its session", || want.is_subset(&world.rows()));
    job.stop();
    world.run_to_end(&[]);
    let all = sent.iter().chain([&silent, &late, &newest]);
    assert_eq!((world.rows(), world.imbalance()), (sessions(all), "0".to_owned()));
}

#[test]
fn the_last_sessions_close_though_nobody_sends_any_more() {
    let world = World::new("silence");
    world.create_topic(3);
    let args = ["-w", "2", "--gap", "1s", "--idle-timeout", "500ms", "--out-of-orderness", "200ms"];
    let job = start(&world, &args);
    let events = [event("a", "h", PAST_MS), event("a", "h", PAST_MS + 1_000)];
    world.send_events(0, &events);
    world.send_events(1, [&event("b", "h", PAST_MS + 1_500)]);
    let mut want = BTreeSet::from([
        row("a", "h", PAST_MS, PAST_MS + 2_000, 2),
        row("b", "h", PAST_MS + 1_500, PAST_MS + 2_500, 1),
    ]);
    eventually("both have closed", || world.rows() == want);
    let totals = "select open, difference from sessionizer.balance";
    eventually("nothing is open", || world.query(totals) == [["0", "0"]]);
    // And again after the silence, also over a restart.
    world.send_events(0, [&event("a", "h", PAST_MS + 60_000)]);
    wait_for_records(&world, 4);
    job.kill();
    let job = start(&world, &args);
    want.insert(row("a", "h", PAST_MS + 60_000, PAST_MS + 61_000, 1));
    eventually("the last one has closed", || world.rows() == want);
    eventually("nothing is open", || world.query(totals) == [["0", "0"]]);
    job.stop();
}

/// For each combination, four events three steps apart, each step the gap or a millisecond less or
/// more.
fn on_the_boundary() -> Vec<Event> {
    let steps = [GAP_MS - 1, GAP_MS, GAP_MS + 1];
    let mut events = Vec::new();
    for way in 0..27 {
        let mut time_ms = PAST_MS + way;
        let ip = format!("10.0.0.{way}");
        events.push(event(&ip, "h", time_ms));
        for digit in [way / 9, way / 3 % 3, way % 3] {
            time_ms += steps[digit as usize];
            events.push(event(&ip, "h", time_ms));
        }
    }
    events
}

#[test]
fn exactly_the_gap_joins_and_a_millisecond_more_parts() {
    let world = World::new("boundary");
    let want = sessions(&on_the_boundary());
    assert_eq!(want.len(), 27 + 27, "of 81 steps, 27 part");
    at_once(["sorted", "reversed", "shuffled"], |order| {
        let mut events = on_the_boundary();
        match order {
            "sorted" => events.sort_by_key(|event| event.time_ms),
            "reversed" => events.reverse(),
            _ => Chance(7).shuffle(&mut events),
        }
        let topic = format!("{}-{order}", world.name);
        world.create(&topic, 1, &[]);
        world.send_to(&topic, 0, events.iter().map(|event| Some(json(event))));
        let mut command = world.command();
        command.env("KAFKA_TOPIC", &topic);
        command.args(["--until-end", "--job", order, "--table", order]);
        let (status, log) = finish(command);
        assert!(status.success(), "{status}:\n{log}");
        assert_eq!(world.rows_of(order), want, "{order}");
    });
}

#[test]
fn a_session_closes_when_the_watermark_has_passed_its_end_and_not_before() {
    let world = World::new("closing");
    world.create_topic(1);
    let job = start(&world, &["--idle-timeout", "1h"]);
    let clock = |time_ms: i64| event("clock", "h", time_ms + 15_000);
    let end_ms = PAST_MS + GAP_MS;
    let first = [event("a", "h", PAST_MS), event("b", "h", PAST_MS), clock(end_ms)];
    world.send_events(0, &first);
    wait_for_records(&world, 3);
    assert_eq!((watermark(&world), world.rows()), (end_ms, BTreeSet::new()));
    // As old as the watermark is still on time.
    let last = [event("a", "h", end_ms), clock(end_ms + 1)];
    world.send_events(0, &last);
    wait_for_records(&world, 5);
    assert_eq!(watermark(&world), end_ms + 1);
    assert_eq!(world.rows(), [row("b", "h", PAST_MS, end_ms, 1)].into());
    let log = job.stop();
    assert!(!log.contains("late session"), "{log}");
    world.run_to_end(&[]);
    assert_eq!(world.rows(), sessions(first.iter().chain(&last)));
}

#[test]
fn stragglers_join_at_exactly_the_gap_as_well() {
    let world = World::new("late-boundary");
    world.create_topic(2);
    let mut events = on_the_boundary();
    Chance(3).shuffle(&mut events);
    // Each piece closes everything before the next one comes.
    for (at, piece) in events.chunks(events.len() / 4).enumerate() {
        world.send_events(at as i32 % 2, piece);
        world.run_to_end(&[]);
        let so_far = &events[..(at + 1) * events.len() / 4];
        assert_eq!(world.rows(), sessions(so_far), "after {} pieces", at + 1);
    }
    assert_eq!(world.imbalance(), "0");
}
