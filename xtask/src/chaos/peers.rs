//! Faults of one process of a cluster, and what the others do about them.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::game::{LAST_WORDS_S, PEER_TIMEOUT_S};
use super::instance::GLANCE;
use super::round::Round;
use crate::failure::{Result, fail};

impl Round<'_> {
    /// The others notice, and end.
    pub fn kill_one(&mut self) -> Result<()> {
        self.started_and_nap(0, 2_500)?;
        let index = self.pick();
        self.job.kill_one(index)?;
        self.ended_by_itself(LAST_WORDS_S, &[4]).map(|_| ())
    }

    /// Processes that had connected to the killed one end; the others wait for it. All that are
    /// missing are restarted one by one, as a supervisor on each machine would do. Then the job
    /// runs.
    pub fn kill_one_early(&mut self) -> Result<()> {
        self.nap(0, 600);
        let killed = self.pick();
        self.note_first_start()?;
        self.job.kill_one(killed)?;
        let until = Instant::now() + Duration::from_secs(LAST_WORDS_S);
        while Instant::now() < until && !self.job.has_ended()? {
            thread::sleep(GLANCE);
        }
        // A process that ends takes those with it that it had connected to.
        thread::sleep(Duration::from_secs(1));
        self.note_first_start()?;
        for index in 0..self.job.processes {
            if let Some(member) = self.job.members.get_mut(&index) {
                match member.process.ended()? {
                    None => continue,
                    Some(ended) if ended.status == 4 => (),
                    Some(ended) => {
                        let status = ended.status;
                        return fail(format!("process {index} ended with {status}, not 4"));
                    }
                }
            }
            let member = self.game.start_process(&self.job, index, &self.settings)?;
            self.job.members.insert(index, member);
        }
        self.started_and_nap(500, 2_000)
    }

    /// One process hangs for longer than the others wait for it. When it wakes up, they have ended,
    /// and another instance may have started. It must end, too, and the audit shows whether it has
    /// written anything.
    pub fn freeze_one(&mut self) -> Result<()> {
        self.started_and_nap(0, 2_500)?;
        let index = self.pick();
        let mut frozen = self.job.members.remove(&index).expect("one of its processes").process;
        frozen.signal(Signal::STOP);
        self.ended_by_itself(PEER_TIMEOUT_S + LAST_WORDS_S, &[4])?;
        if self.rng.one_in(2) {
            self.what += &format!(" ({}), until another instance came", self.job.shape);
            self.start(1)?;
            self.nap(500, 3_000);
        }
        frozen.signal(Signal::CONT);
        let patience = Duration::from_secs(PEER_TIMEOUT_S + LAST_WORDS_S);
        let status = frozen.wait(patience)?.status;
        if status != 3 && status != 4 {
            return fail(format!("the one that was frozen ended with {status}, not 3 or 4"));
        }
        if self.job.is_gone() { Ok(()) } else { self.job.started() }
    }
}
