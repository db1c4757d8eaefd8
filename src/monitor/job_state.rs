//! What follows from several samples: rates, how long each state has lasted, the condition and the
//! health.

mod parts;

use std::collections::BTreeMap;
use std::time::Duration;

pub use self::parts::{PartRow, state_text};
use self::parts::{hangs, holder, is_backlog};
use crate::monitor::JobFacts;
use crate::monitor::condition::{
    Condition, Ended, HeldBack, Situation, Stage, WaitStatus, judge, left,
};
use crate::monitor::health::{self, Verdict, Vitals};
use crate::monitor::history::{CounterSample, History, Point};
use crate::monitor::sample::{PartSample, PartState, Sample};
use crate::monitor::sentence::{Sentence, sentence};
use crate::ui::waiting::Awaited;

/// The state of the job, and since when it has been so.
pub struct JobState {
    pub facts: JobFacts,
    pub history: History,
    pub condition: Condition,
    /// The condition, in words.
    pub sentence: Sentence,
    pub since_ms: u64,
    pub live: Verdict,
    pub ready: Verdict,
    pub balance: Result<(u64, BalanceRow), String>,
    /// The last audit of the job, if there was any.
    pub audit: Result<Option<AuditRow>, String>,
    pub ended: Option<Ended>,
    /// The state of each partition, and since when it has been in it.
    parts: BTreeMap<String, (PartState, u64)>,
    held: Option<(String, u64)>,
    /// The records at the last sample, and when they last grew.
    moved: (u64, u64),
    /// The durable epoch, and when it last moved.
    durable: (u64, u64),
    /// Which servers do not answer, and since when.
    away: BTreeMap<&'static str, u64>,
}

/// Why there is no balance before somebody has looked: it is only read while somebody does.
pub const NOT_READ_YET: &str = "not read from Postgres yet: look again in a moment";

/// A row of `sessionizer.balance`: what became of the records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BalanceRow {
    pub as_of_ms: i64,
    pub records: i64,
    pub closed: i64,
    pub open: i64,
    pub dead: i64,
    pub lost: i64,
    pub forgotten: i64,
    pub difference: i64,
}

/// The last row of `sessionizer.audits`: what the last audit has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AuditRow {
    pub audited_at_ms: i64,
    /// The watermark up to which the table was compared, if there was one.
    pub watermark_ms: Option<i64>,
    /// Whether it continued from the audit before.
    pub incremental: bool,
    pub rows: i64,
    pub differences: i64,
    pub unverifiable: i64,
}

/// The sums over all processes, and what follows from them.
pub struct Totals {
    pub at_ms: u64,
    pub stage: Stage,
    pub records: u64,
    pub events: u64,
    pub rows: u64,
    pub lag: Option<u64>,
    /// How many records are left to read: in a bounded run, to its end.
    pub to_read: Option<u64>,
    pub lag_s: Option<f64>,
    pub durable_s: Option<f64>,
    pub durable_epoch: u64,
    /// Why the lag is not known.
    pub kafka_away: bool,
    pub watermark_ms: Option<i64>,
    pub durable_watermark_ms: Option<i64>,
    pub left: Option<Duration>,
    /// Events and rows a second.
    pub rates: Option<(f64, f64)>,
    /// Records a second, bad ones included.
    pub record_rate: f64,
    /// All partitions, the worst first.
    pub parts: Vec<PartRow>,
}

impl JobState {
    pub fn new(facts: JobFacts, at_ms: u64) -> Self {
        let condition = judge(&Situation::default());
        let process = facts.process;
        JobState {
            facts,
            history: History::default(),
            sentence: sentence(&condition),
            condition,
            since_ms: at_ms,
            live: Ok(()),
            ready: Err("connecting".to_owned()),
            balance: Err(NOT_READ_YET.to_owned()),
            audit: Err(match process {
                0 => NOT_READ_YET.to_owned(),
                _ => "process 0 shows it".to_owned(),
            }),
            ended: None,
            parts: BTreeMap::new(),
            held: None,
            moved: (0, at_ms),
            durable: (0, at_ms),
            away: BTreeMap::new(),
        }
    }

    /// Adds the samples of one moment; the first is that of this process.
    pub fn update(&mut self, samples: &[Sample]) -> Totals {
        let own = &samples[0];
        let at_ms = own.at_ms;
        let mut totals = self.totals(samples);
        let counts = CounterSample {
            records: totals.records,
            events: totals.events,
            rows: totals.rows,
            parts: totals.parts.iter().map(|row| (row.id.clone(), row.sample.records)).collect(),
        };
        self.history.count(at_ms, counts);
        for row in &mut totals.parts {
            row.rate = self.history.rate_of(&row.id);
        }
        totals.rates = self.history.rates();
        totals.record_rate = self.history.record_rate();
        if totals.records != self.moved.0 {
            self.moved = (totals.records, at_ms);
        }
        if totals.durable_epoch != self.durable.0 {
            self.durable = (totals.durable_epoch, at_ms);
        }
        totals.durable_s = self.durable_s(own);
        self.note_marks(own, &totals);
        let situation = self.situation(samples, &totals);
        totals.to_read = situation.to_read();
        totals.left = left(totals.to_read, totals.record_rate);
        self.note_point(&totals);
        self.condition = judge(&situation);
        let sentence = sentence(&self.condition);
        if sentence.state != self.sentence.state {
            self.since_ms = at_ms;
        }
        self.sentence = sentence;
        self.judge(own, at_ms);
        totals
    }

    fn totals(&mut self, samples: &[Sample]) -> Totals {
        let own = &samples[0];
        let sum = |of: fn(&Sample) -> u64| samples.iter().map(of).sum::<u64>();
        let parts = self.part_rows(samples);
        let lags = parts.iter().filter(|row| row.sample.state.is_active());
        let lag_s = lags
            .map(|row| row.sample.lag_ms)
            .try_fold(0, |most, lag| Some(most.max(lag?)))
            .filter(|_| !parts.is_empty())
            .map(|ms| ms as f64 / 1_000.0);
        let (records, dead) = (sum(|s| s.records), sum(|s| s.dead));
        let slowest = samples.iter().map(|sample| sample.durable_epoch).min();
        Totals {
            at_ms: own.at_ms,
            stage: own.stage,
            records,
            events: records.saturating_sub(dead),
            rows: sum(|s| s.rows + s.late_sessions),
            lag: samples.iter().map(|sample| sample.lag).sum(),
            to_read: None,
            lag_s,
            durable_s: None,
            durable_epoch: slowest.unwrap_or(0),
            kafka_away: samples
                .iter()
                .filter_map(|sample| sample.wait.as_ref())
                .any(|wait| wait.what.is_kafka()),
            watermark_ms: own.watermark_ms,
            durable_watermark_ms: own.durable_watermark_ms,
            left: None,
            rates: None,
            record_rate: 0.0,
            parts,
        }
    }

    /// How long it takes until an epoch is durable: the delay of the last one, or that of an epoch
    /// that has been waiting for longer.
    fn durable_s(&self, own: &Sample) -> Option<f64> {
        let pending = own.workers.iter().any(|worker| worker.in_flight > 0);
        let stands = own.at_ms.saturating_sub(self.durable.1).saturating_sub(self.facts.epoch_ms);
        let last = own.durable_delay_ms;
        let longer = (pending && stands > last.unwrap_or(0) + 2_000).then_some(stands);
        // A replay has its own pace.
        let longer = longer.filter(|_| own.stage == Stage::Running);
        longer.or(last).map(|ms| ms as f64 / 1_000.0)
    }

    /// The partitions, the worst first.
    fn part_rows(&mut self, samples: &[Sample]) -> Vec<PartRow> {
        let at_ms = samples[0].at_ms;
        let all: Vec<&PartSample> = samples.iter().flat_map(|sample| &sample.parts).collect();
        let id = |part: &PartSample| format!("{}/{}", part.topic, part.number);
        let holder = holder(&all, at_ms, self.facts.out_of_orderness_ms)
            .filter(|part| {
                let rate = self.history.rate_of(&id(part)).unwrap_or(0.0);
                !is_backlog(part, rate) && (self.facts.process == 0 || hangs(part))
            })
            .map(id);
        self.held = match (&holder, self.held.take()) {
            (Some(now), Some((before, since))) if *now == before => Some((before, since)),
            (Some(now), _) => Some((now.clone(), at_ms)),
            (None, _) => None,
        };
        let before = std::mem::take(&mut self.parts);
        let mut rows: Vec<PartRow> = all
            .into_iter()
            .map(|part| {
                let id = id(part);
                let same = before.get(&id).filter(|(state, _)| *state == part.state);
                let since_ms = same.map_or(at_ms, |(_, since)| *since);
                self.parts.insert(id.clone(), (part.state, since_ms));
                let holds_back = holder.as_ref() == Some(&id);
                PartRow { id, holds_back, since_ms, rate: None, sample: part.clone() }
            })
            .collect();
        let active = |row: &PartRow| row.sample.state.is_active();
        rows.sort_by(|a, b| {
            (b.holds_back, active(b), b.sample.lag_ms)
                .cmp(&(a.holds_back, active(a), a.sample.lag_ms))
                .then_with(|| a.sample.topic.cmp(&b.sample.topic))
                .then_with(|| a.sample.number.cmp(&b.sample.number))
        });
        rows
    }

    fn situation(&self, samples: &[Sample], totals: &Totals) -> Situation {
        let waiting = |sample: &Sample| {
            sample.writers.iter().map(|writer| writer.waiting_epochs).max().unwrap_or(0)
        };
        let longest = samples.iter().filter_map(|sample| sample.wait.clone());
        let behind = totals.lag_s.zip(totals.durable_s).map(|(lag, durable)| lag + durable);
        let ahead: u64 = samples.iter().map(|sample| sample.ahead).sum();
        Situation {
            ended: self.ended.clone(),
            stopping: samples.iter().any(|sample| sample.stopping),
            commits_left: samples.iter().map(waiting).max().unwrap_or(0),
            wait: longest.max_by_key(|wait: &WaitStatus| wait.lasts_ms),
            stage: totals.stage,
            lag: totals.lag,
            ahead: (self.facts.until_end && ahead > 0).then_some(ahead),
            rate: totals.record_rate,
            records: totals.records,
            quiet: Duration::from_millis(totals.at_ms.saturating_sub(self.moved.1)),
            held_back: self.held_back(totals),
            behind: behind.map(|seconds| Duration::from_secs_f64(seconds.clamp(0.0, 1e9))),
            unanswered: totals.parts.iter().any(|row| row.sample.state == PartState::Waiting),
        }
    }

    fn held_back(&self, totals: &Totals) -> Option<HeldBack> {
        let (_, since_ms) = self.held.as_ref()?;
        let sample = &totals.parts.iter().find(|row| row.holds_back)?.sample;
        let age_ms = |at_ms| (totals.at_ms as i64).saturating_sub(at_ms).max(0) as u64;
        Some(HeldBack {
            topic: sample.topic.clone(),
            number: sample.number,
            since_ms: *since_ms,
            watermark_age: totals.watermark_ms.map(age_ms).map(Duration::from_millis),
            by_transaction: sample.state == PartState::HeldUp,
            why: state_text(sample),
        })
    }

    fn note_point(&mut self, totals: &Totals) {
        let last = self.history.of_last_second();
        let round = |x: f64| (x * 100.0).round() / 100.0;
        let distance =
            totals.watermark_ms.map(|ms| (totals.at_ms as i64).saturating_sub(ms) as f64 / 1_000.0);
        self.history.point(Point {
            at_ms: totals.at_ms,
            events: last.map(|(events, _)| round(events)),
            rows: last.map(|(_, rows)| round(rows)),
            lag_s: totals.lag_s,
            watermark_s: distance,
            durable_s: totals.durable_s,
        });
    }

    fn note_marks(&mut self, own: &Sample, totals: &Totals) {
        if self.history.marked == 0 {
            self.history.mark(self.facts.started_ms, "started", "started".to_owned());
        }
        let why = |wait: &WaitStatus| wait.why.clone().unwrap_or_else(|| "no answer".to_owned());
        type Is = fn(&Awaited) -> bool;
        for (whose, is_it, lost, back) in [
            ("Kafka", Awaited::is_kafka as Is, "kafka_lost", "kafka_back"),
            ("Postgres", Awaited::is_postgres, "postgres_lost", "postgres_back"),
        ] {
            let wait = own.wait.as_ref().filter(|wait| is_it(&wait.what));
            match (wait, self.away.get(whose).copied()) {
                (Some(wait), None) => {
                    let since = totals.at_ms.saturating_sub(wait.lasts_ms);
                    self.away.insert(whose, since);
                    self.history.mark(since, lost, format!("{whose}: {}", why(wait)));
                }
                (None, Some(since)) => {
                    self.away.remove(whose);
                    let lasted = Duration::from_millis(totals.at_ms.saturating_sub(since));
                    let lasted = crate::ui::text::duration(lasted);
                    self.history.mark(
                        totals.at_ms,
                        back,
                        format!("{whose} is back after {lasted}"),
                    );
                }
                _ => {}
            }
        }
    }

    fn judge(&mut self, own: &Sample, at_ms: u64) {
        let vitals = Vitals {
            fenced: self.ended == Some(Ended::Fenced),
            running: matches!(own.stage, Stage::Running | Stage::Replaying { .. }),
            ending: own.stopping || self.ended.is_some(),
            still: own
                .workers
                .iter()
                .filter_map(|w| w.still_ms.map(Duration::from_millis))
                .collect(),
            waits: own
                .wait
                .as_ref()
                .filter(|wait| wait.what != Awaited::Memory)
                .map(|wait| Duration::from_millis(wait.lasts_ms)),
            undurable: Duration::from_millis(at_ms.saturating_sub(self.durable.1)),
            pending: own.workers.iter().any(|worker| worker.in_flight > 0),
        };
        self.live = health::live(&vitals);
        self.ready = health::ready(&vitals, self.facts.ready_within, &self.sentence.text);
    }
}
