//! The memory of an open session: a crowd of visitors, each with one event.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use sessionizer::dataflow::ports::{Feed, Record, Stopped};
use sessionizer_core::binding::{Offset, Partition};
use sessionizer_core::fault::Fault;

use crate::dataflow::Setup;
use crate::kafka::event;
use crate::memory_kib;

/// Partitions in which every record is the first event of another visitor, generated when read.
struct Crowd {
    partitions: usize,
    /// How many visitors come to each partition.
    visitors: u64,
    positions: BTreeMap<Partition, u64>,
    /// How many more records may be read in this epoch: updates that wait to be applied are not
    /// measured.
    budget: u64,
}

const CROWD_PER_EPOCH: u64 = 50_000;
const CROWD_PARTITIONS: usize = 4;

impl Feed for Crowd {
    fn assign(&mut self, partition: Partition, start: Offset) -> Result<(), Fault> {
        self.positions.insert(partition, start.get() as u64);
        Ok(())
    }

    fn read(
        &mut self,
        partition: Partition,
        _: Option<Offset>,
        limit: usize,
        take: &mut dyn FnMut(Record<'_>) -> bool,
    ) -> Result<Stopped, Fault> {
        let position = self.positions.get_mut(&partition).expect("assigned");
        let count = (self.visitors - *position).min(limit as u64).min(self.budget);
        for _ in 0..count {
            self.budget -= 1;
            let visitor = *position * self.partitions as u64 + partition.number as u64;
            // A minute in all, whatever their number.
            let ms = 1_700_000_000_000 + (*position * 60_000 / self.visitors) as i64;
            let payload = event(visitor, ms).to_json();
            let on =
                take(Record { offset: Offset::new(*position as i64), payload: Some(&payload) });
            *position += 1;
            if !on {
                break;
            }
        }
        let more = *position < self.visitors && self.budget > 0;
        Ok(if more { Stopped::AtLimit } else { Stopped::Waiting })
    }

    fn position(&self, partition: Partition) -> Offset {
        Offset::new(self.positions[&partition] as i64)
    }

    fn quiet_ms_ago(&self, _: Partition) -> Option<u64> {
        None
    }

    fn service(&mut self) -> Result<Vec<(Partition, Offset)>, Fault> {
        self.budget = CROWD_PER_EPOCH;
        Ok(Vec::new())
    }

    fn durable(&mut self, _: &BTreeMap<Partition, Offset>) {}
}

/// Opens this many sessions and prints how much the process has grown.
pub fn memory(workers: usize, sessions: u64) -> Result<(), Fault> {
    let visitors = sessions / CROWD_PARTITIONS as u64;
    let setup = Setup::new(workers, vec![None; CROWD_PARTITIONS], 7_200_000, 50);
    let run_state = Arc::clone(&setup.run_state);
    let before = memory_kib("VmRSS");
    thread::spawn(move || {
        setup.run(move || Crowd {
            partitions: CROWD_PARTITIONS,
            visitors,
            positions: BTreeMap::new(),
            budget: 0,
        })
    });
    let all = (visitors * CROWD_PARTITIONS as u64) as i64;
    while run_state.metrics.open_sessions.load(Relaxed) < all {
        if let Some(fault) = run_state.fault() {
            return Err(fault);
        }
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_millis(500));
    let (now, peak) = (memory_kib("VmRSS"), memory_kib("VmHWM"));
    println!("sessions {all} before_kib {before} rss_kib {now} peak_kib {peak}");
    // The workers never end, and nothing they hold needs to be dropped.
    std::process::exit(0);
}
