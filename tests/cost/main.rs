//! What the hot path costs.
use sessionizer::binding::{Binding, Late, Partition, Rules};
use sessionizer::key::Shard;
use sessionizer::operators::Record;
use sessionizer::operators::intake::{Intake, Taken};
use sessionizer::operators::parcel::{Packer, Parcel};
use sessionizer::produce::generate::{Generator, Recipe};
use sessionizer::session::{Closed, SessionTable};
use sessionizer::time::{EventTime, Gap};
use sessionizer::watermark::{PartitionClock, Patience};

const EVENTS: usize = 100_000;
const PER_EPOCH: usize = 20_000;
const SHARDS: u32 = 128;

fn recipe(hot: f64) -> Recipe {
    Recipe {
        number: Some(EVENTS as u64),
        visitors: 50_000,
        disorder_ms: 10_000,
        hot,
        ..Recipe::default()
    }
}

#[test]
#[ignore = "run under callgrind"]
fn hot_path() {
    let hot = std::env::var("HOT").map_or(0.0, |hot| hot.parse().unwrap());
    let payloads: Vec<Vec<u8>> =
        Generator::new(recipe(hot)).unwrap().map(|r| r.payload.unwrap()).collect();
    println!("mean {}", payloads.iter().map(Vec::len).sum::<usize>() / payloads.len());
    let (rows, open) = measured(&payloads);
    println!("rows {rows} open {open}");
}

#[inline(never)]
fn measured(payloads: &[Vec<u8>]) -> (u64, u64) {
    let gap = Gap::from_millis(300_000).unwrap();
    let patience = Patience { out_of_orderness_ms: 15_000, idle_timeout_ms: 30_000 };
    let partition = Partition { topic: 0, number: 0 };
    let mut clock = PartitionClock::resume(patience, Binding::initial(partition, 0), 1);
    let mut tables: Vec<SessionTable> =
        (0..SHARDS).map(|_| SessionTable::new(gap, EventTime::NEVER)).collect();
    let mut rows = 0;
    let mut scratch = Vec::new();
    let mut packer = Packer::new(gap, SHARDS, 2);
    let mut inserts = 0;
    for (at, batch) in payloads.chunks(PER_EPOCH).enumerate() {
        let epoch = 2_000_000_000_000 + at as u64;
        let intake = Intake {
            topic: "t",
            partition,
            shards: SHARDS,
            epoch,
            rules: Rules { max_future_ms: 300_000, late: Late::Merge },
            gap,
            suspect_before: EventTime::NEVER,
            dead_letter_bytes: 1_000,
        };
        let (mut suspects, mut dead) = (Vec::new(), Vec::new());
        for (offset, payload) in batch.iter().enumerate() {
            let record = Record { offset: offset as i64, payload: Some(payload) };
            let mut taken =
                Taken { arrivals: &mut packer, suspects: &mut suspects, dead_letters: &mut dead };
            intake.take(&record, &mut clock, &mut scratch, &mut taken);
        }
        for arrival in packer.take().iter().flat_map(Parcel::arrivals) {
            let table = &mut tables[Shard::of(arrival.hash, SHARDS).0 as usize];
            table.insert(arrival.hash, arrival.key, arrival.span);
            inserts += 1;
        }
        let watermark = clock.cut(epoch, 0, false, false).promise;
        for table in &mut tables {
            let mut closed: Vec<Closed> = Vec::new();
            table.close(watermark, &mut closed);
            rows += closed.len() as u64;
        }
    }
    println!("inserts {inserts}");
    (rows, tables.iter().map(|table| table.len() as u64).sum())
}
