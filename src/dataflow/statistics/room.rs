//! Room for visitors, shared by the workers of a process.
//!
//! Rows are exchanged by host, so the visitors of a large host are all on one worker. If each worker
//! had a fixed part of the room, that host could use no more than one part, however empty the
//! others are. So a worker may use what the others leave, and has its own part in any case. Both can
//! be true only for a moment: a worker that has more than its part gives it back when the others
//! need theirs.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

/// The room of a process.
#[derive(Debug, Default)]
pub struct Room {
    workers: AtomicUsize,
    /// By all of them.
    used: AtomicUsize,
}

/// The rooms of a process: one for the window, and one for the detectors.
#[derive(Clone, Debug, Default)]
pub struct Rooms {
    pub window: Arc<Room>,
    pub detectors: Arc<Room>,
}

/// What a worker may use of a room.
#[derive(Debug)]
pub struct Share {
    room: Arc<Room>,
    /// The part of one worker.
    part: usize,
    /// What this worker uses.
    used: usize,
}

impl Share {
    /// That of another worker. All workers of the job, `peers` in number, have `total`.
    pub fn new(room: &Arc<Room>, total: usize, peers: usize) -> Self {
        room.workers.fetch_add(1, Relaxed);
        Share { room: Arc::clone(room), part: total.div_ceil(peers), used: 0 }
    }

    /// What this worker may use.
    pub fn allowed(&self) -> usize {
        let of_process = self.part * self.room.workers.load(Relaxed);
        let by_others = self.room.used.load(Relaxed).saturating_sub(self.used);
        of_process.saturating_sub(by_others).max(self.part)
    }

    /// Records what this worker uses now.
    pub fn uses(&mut self, used: usize) {
        // The difference wraps around if it has become less; the sum is right all the same.
        self.room.used.fetch_add(used.wrapping_sub(self.used), Relaxed);
        self.used = used;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_may_use_what_the_others_leave_and_always_its_part() {
        let room = Arc::default();
        // Four workers in all, two of them here.
        let [mut a, mut b] = [(); 2].map(|()| Share::new(&room, 400, 4));
        assert_eq!((a.allowed(), b.allowed()), (200, 200));
        a.uses(150);
        assert_eq!((a.allowed(), b.allowed()), (200, 100));
        b.uses(90);
        assert_eq!((a.allowed(), b.allowed()), (110, 100), "a has to give back");
        a.uses(0);
        assert_eq!((a.allowed(), b.allowed()), (110, 200));
    }

    #[test]
    fn without_room_nothing_may_be_used() {
        let share = Share::new(&Arc::default(), 0, 4);
        assert_eq!(share.allowed(), 0);
    }
}
