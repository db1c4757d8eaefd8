//! The cost of an event and of an open session, compared with recorded costs.
//!
//! Time is not a useful measure on a shared machine, but instructions are: callgrind's counts for
//! the pure hot path (decode, pack, unpack, insert, close) differ by less than a thousandth from
//! run to run. So a change that makes it a tenth more expensive is noticed, and noise is not. They
//! do not include the cost of memory access when the tables outgrow the caches.
//!
//! The record is `tests/cost/recorded`. When a change is worth its cost, or a new compiler or
//! machine counts differently, this records it again:
//!
//! ```sh
//! SESSIONIZER_RECORD_COST=yes cargo test --release --test cost
//! ```

#[path = "../shared/skipped.rs"]
mod skipped;

use std::io::Write;
use std::process::Command;

use sessionizer::commands::produce::generate::{Generator, Recipe};
use sessionizer::dataflow::ports::Record;
use sessionizer::dataflow::source::route::{Routed, Router};
use sessionizer::dataflow::span_batch::{SpanBatch, SpanBatchBuilder};
use sessionizer_core::binding::{Binding, Offset, Partition};
use sessionizer_core::key::{Shard, stable_hash};
use sessionizer_core::session::{Closed, SessionTable, Span};
use sessionizer_core::time::{EventTime, Gap};
use sessionizer_core::watermark::{WatermarkConfig, WatermarkGenerator};

const EVENTS: usize = 100_000;
const PER_EPOCH: usize = 20_000;
const SHARDS: u32 = 128;
const WORKERS: usize = 2;
/// How much more expensive than recorded an event may become.
const SLACK: f64 = 0.1;
/// How much more expensive events may be if half of them come from one visitor.
const HOT_KEY: f64 = 1.1;
/// The most memory that an open session with a key of 30 bytes may use, in bytes.
const SESSION_BYTES: f64 = 150.0;

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cost/recorded");

/// The share of events that come from one visitor, for the process that is measured.
const HOT: &str = "SESSIONIZER_COST_HOT";

#[test]
fn an_event_costs_what_is_recorded_and_a_hot_key_no_more() {
    if let Some(why) = cannot_count() {
        return skipped::skipped("the instructions of an event", &why);
    }
    let (even, hot) = (count("0"), count("0.5"));
    tell(&format!("{even:.0} instructions an event, {hot:.0} if half are of one visitor"));
    assert!(hot <= even * HOT_KEY, "a hot key costs {hot:.0} instructions an event, not {even:.0}");
    let machine = std::env::consts::ARCH;
    if std::env::var_os("SESSIONIZER_RECORD_COST").is_some() {
        let text = format!("{machine} {even:.0}\n");
        return std::fs::write(RECORD, text).expect("the record can be written");
    }
    let record = std::fs::read_to_string(RECORD).expect("there is a record");
    let recorded = record.lines().find_map(|line| line.strip_prefix(machine)?.trim().parse().ok());
    let Some(recorded): Option<f64> = recorded else {
        let why = format!("tests/cost/recorded has nothing for {machine}");
        return skipped::skipped("the instructions of an event", &why);
    };
    assert!(
        even <= recorded * (1.0 + SLACK),
        "an event costs {even:.0} instructions and is recorded to cost {recorded:.0}; if that is \
         worth it, or the compiler is another, tests/cost/main.rs says how to record it"
    );
    if even < recorded * (1.0 - SLACK) {
        tell("cheaper than recorded by more than the slack: record it, to keep it so");
    }
}

fn cannot_count() -> Option<String> {
    if cfg!(debug_assertions) {
        return Some(
            "a build with assertions is no measure; use cargo test --release --test cost"
                .to_owned(),
        );
    }
    let version = Command::new("valgrind").arg("--version").output();
    match version.is_ok_and(|version| version.status.success()) {
        true => None,
        false => Some("there is no valgrind to count them".to_owned()),
    }
}

/// Instructions an event, as counted in a process of its own.
fn count(hot: &str) -> f64 {
    let counted = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg("--toggle-collect=*under_measurement*")
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", "hot_path"])
        .env(HOT, hot)
        .output()
        .expect("valgrind was here a moment ago");
    let said = String::from_utf8_lossy(&counted.stderr);
    let instructions = said.lines().find_map(|line| {
        let (_, number) = line.split_once("Collected :")?;
        number.trim().parse::<f64>().ok()
    });
    match instructions.filter(|_| counted.status.success()) {
        Some(instructions) => instructions / EVENTS as f64,
        None => panic!("{said}{}", String::from_utf8_lossy(&counted.stdout)),
    }
}

/// Prints to the screen, because the output of a passing test is not shown.
fn tell(what: &str) {
    let _ = writeln!(std::io::stderr(), "cost: {what}");
}

/// The process that the test above measures; on its own it does nothing.
#[test]
fn hot_path() {
    let Ok(hot) = std::env::var(HOT) else { return };
    let hot = hot.parse().expect("a share");
    let recipe = Recipe {
        number: Some(EVENTS as u64),
        visitors: 50_000,
        disorder_ms: 10_000,
        hot,
        ..Recipe::default()
    };
    let records = Generator::new(recipe).expect("a good recipe");
    let payloads: Vec<Vec<u8>> = records.filter_map(|record| record.payload).collect();
    let (rows, open) = under_measurement(&payloads);
    assert!(rows > 1_000 && open > 1_000, "{rows} closed, {open} open");
}

/// What the operators do with an event, without timely between them.
#[inline(never)]
fn under_measurement(payloads: &[Vec<u8>]) -> (usize, usize) {
    let gap = Gap::from_millis(300_000).expect("valid");
    let config = WatermarkConfig { out_of_orderness_ms: 15_000, idle_timeout_ms: 30_000 };
    let partition = Partition { topic: 0, number: 0 };
    let mut generator =
        WatermarkGenerator::resume(config, Binding::initial(partition, Offset::ZERO), 1);
    let mut tables: Vec<SessionTable> =
        (0..SHARDS).map(|_| SessionTable::new(gap, EventTime::NEVER)).collect();
    let mut packer = SpanBatchBuilder::new(gap, SHARDS, WORKERS);
    let (mut scratch, mut rows) = (Vec::new(), 0);
    for (at, batch) in payloads.chunks(PER_EPOCH).enumerate() {
        let epoch = 2_000_000_000_000 + at as u64;
        let router = Router {
            topic: "t",
            partition,
            shards: SHARDS,
            epoch,
            latest: EventTime::from_millis(epoch as i64 + 300_000),
            gap,
            suspect_before: EventTime::NEVER,
            dead_letter_bytes: 1_000,
        };
        let (mut suspects, mut dead_letters) = (Vec::new(), Vec::new());
        let mut taken = Routed {
            arrivals: &mut packer,
            suspects: &mut suspects,
            dead_letters: &mut dead_letters,
        };
        for (offset, payload) in batch.iter().enumerate() {
            let record = Record { offset: Offset::new(offset as i64), payload: Some(payload) };
            router.take(&record, &mut generator, &mut scratch, &mut taken);
        }
        for arrival in packer.take().iter().flat_map(SpanBatch::arrivals) {
            let table = &mut tables[Shard::of(arrival.hash, SHARDS).0 as usize];
            table.insert(arrival.hash, arrival.key, arrival.span);
        }
        let watermark = generator.cut(epoch, Offset::ZERO, None, false).promise;
        for table in &mut tables {
            let mut closed: Vec<Closed> = Vec::new();
            table.close(watermark, &mut closed);
            rows += closed.len();
        }
    }
    (rows, tables.iter().map(SessionTable::len).sum())
}

#[test]
fn an_open_session_is_small() {
    let bytes = bytes_a_session(1_000_000);
    tell(&format!("{bytes:.0} bytes of memory an open session with a key of 30 bytes"));
    assert!(bytes <= SESSION_BYTES, "an open session takes {bytes:.0} bytes");
}

fn bytes_a_session(sessions: u32) -> f64 {
    let gap = Gap::from_millis(300_000).expect("valid");
    let before = resident_bytes();
    let mut tables: Vec<SessionTable> =
        (0..SHARDS).map(|_| SessionTable::new(gap, EventTime::NEVER)).collect();
    let mut key = Vec::new();
    for number in 0..sessions {
        key.clear();
        write!(key, "10.{number:011}\0host.example.org").expect("memory");
        assert_eq!(key.len(), 30 + 1, "30 bytes of text and the NUL between");
        let hash = stable_hash(&key);
        // A gap's worth of event time, as it is when sessions open and close at a steady rate.
        let time = i64::from(number) * 300_000 / i64::from(sessions);
        let span = Span::event(EventTime::from_millis(time));
        tables[Shard::of(hash, SHARDS).0 as usize].insert(hash, &key, span);
    }
    let grown = resident_bytes() - before;
    assert_eq!(tables.iter().map(SessionTable::len).sum::<usize>(), sessions as usize);
    grown / f64::from(sessions)
}

/// What of this process is in memory.
fn resident_bytes() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok());
    pages.unwrap_or(0.0) * 4_096.0
}
