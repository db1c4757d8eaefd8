//! What schedules have gone through.

use crate::statistics;

/// What happened in a schedule, to show that the simulation is not idle.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub lives: u64,
    pub crashes: u64,
    pub stops: u64,
    pub drains: u64,
    pub fenced: u64,
    /// Lives with several processes, and those in which one was lost while the others carried on.
    pub clusters: u64,
    pub losses: u64,
    /// How often the database went back to an earlier state.
    pub gone_back: u64,
    pub commits: u64,
    pub lost_replies: u64,
    pub late: u64,
    pub dead: u64,
    pub dropped: u64,
    pub replayed_epochs: u64,
    /// How often a clock was set by hours.
    pub leaps: u64,
    /// How often a reader was told to pause because memory was used up.
    pub pauses: u64,
    /// Transactions that were open, and partitions that lost their leader.
    pub transactions: u64,
    pub unserved: u64,
    /// Records that were forgotten, those of them in open sessions, and dead letters that were
    /// merged again.
    pub forgotten: u64,
    pub forgotten_open: u64,
    pub redriven: u64,
    /// Dead letters that were merged although their payload was cut, and those whose payload was
    /// removed, because it mentioned a visitor that was forgotten.
    pub read_again: u64,
    pub blanked: u64,
    /// The largest number of steps that a quiet world took until everything was durable.
    pub quiet_steps: u64,
    pub statistics: statistics::Seen,
}

impl Seen {
    pub fn add(&mut self, other: &Seen) {
        self.lives += other.lives;
        self.crashes += other.crashes;
        self.stops += other.stops;
        self.drains += other.drains;
        self.fenced += other.fenced;
        self.clusters += other.clusters;
        self.losses += other.losses;
        self.gone_back += other.gone_back;
        self.commits += other.commits;
        self.lost_replies += other.lost_replies;
        self.late += other.late;
        self.dead += other.dead;
        self.dropped += other.dropped;
        self.replayed_epochs += other.replayed_epochs;
        self.leaps += other.leaps;
        self.pauses += other.pauses;
        self.transactions += other.transactions;
        self.unserved += other.unserved;
        self.forgotten += other.forgotten;
        self.forgotten_open += other.forgotten_open;
        self.redriven += other.redriven;
        self.read_again += other.read_again;
        self.blanked += other.blanked;
        self.quiet_steps = self.quiet_steps.max(other.quiet_steps);
        self.statistics.add(&other.statistics);
    }
}
