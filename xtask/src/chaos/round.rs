//! A round: the job is started, something happens to it, and the audit follows.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::card::Card;
use super::game::{Game, LAST_WORDS_S};
use super::instance::{GLANCE, Instance};
use super::verdict;
use crate::failure::{Result, While, fail};
use crate::rng::Rng;
use crate::screen::say;

pub struct Round<'a> {
    pub game: &'a mut Game,
    pub number: u64,
    /// For this round alone, so that it does not depend on what earlier rounds drew.
    pub rng: Rng,
    /// What happens, in more and more detail.
    pub what: String,
    pub job: Instance,
    /// The settings that the job was started with.
    pub settings: Vec<String>,
}

pub fn play(game: &mut Game, number: u64) -> Result<()> {
    let card = game.deck.draw();
    let rng = Rng::new(game.seed.wrapping_mul(1_000_003).wrapping_add(number));
    let (job, settings) = (Instance::default(), Vec::new());
    let mut round = Round { game, number, rng, what: card.to_string(), job, settings };
    let played = round.play(card);
    let (what, shape) = (&round.what, &round.job.shape);
    played.during(format!("round {number}, {shape}, {what}"))?;
    say(format!("round {number}: {shape}, {what}"));
    drop(round);
    *game.tally.entry(card).or_default() += 1;
    // A job killed at its first start may have left nothing to audit.
    if game.has_begun {
        verdict::audit(game).during(format!("after round {number}"))?;
    }
    Ok(())
}

impl Round<'_> {
    fn play(&mut self, card: Card) -> Result<()> {
        if card == Card::Promote {
            self.make_standby()?;
        }
        self.start(card.least_processes())?;
        match card {
            Card::Kill => self.nap(500, 4_000),
            Card::KillDuringStart => self.nap(0, 300),
            Card::KillOne => self.kill_one()?,
            Card::KillOneDuringStart => self.kill_one_early()?,
            Card::FreezeOne => self.freeze_one()?,
            Card::Stop => self.stop()?,
            Card::Overtake => self.overtake()?,
            Card::Postgres => self.disturb(self.game.servers.postgres.clone())?,
            Card::Terminate => self.terminate()?,
            Card::LoseCommits => self.lose_commits()?,
            Card::Promote => self.promote()?,
            Card::Broker => self.disturb(self.game.servers.kafka.clone())?,
            Card::Clock => self.set_a_clock()?,
        }
        self.note_first_start()?;
        // Whatever happened around it, it has waited and continued.
        if self.job.has_ended()? {
            return fail("the job ended by itself");
        }
        self.job.kill()
    }

    /// Starts the job. The previous instance has ended, or its caller keeps it.
    pub fn start(&mut self, least: usize) -> Result<()> {
        (self.job, self.settings) = self.game.start_job(least, &mut self.rng)?;
        Ok(())
    }

    /// Waits until the job runs, and then for a random time, in milliseconds.
    pub fn started_and_nap(&mut self, least_ms: u64, most_ms: u64) -> Result<()> {
        self.job.started()?;
        self.nap(least_ms, most_ms);
        Ok(())
    }

    /// Waits for a random time within this range, in milliseconds.
    pub fn nap(&mut self, least_ms: u64, most_ms: u64) {
        thread::sleep(Duration::from_millis(self.rng.between(least_ms, most_ms)));
    }

    /// The index of a random process of the job.
    pub fn pick(&mut self) -> usize {
        let at = self.rng.below(self.job.members.len() as u64) as usize;
        *self.job.members.keys().nth(at).expect("the job has a process")
    }

    /// Waits until the job has ended by itself, with one of these statuses in each process.
    pub fn ended_by_itself(&mut self, patience_s: u64, allowed: &[i32]) -> Result<Vec<i32>> {
        self.note_first_start()?;
        self.job.ended_by_itself(patience_s, allowed)
    }

    pub fn note_first_start(&mut self) -> Result<()> {
        self.game.has_begun = self.game.has_begun || self.job.was_first()?;
        Ok(())
    }

    /// Before a process handles signals, a signal ends it like any other program. An incomplete
    /// cluster does not stop as a whole, so stopping one process waits until it is complete.
    fn stop(&mut self) -> Result<()> {
        if self.game.processes_most > 1 && self.rng.one_in(2) {
            self.what += " of one";
            self.started_and_nap(0, 2_500)?;
            let index = self.pick();
            self.job.members[&index].process.signal(Signal::TERM);
        } else {
            self.nap(0, 3_000);
            self.job.signal(Signal::TERM);
        }
        self.ended_by_itself(30, &[0, 143]).map(|_| ())
    }

    /// Starts a second instance. The one that takes the fence last continues, and the other reports
    /// that; if it has several processes, some notice it and the others lose a peer.
    fn overtake(&mut self) -> Result<()> {
        self.nap(500, 2_000);
        let mut first = std::mem::take(&mut self.job);
        self.start(1)?;
        self.what += &format!(" ({}, then {})", first.shape, self.job.shape);
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until && !self.job.has_ended()? {
            if first.has_ended()? {
                std::mem::swap(&mut self.job, &mut first);
                break;
            }
            thread::sleep(GLANCE);
        }
        // Here `self.job` is the one that was overtaken.
        let ends = self.ended_by_itself(LAST_WORDS_S, &[3, 4])?;
        if !ends.contains(&3) {
            return fail("neither of two instances reports that the other has taken over");
        }
        self.job = first;
        self.nap(500, 1_500);
        Ok(())
    }

    /// Sets the clock of a machine, or corrects it. It stays so in later rounds.
    fn set_a_clock(&mut self) -> Result<()> {
        const MOST_MS: u64 = 23 * 3_600_000;
        self.started_and_nap(0, 2_000)?;
        let index = self.pick();
        let right = self.rng.one_in(4);
        let ms = self.rng.below(2 * MOST_MS) as i64 - MOST_MS as i64;
        let ms = if right { 0 } else { ms };
        self.game.set_clock(index, ms)?;
        self.what += &format!(" of process {index}, {} s ahead", ms / 1_000);
        self.nap(1_000, 3_000);
        Ok(())
    }
}
