//! What the source does: reads the partitions of one worker, decodes, cuts epochs and binds them.
//!
//! It has two lives. In the *replay* it walks through the bound epochs of the plan and reads
//! exactly what each says. *Live*, an epoch is a tick of the epochs' clock, which goes by elapsed
//! time: what is read in it belongs to it, and at its end the reader binds it and moves on. Which
//! events are of the future is judged by the wall clock at the epoch's beginning, and that is bound
//! as well. All chance ends here: behind the source, an epoch's content is a function of its
//! binding (I2).
//!
//! The first live epoch is cut before anything is read in it: it binds where reading begins.
//! The same goes for a partition that is found later: its first binding is its start.
//!
//! It never runs more than `EPOCHS_IN_FLIGHT` epochs ahead of what is durable, and reads nothing
//! while the memory for what is in flight is used up: a slow or absent Postgres stops the reading.
//! Epochs end all the same, and sooner, for what they have brought is released when it is durable.
//! A bound epoch is read again whatever it takes, but none ahead of it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sessionizer_core::binding::{Binding, BoundEpoch, Late, Offset, Partition, Rules, Status};
use sessionizer_core::epoch_clock::Distance;
use sessionizer_core::fault::Fault;
use sessionizer_core::plan::{PartitionPlan, RecoveryPlan};
use sessionizer_core::time::{Epoch, EventTime};
use sessionizer_core::watchdog::Watchdog;
use sessionizer_core::watermark::{PartitionClock, WatermarkBound};
use timely::dataflow::operators::probe;

use crate::dataflow::EPOCHS_IN_FLIGHT;
use crate::dataflow::budget::Kind;
use crate::dataflow::feedback::Feedback;
use crate::dataflow::messages::{DeadLetter, ReplayDifference, SourceBindings, Suspect};
use crate::dataflow::ports::{Feed, Record, Stopped};
use crate::dataflow::run_state::RunState;
use crate::dataflow::source::SourceConfig;
use crate::dataflow::source::clocks::Clocks;
use crate::dataflow::source::pause::Pause;
use crate::dataflow::source::route::{Routed, Router};
use crate::dataflow::span_batch::{SpanBatch, SpanBatchBuilder};

/// How many records one activation reads at most, over all partitions: it keeps the worker
/// responsive (about 50 ms of decoding).
const RECORDS_PER_ACTIVATION: usize = 65_536;
/// How many records of one partition are read before the next has its turn.
const RECORDS_PER_TURN: usize = 4_096;
/// How long a reader sleeps while what is in flight is too much.
const NAP: Duration = Duration::from_millis(10);
/// How often the group's offsets are told to the broker, in milliseconds.
const GROUP_COMMIT_EVERY_MS: u64 = 1_000;

/// How often it is counted what is there to be read, in milliseconds.
const COUNT_EVERY_MS: u64 = 250;

/// What one activation has made, by epoch in order.
#[derive(Default)]
pub struct Emit {
    pub arrivals: Vec<(Epoch, Vec<SpanBatch>)>,
    pub suspects: Vec<(Epoch, Vec<Suspect>)>,
    pub cuts: Vec<(Epoch, Vec<SourceBindings>)>,
    pub dead: Vec<(Epoch, Vec<DeadLetter>)>,
}

impl Emit {
    fn at<D>(batches: &mut Vec<(Epoch, Vec<D>)>, epoch: Epoch) -> &mut Vec<D> {
        if batches.last().is_none_or(|(last, _)| *last != epoch) {
            batches.push((epoch, Vec::new()));
        }
        &mut batches.last_mut().expect("just pushed").1
    }
}

/// When to wake the reader again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    Now,
    After(Duration),
    Done,
}

/// One partition of this worker.
struct Part {
    clock: PartitionClock,
    until: Option<Offset>,
    /// Whether the feed has said that nothing before `until` is left. Its position may stay
    /// before that for ever: holes lie in between, and the next record lies behind.
    reached_until: bool,
    retired: bool,
    /// Whether the feed reads it.
    assigned: bool,
    /// Where reading goes on after the replay, if not where it ended.
    restart: Option<Offset>,
    /// Whether its next binding goes out even if nothing has changed.
    never_bound: bool,
    /// Whether in this epoch all was read that there was, at some moment.
    caught_up_once: bool,
    /// Whether it was held, and has not been read since: nobody knows what has come meanwhile.
    was_paused: bool,
    /// Watches its position while more is there to be read.
    watchdog: Watchdog<Offset>,
    /// Watches it while an open transaction holds records back.
    transaction: Watchdog<Offset>,
}

impl Part {
    fn has_ended(&self) -> bool {
        self.clock.bound().status == Status::Ended
    }
}

enum Life {
    /// The bound epochs that are still to be read again.
    Replay(VecDeque<BoundEpoch>),
    Live,
    /// Everything is cut; waiting for it to become durable.
    Stopped,
}

/// The partitions of one worker, and where it is with them.
pub struct Reader<F> {
    worker: usize,
    plan: Arc<RecoveryPlan>,
    config: SourceConfig,
    run_state: Arc<RunState>,
    durable: probe::Handle<Epoch>,
    feedback: Rc<Feedback>,
    clocks: Clocks,
    feed: F,
    life: Life,
    /// The epoch that records are read into; every earlier one is cut.
    epoch: Epoch,
    /// How many it has brought so far.
    records: usize,
    /// The clock by which the records of a new epoch are judged, all of them.
    judge_ms: u64,
    parts: Vec<Part>,
    turn: usize,
    /// How far the watermark may be before this epoch.
    watermark: WatermarkBound,
    /// New partitions that are not read yet.
    found: Vec<(Partition, Offset)>,
    /// Epochs that are cut and not yet durable, with the ends that become durable with them.
    in_flight: VecDeque<(Epoch, Vec<(Partition, Offset)>)>,
    /// Watches the oldest of them; one source of a process does.
    watchdog: Option<Watchdog<Epoch>>,
    /// How much may be read.
    pause: Pause,
    /// Ends that are durable and that the broker has not been told.
    settled: BTreeMap<Partition, Offset>,
    group_committed_ms: u64,
    /// What was there to be read when it was last counted: records, partitions without a known
    /// end, and when that was.
    counted: (i64, i64, u64),
    /// Events of the epoch that have been read and not sent.
    packer: SpanBatchBuilder,
    scratch: Vec<u8>,
}

impl<F: Feed> Reader<F> {
    pub fn new(
        plan: &Arc<RecoveryPlan>,
        config: SourceConfig,
        run_state: Arc<RunState>,
        durable: probe::Handle<Epoch>,
        mut feed: F,
        (worker, peers): (usize, usize),
        feedback: Rc<Feedback>,
    ) -> Result<Self, Fault> {
        let mut parts = Vec::new();
        for plan_of in plan.partitions_of(worker, (peers, config.processes)) {
            let PartitionPlan { start, until, retired, restart, oldest, .. } = plan_of;
            // A topic that is read no more may not exist any more: it is touched only if the
            // replay needs its records.
            let replayed = plan.replay.iter().flat_map(|bound| &bound.bindings);
            let needed = !retired
                || replayed.clone().any(|b| b.partition == start.partition && b.end > start.end);
            let assigned = needed && restart.is_none();
            if assigned {
                feed.assign(start.partition, start.end.max(*oldest))?;
            }
            parts.push(Part {
                clock: PartitionClock::resume(config.patience, *start, plan.first_epoch),
                until: *until,
                reached_until: false,
                retired: *retired,
                assigned,
                restart: *restart,
                never_bound: true,
                caught_up_once: false,
                was_paused: false,
                watchdog: Watchdog::default(),
                transaction: Watchdog::default(),
            });
        }
        let processes = config.processes;
        let mine = |binding: &Binding| binding.partition.worker(peers, processes) == worker;
        let replay: VecDeque<BoundEpoch> = plan
            .replay
            .iter()
            .map(|bound| BoundEpoch {
                bindings: bound.bindings.iter().filter(|b| mine(b)).copied().collect(),
                ..bound.clone()
            })
            .collect();
        run_state.metrics.replay_epochs.fetch_add(replay.len() as u64, Relaxed);
        run_state.metrics.readers.fetch_add(1, Relaxed);
        run_state.metrics.ends_unknown.fetch_add(parts.len() as i64, Relaxed);
        let counted = (0, parts.len() as i64, 0);
        let epoch = replay.front().map_or(plan.first_epoch, |bound| bound.epoch);
        let replays = !replay.is_empty();
        let packer = SpanBatchBuilder::new(config.gap, plan.shards(), peers);
        let watches = worker.is_multiple_of(peers / processes);
        let clocks = Clocks::new(
            config.clocks.clone(),
            plan.first_epoch,
            watches.then_some(config.epochs.ms),
            plan.rules.max_future_ms,
        );
        let pause = Pause::new(&run_state, worker, watches);
        let mut reader = Reader {
            worker,
            plan: Arc::clone(plan),
            config,
            run_state,
            durable,
            feedback,
            clocks,
            feed,
            life: Life::Replay(replay),
            epoch,
            records: 0,
            judge_ms: 0,
            parts,
            turn: 0,
            watermark: WatermarkBound::new(plan.base_watermark),
            found: Vec::new(),
            in_flight: VecDeque::new(),
            watchdog: watches.then(Watchdog::default),
            pause,
            settled: BTreeMap::new(),
            group_committed_ms: 0,
            counted,
            packer,
            scratch: Vec::new(),
        };
        if !replays {
            reader.go_live()?;
        }
        Ok(reader)
    }

    /// The replay is over: everything from here on is new.
    fn go_live(&mut self) -> Result<(), Fault> {
        self.begin(self.plan.first_epoch);
        self.life = Life::Live;
        for part in &mut self.parts {
            let mut bound = *part.clock.bound();
            let topic_id = self.plan.topic_ids[usize::from(bound.partition.topic)];
            bound.topic_id = topic_id.or(bound.topic_id);
            if let Some(start) = part.restart {
                // Another topic by the same name: offsets begin anew, counts and promise go on.
                (bound.start, bound.end, bound.status) = (start, start, Status::Active);
                // One that the new topic does not have is ended by the first cut.
                if !part.retired {
                    self.feed.assign(bound.partition, start)?;
                    part.assigned = true;
                }
            }
            part.clock = PartitionClock::resume(self.config.patience, bound, self.epoch);
        }
        Ok(())
    }

    /// From now on records are read into this new epoch.
    fn begin(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.judge_ms = self.clocks.judge_ms();
    }

    /// What the epoch at hand is bound with.
    fn rules(&self) -> Rules {
        match &self.life {
            Life::Replay(replay) => replay.front().map_or(self.plan.rules, |bound| bound.rules),
            Life::Live | Life::Stopped => self.plan.rules,
        }
    }

    /// What the capabilities go down to; `None` gives them up.
    pub fn frontier(&self) -> Option<Epoch> {
        match self.life {
            Life::Stopped => None,
            Life::Replay(_) | Life::Live => Some(self.epoch),
        }
    }

    pub fn activate(&mut self, emit: &mut Emit) -> Result<Next, Fault> {
        self.settle();
        let next = self.advance(emit)?;
        self.send_off(emit);
        let now_ms = self.clocks.elapsed_ms();
        if now_ms.saturating_sub(self.counted.2) >= COUNT_EVERY_MS {
            self.count_what_waits(now_ms);
        }
        Ok(next)
    }

    /// Counts what is there to be read, for people.
    fn count_what_waits(&mut self, now_ms: u64) {
        let (mut records, mut unknown) = (0, 0);
        for part in self.parts.iter().filter(|part| !part.retired) {
            let waiting = match part.assigned {
                true => self.feed.waiting(part.clock.bound().partition),
                false => None,
            };
            match waiting {
                Some(waiting) => records += waiting as i64,
                None => unknown += 1,
            }
        }
        let metrics = &self.run_state.metrics;
        metrics.records_behind.fetch_add(records - self.counted.0, Relaxed);
        metrics.ends_unknown.fetch_add(unknown - self.counted.1, Relaxed);
        self.counted = (records, unknown, now_ms);
    }

    fn advance(&mut self, emit: &mut Emit) -> Result<Next, Fault> {
        match &self.life {
            Life::Stopped if self.in_flight.is_empty() => Ok(Next::Done),
            Life::Stopped => Ok(Next::After(NAP)),
            _ if self.in_flight.len() >= EPOCHS_IN_FLIGHT && !self.run_state.stopping() => {
                Ok(Next::After(NAP))
            }
            Life::Replay(_) => self.replay(emit),
            Life::Live => self.live(emit),
        }
    }

    /// Lets go what has been read of the epoch at hand.
    fn send_off(&mut self, emit: &mut Emit) {
        let parcels = self.packer.take();
        if !parcels.is_empty() {
            let bytes = parcels.iter().map(SpanBatch::size).sum();
            self.run_state.memory.charge(Kind::Events, self.worker, self.epoch, bytes);
            Emit::at(&mut emit.arrivals, self.epoch).extend(parcels);
        }
    }

    /// Takes note of what has become durable, and tells the broker now and then.
    fn settle(&mut self) {
        while let Some((epoch, _)) = self.in_flight.front()
            && !self.durable.less_equal(epoch)
        {
            let (epoch, ends) = self.in_flight.pop_front().expect("there is a front");
            self.run_state.metrics.durable_epoch.fetch_max(epoch, Relaxed);
            self.settled.extend(ends);
        }
        self.pause.release(self.durable.with_frontier(|frontier| frontier.first().copied()));
        // What is durable has passed the sessions of all workers, and so has its watermark.
        let open = self.in_flight.front().map(|(epoch, _)| *epoch);
        self.watermark.learn(open, self.run_state.metrics.watermark());
        let last = matches!(self.life, Life::Stopped) && self.in_flight.is_empty();
        let now_ms = self.clocks.elapsed_ms();
        if let Some(ms) = self.watchdog.as_mut().and_then(|dog| dog.look(open, now_ms)) {
            self.say_nothing_is_durable(ms);
        }
        let due = now_ms.saturating_sub(self.group_committed_ms) >= GROUP_COMMIT_EVERY_MS;
        if (last || due) && !self.settled.is_empty() {
            self.group_committed_ms = now_ms;
            self.feed.durable(&std::mem::take(&mut self.settled));
        }
    }

    /// Epochs are cut and do not become durable: for whom do they wait?
    fn say_nothing_is_durable(&self, for_ms: u64) {
        let waits_for = match self.run_state.metrics.writers_committing.load(Relaxed) {
            0 if self.config.processes > 1 => "another process, or for sessions of this one",
            0 => "another worker of this process",
            _ => "Postgres: a commit is under way",
        };
        log::warn!(
            "nothing has become durable for {}: the job waits for {waits_for}. Nothing is lost; \
             reading stops meanwhile{}",
            Distance(for_ms),
            self.pause.explain()
        );
    }

    /// More may be there to be read of these partitions, and they stand where they stood.
    fn say_nothing_comes(&self, stuck: &[(Partition, Offset, u64)]) {
        let Some((partition, position, for_ms)) = stuck.first() else { return };
        if crate::ui::waiting::waits_for("Kafka") {
            return; // That was said, and it is why.
        }
        let others = match stuck.len() - 1 {
            0 => String::new(),
            others => format!(" ({others} other partitions as well)"),
        };
        log::warn!(
            "{}[{}]: nothing has come for {}, and offset {position} is not known to be its \
             end{others}: the broker does not answer, the partition has no leader, or a record \
             cannot be fetched. The watermark waits for it",
            self.plan.topic(*partition),
            partition.number,
            Distance(*for_ms)
        );
    }

    /// Records of these partitions are there, and open transactions keep them from being read.
    fn say_what_is_held_back(&self, held: &[(Partition, Range<Offset>, u64)]) {
        let Some((partition, offsets, for_ms)) = held.first() else { return };
        let others = match held.len() - 1 {
            0 => String::new(),
            others => format!(" ({others} other partitions as well)"),
        };
        log::warn!(
            "{}[{}]: an open transaction has held back what lies from offset {} up to {} for {}\
             {others}: Kafka hands out nothing behind it until its producer commits or aborts, or \
             its transaction.timeout.ms has passed. The watermark waits for it. \
             `kafka-transactions.sh find-hanging` shows one that nobody will end, and `abort` ends \
             it",
            self.plan.topic(*partition),
            partition.number,
            offsets.start,
            offsets.end,
            Distance(*for_ms)
        );
    }

    /// Reads the oldest bound epoch again; when it is complete, cuts it as it was cut.
    fn replay(&mut self, emit: &mut Emit) -> Result<Next, Fault> {
        if self.run_state.stopping() {
            // The epoch at hand is half read and cannot be cut. Nothing new was read, so leaving
            // everything where it is loses nothing: the next start begins where this one did.
            self.run_state.abandon();
            return Ok(Next::After(Duration::from_millis(100)));
        }
        let Life::Replay(replay) = &mut self.life else { unreachable!("replaying") };
        let bound = replay.front().expect("a replay ends with its last epoch").clone();
        debug_assert_eq!(bound.epoch, self.epoch, "the replay goes in order");
        self.serve()?;
        // An epoch is needed whole when all before it are durable, and is read whatever it takes.
        if !self.pause.may_read(self.clocks.elapsed_ms()) && !self.in_flight.is_empty() {
            return Ok(Next::After(NAP));
        }
        let mut limit = RECORDS_PER_ACTIVATION;
        let mut next = None;
        for binding in &bound.bindings {
            let at = self.part(binding.partition);
            if !self.parts[at].assigned {
                continue;
            }
            let clock_ms = binding.clock_in(bound.epoch);
            match self.read(at, Some(binding.end), clock_ms, (&mut limit, u64::MAX), emit)? {
                Stopped::AtEnd => {}
                Stopped::AtLimit => next = Some(Next::Now),
                Stopped::Waiting => {
                    next = next.or(Some(Next::After(Duration::from_millis(100))));
                    let position = self.feed.position(binding.partition);
                    let now_ms = self.clocks.elapsed_ms();
                    if let Some(ms) = self.parts[at].watchdog.look(Some(position), now_ms) {
                        self.say_nothing_comes(&[(binding.partition, position, ms)]);
                    }
                }
            }
        }
        if let Some(next) = next {
            return Ok(next);
        }
        let mut differences = Vec::new();
        for binding in &bound.bindings {
            differences.extend(self.check_replayed(bound.epoch, binding));
            let at = self.part(binding.partition);
            let part = &mut self.parts[at];
            part.clock =
                PartitionClock::resume(self.config.patience, *binding, self.plan.first_epoch);
        }
        self.send_off(emit);
        self.watermark.is(bound.watermark);
        Emit::at(&mut emit.cuts, bound.epoch).push(SourceBindings {
            worker: self.worker,
            bindings: bound.bindings,
            behind: Vec::new(),
            early: false,
            differences,
        });
        self.in_flight.push_back((bound.epoch, Vec::new()));
        self.run_state.metrics.replayed_epochs.fetch_add(1, Relaxed);
        let Life::Replay(replay) = &mut self.life else { unreachable!("replaying") };
        replay.pop_front();
        match replay.front() {
            Some(next) => self.epoch = next.epoch,
            None => self.go_live()?,
        }
        Ok(Next::Now)
    }

    /// A bound epoch brings what it brought (I2), unless the topic has lost records since.
    fn check_replayed(&self, epoch: Epoch, binding: &Binding) -> Option<ReplayDifference> {
        let Part { clock, assigned, .. } = &self.parts[self.part(binding.partition)];
        let (before, (records, dead)) = (clock.bound(), clock.counts());
        if !assigned || (records, dead) == (binding.records, binding.dead) {
            return None;
        }
        let difference = ReplayDifference {
            epoch,
            partition: binding.partition,
            from: before.end,
            to: binding.end,
            recorded: binding.records.saturating_sub(before.records),
            found: records - before.records,
        };
        log::warn!(
            "{}[{}]: reading offsets {} to {} again brought {} records ({} of them dead letters), \
             not {} ({}) as before: the topic has changed (compaction, deletion). Rows that are \
             written stay; sessionizer.replay_differences says where, and `lost` in \
             sessionizer.balance counts what is missing",
            self.plan.topic(binding.partition),
            binding.partition.number,
            difference.from,
            difference.to,
            difference.found,
            dead - before.dead,
            difference.recorded,
            binding.dead.saturating_sub(before.dead),
        );
        Some(difference)
    }

    fn live(&mut self, emit: &mut Emit) -> Result<Next, Fault> {
        let now_ms = self.clocks.epoch_ms(self.feedback.latest_cut());
        let may_read = self.pause.may_read(self.clocks.elapsed_ms());
        let early = !may_read && (self.records > 0 || self.in_flight.len() < EPOCHS_IN_FLIGHT / 2)
            || self.feedback.latest_early_cut() >= self.epoch;
        let full = early || self.records >= self.config.epochs.full_records;
        let current = self.config.epochs.tick(now_ms, full);
        let first =
            self.parts.iter().any(|part| part.never_bound) || self.epoch == self.plan.first_epoch;
        if self.run_state.stopping() {
            self.serve()?;
            self.cut(emit, false);
            self.life = Life::Stopped;
            return Ok(Next::Now);
        }
        if first || current > self.epoch {
            self.serve()?;
            self.cut(emit, early);
            if self.config.until_end && self.parts.iter().all(Part::has_ended) {
                self.life = Life::Stopped;
                return Ok(Next::Now);
            }
            self.begin(current.max(self.epoch + 1));
            for (partition, start) in std::mem::take(&mut self.found) {
                self.discover(partition, start)?;
            }
        }
        let mut limit = RECORDS_PER_ACTIVATION;
        let mut at_limit = false;
        for _ in 0..self.parts.len() {
            if limit == 0 {
                // The next activation begins with those that have had no turn.
                at_limit = true;
                break;
            }
            self.turn = (self.turn + 1) % self.parts.len();
            let part = &mut self.parts[self.turn];
            if part.never_bound || part.retired {
                continue;
            }
            let partition = part.clock.bound().partition;
            part.was_paused = self.feedback.holds(partition);
            if part.was_paused {
                continue;
            }
            // Who may not read looks at least: who is at its end may be idle.
            let left = self.pause.left();
            let before = if left > 0 { limit.min(RECORDS_PER_TURN) } else { 0 };
            let mut turn = before;
            let until = part.until;
            let most = (&mut turn, left);
            let stopped = self.read(self.turn, until, self.judge_ms, most, emit)?;
            limit -= before - turn;
            at_limit |= stopped == Stopped::AtLimit;
            let caught_up_once = stopped != Stopped::AtLimit && self.feed.keeps_up(partition);
            self.parts[self.turn].caught_up_once |= caught_up_once;
            self.parts[self.turn].reached_until |= until.is_some() && stopped == Stopped::AtEnd;
        }
        if self.config.until_end && (0..self.parts.len()).all(|at| self.at_until(at)) {
            // Nothing is left to wait for: end with this epoch, not with its tick.
            self.serve()?;
            self.cut(emit, false);
            self.life = Life::Stopped;
            return Ok(Next::Now);
        }
        if at_limit {
            return Ok(if may_read { Next::Now } else { Next::After(NAP) });
        }
        let end_ms = self.epoch + self.config.epochs.ms;
        Ok(Next::After(Duration::from_millis(end_ms.saturating_sub(now_ms).clamp(1, 1_000))))
    }

    /// Lets the feed do its work; what it has found waits until an epoch has been cut. A bounded
    /// run reads what was there at its start.
    fn serve(&mut self) -> Result<(), Fault> {
        let found = self.feed.service()?;
        if !self.config.until_end {
            self.found.extend(found);
        }
        Ok(())
    }

    /// Binds what this worker has read of the current epoch; only what has changed goes out.
    fn cut(&mut self, emit: &mut Emit, early: bool) {
        self.send_off(emit);
        let now_ms = self.clocks.elapsed_ms();
        let epoch_ms = self.clocks.epoch_ms(self.feedback.latest_cut());
        let mut bindings = Vec::new();
        let mut behind = Vec::new();
        let (mut stuck, mut held_up) = (Vec::new(), Vec::new());
        let mut ends = Vec::new();
        for at in 0..self.parts.len() {
            let ended = self.at_until(at) || self.parts[at].retired;
            let part = &mut self.parts[at];
            let before = *part.clock.bound();
            let partition = before.partition;
            let position = match part.assigned {
                true => self.feed.position(partition).max(before.end),
                false => before.end,
            };
            let reads = part.assigned && !part.was_paused;
            let quiet_ms_ago = reads.then(|| self.feed.quiet_ms_ago(partition)).flatten();
            let caught_up = quiet_ms_ago.is_some();
            // What lies behind an open transaction is there: the partition is not silent.
            let held_back = reads.then(|| self.feed.held_back(partition)).flatten();
            let quiet = quiet_ms_ago.filter(|_| held_back.is_none());
            let quiet = quiet.map(|ago| epoch_ms.saturating_sub(ago));
            let keeps_up = std::mem::take(&mut part.caught_up_once) || caught_up || part.was_paused;
            if part.assigned && !ended && !keeps_up && !part.clock.is_silent(self.epoch) {
                behind.push(partition);
            }
            let bound = part.clock.cut(self.epoch, position, quiet, ended);
            if bound != before || part.never_bound {
                bindings.push(Binding { clock_ms: Some(self.judge_ms), ..bound });
                ends.push((partition, bound.end));
            }
            part.never_bound = false;
            // Who may not read does not wait for more.
            let waits = reads && !ended && !caught_up && self.pause.left() > 0;
            if let Some(ms) = part.watchdog.look(waits.then_some(position), now_ms) {
                stuck.push((partition, position, ms));
            }
            let held = held_back.filter(|_| !ended);
            if let Some(ms) = part.transaction.look(held.map(|_| position), now_ms) {
                held_up.push((partition, position..held.unwrap_or(position), ms));
            }
        }
        self.say_nothing_comes(&stuck);
        self.say_what_is_held_back(&held_up);
        self.watermark.cut(self.epoch, self.parts.iter().map(|part| part.clock.bound()));
        Emit::at(&mut emit.cuts, self.epoch).push(SourceBindings {
            worker: self.worker,
            bindings,
            behind,
            early,
            differences: Vec::new(),
        });
        self.in_flight.push_back((self.epoch, ends));
        self.records = 0;
    }

    /// Whether a bounded run has read this partition to where it ends.
    fn at_until(&self, at: usize) -> bool {
        let part = &self.parts[at];
        let partition = part.clock.bound().partition;
        part.retired
            || part.reached_until
            || part.until.is_some_and(|until| {
                self.feed.position(partition) >= until
                    || self.feed.quiet_ms_ago(partition).is_some()
            })
    }

    fn discover(&mut self, partition: Partition, start: Offset) -> Result<(), Fault> {
        log::info!(
            "found a new partition: {}[{}], reading it from offset {start}",
            self.plan.topic(partition),
            partition.number
        );
        self.feed.assign(partition, start)?;
        let mut initial = Binding::initial(partition, start);
        initial.topic_id = self.plan.topic_ids[usize::from(partition.topic)];
        // A topic before this one may have had such a partition: its counts go on.
        let before = self.parts.iter().position(|part| part.clock.bound().partition == partition);
        if let Some(at) = before {
            let Binding { promise, records, dead, .. } = *self.parts.remove(at).clock.bound();
            initial = Binding { promise, records, dead, ..initial };
        }
        self.parts.push(Part {
            clock: PartitionClock::resume(self.config.patience, initial, self.epoch),
            until: None,
            reached_until: false,
            retired: false,
            assigned: true,
            restart: None,
            never_bound: true,
            caught_up_once: false,
            was_paused: false,
            watchdog: Watchdog::default(),
            transaction: Watchdog::default(),
        });
        Ok(())
    }

    fn part(&self, partition: Partition) -> usize {
        let found = self.parts.iter().position(|part| part.clock.bound().partition == partition);
        found.expect("a bound partition is in the plan")
    }

    /// Reads records of one partition into the current epoch, judges them by a clock, and takes
    /// them off `limit`; stops when they have taken `most_bytes`.
    fn read(
        &mut self,
        at: usize,
        end: Option<Offset>,
        clock_ms: u64,
        (limit, most_bytes): (&mut usize, u64),
        emit: &mut Emit,
    ) -> Result<Stopped, Fault> {
        let rules = self.rules();
        let Part { clock, .. } = &mut self.parts[at];
        let partition = clock.bound().partition;
        let router = Router {
            topic: self.plan.topic(partition),
            partition,
            shards: self.plan.shards(),
            epoch: self.epoch,
            latest: rules.latest(clock_ms),
            gap: self.config.gap,
            suspect_before: match rules.late {
                Late::Merge => EventTime::NEVER,
                Late::Drop => self.watermark.at_most(),
            },
            dead_letter_bytes: self.config.dead_letter_bytes,
        };
        let mut taken = Routed {
            arrivals: &mut self.packer,
            suspects: Emit::at(&mut emit.suspects, self.epoch),
            dead_letters: Emit::at(&mut emit.dead, self.epoch),
        };
        let (dead, suspects) = (taken.dead_letters.len(), taken.suspects.len());
        let (mut records, mut bytes) = (0, 0);
        let scratch = &mut self.scratch;
        let mut take = |record: Record<'_>| {
            records += 1;
            bytes += router.take(&record, clock, scratch, &mut taken);
            bytes < most_bytes
        };
        let stopped = self.feed.read(partition, end, *limit, &mut take)?;
        *limit -= records.min(*limit);
        self.records += records;
        self.run_state.metrics.records.fetch_add(records as u64, Relaxed);
        self.pause.take(bytes);
        let (dead, suspects) = (&taken.dead_letters[dead..], &taken.suspects[suspects..]);
        self.run_state.metrics.dead.fetch_add(dead.len() as u64, Relaxed);
        let memory = &self.run_state.memory;
        let bytes = dead.iter().map(DeadLetter::bytes).sum();
        memory.charge(Kind::DeadLetters, self.worker, self.epoch, bytes);
        let bytes = suspects.iter().map(Suspect::bytes).sum();
        memory.charge(Kind::Events, self.worker, self.epoch, bytes);
        Ok(stopped)
    }
}
