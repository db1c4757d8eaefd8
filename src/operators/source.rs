//! The source: reads the partitions of one worker, decodes, cuts epochs and binds them.
//!
//! It has two lives. In the *replay* it walks through the bound epochs of the plan and reads
//! exactly what each says. *Live*, an epoch is a tick of the wall clock: what is read in it
//! belongs to it, and at its end the source binds it and moves on. All chance ends here: behind
//! the source, an epoch's content is a function of its binding (I2).
//!
//! The first live epoch is cut before anything is read in it: it binds where reading begins.
//! The same goes for a partition that is found later: its first binding is its start.
//!
//! It never runs more than `EPOCHS_IN_FLIGHT` epochs ahead of what is durable, so a slow or
//! absent Postgres stops the reading, and memory stays bounded.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::probe;
use timely::dataflow::{Scope, StreamVec};
use timely::scheduling::{Activator, SyncActivator};

use super::{Arrival, Cut, DeadLetter, Feed, Record, Stopped};
use crate::binding::{Binding, BoundEpoch, Offset, Partition, Status};
use crate::control::{Control, Fault};
use crate::event::{self, Reason, Rejected};
use crate::key::{self, Key, Shard, stable_hash};
use crate::plan::{PartitionPlan, Plan};
use crate::session::Span;
use crate::time::{Epoch, EventTime, tick};
use crate::watermark::{PartitionClock, Patience};

/// How many epochs may be cut and not yet durable.
const EPOCHS_IN_FLIGHT: usize = 8;
/// How many records one activation reads at most, over all partitions: it keeps the worker
/// responsive (about 50 ms of decoding).
const RECORDS_PER_ACTIVATION: usize = 65_536;
/// How many records of one partition are read before the next has its turn.
const RECORDS_PER_TURN: usize = 4_096;
/// How often the group's offsets are told to the broker, in milliseconds of wall clock.
const GROUP_COMMIT_EVERY_MS: u64 = 1_000;

/// What a source has to know.
#[derive(Clone)]
pub struct SourceConfig {
    pub epoch_ms: u64,
    pub patience: Patience,
    pub max_future_ms: i64,
    pub dead_letter_bytes: usize,
    /// Bounded run: end at the plan's `until` offsets.
    pub until_end: bool,
    /// The wall clock, milliseconds since 1970.
    pub now_ms: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Whether the source wakes itself by the real clock; a test that has a clock of its own
    /// wakes it instead.
    pub alarm: bool,
}

/// What comes out of a source.
pub struct SourceStreams<'scope> {
    /// To the shards.
    pub arrivals: StreamVec<'scope, Epoch, Arrival>,
    /// To every worker.
    pub cuts: StreamVec<'scope, Epoch, Cut>,
    /// To the commit lanes.
    pub dead_letters: StreamVec<'scope, Epoch, DeadLetter>,
    /// Wakes the source of this worker, for a clean stop.
    pub activator: Activator,
}

/// Builds the source of this worker. `open` makes the feed, given what wakes the source when
/// records have come; `durable` is the probe behind the commits.
pub fn render_source<'scope, F: Feed + 'static>(
    scope: Scope<'scope, Epoch>,
    plan: &Arc<Plan>,
    config: SourceConfig,
    control: Arc<Control>,
    durable: probe::Handle<Epoch>,
    open: impl FnOnce(SyncActivator) -> Result<F, Fault>,
) -> SourceStreams<'scope> {
    let mut builder = OperatorBuilder::new("Source".to_owned(), scope);
    let (arrivals_out, arrivals) = builder.new_output();
    let (cuts_out, cuts) = builder.new_output();
    let (dead_out, dead_letters) = builder.new_output();
    let mut arrivals_out = OutputBuilder::from(arrivals_out);
    let mut cuts_out = OutputBuilder::from(cuts_out);
    let mut dead_out = OutputBuilder::from(dead_out);
    let info = builder.operator_info();
    let activator = scope.activator_for(Rc::clone(&info.address));
    let waker = scope.worker().sync_activator_for(info.address.to_vec());
    let mut alarm = Alarm { set: config.alarm, activator: activator.clone(), rings_at: None };
    let feed = open(waker);
    let mut source = None;
    match feed.and_then(|feed| {
        Source::new(plan, config, Arc::clone(&control), durable, feed, scope.index(), scope.peers())
    }) {
        Ok(made) => source = Some(made),
        Err(fault) => control.fail(fault),
    }
    builder.build_reschedule(move |capabilities| {
        let mut capabilities = Some(capabilities);
        move |_frontiers| {
            let Some(source) = source.as_mut() else { return true };
            if control.failed() {
                return true; // Capabilities stay: giving them up would be a lie about progress.
            }
            let mut emit = Emit { out: Vec::new(), cuts: Vec::new(), dead: Vec::new() };
            let next = match source.activate(&mut emit) {
                Ok(next) => next,
                Err(fault) => {
                    control.fail(fault);
                    return true;
                }
            };
            if let Some(caps) = capabilities.as_mut() {
                send(&mut arrivals_out, &mut caps[0], emit.out);
                send(&mut cuts_out, &mut caps[1], emit.cuts);
                send(&mut dead_out, &mut caps[2], emit.dead);
                match source.frontier() {
                    Some(epoch) => caps.iter_mut().for_each(|cap| cap.downgrade(&epoch)),
                    None => capabilities = None,
                }
            }
            match next {
                Next::Now => alarm.activator.activate(),
                Next::After(delay) => alarm.ring_after(delay),
                Next::Done => return false,
            }
            true
        }
    });
    SourceStreams { arrivals, cuts, dead_letters, activator }
}

/// Activates the source later. Each ring is set once: the source also wakes for records, and a
/// ring set at every waking would never stop multiplying.
struct Alarm {
    set: bool,
    activator: Activator,
    rings_at: Option<Instant>,
}

impl Alarm {
    fn ring_after(&mut self, delay: Duration) {
        let now = Instant::now();
        if self.set && self.rings_at.is_none_or(|at| at <= now || at > now + delay) {
            self.rings_at = Some(now + delay);
            self.activator.activate_after(delay);
        }
    }
}

/// Sends what was made for each epoch under a capability of that epoch.
fn send<D: timely::ExchangeData>(
    output: &mut OutputBuilder<Epoch, timely::container::CapacityContainerBuilder<Vec<D>>>,
    capability: &mut Capability<Epoch>,
    batches: Vec<(Epoch, Vec<D>)>,
) {
    let mut output = output.activate();
    for (epoch, batch) in batches {
        let capability = capability.delayed(&epoch);
        output.session(&capability).give_iterator(batch.into_iter());
    }
}

/// What one activation has made, by epoch in order.
struct Emit {
    out: Vec<(Epoch, Vec<Arrival>)>,
    cuts: Vec<(Epoch, Vec<Cut>)>,
    dead: Vec<(Epoch, Vec<DeadLetter>)>,
}

impl Emit {
    fn at<D>(batches: &mut Vec<(Epoch, Vec<D>)>, epoch: Epoch) -> &mut Vec<D> {
        if batches.last().is_none_or(|(last, _)| *last != epoch) {
            batches.push((epoch, Vec::new()));
        }
        &mut batches.last_mut().expect("just pushed").1
    }
}

/// When to activate the source again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
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
    read_up: bool,
    retired: bool,
    /// Whether the feed reads it.
    assigned: bool,
    /// Whether its next binding goes out even if nothing has changed.
    untold: bool,
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

struct Source<F> {
    plan: Arc<Plan>,
    config: SourceConfig,
    control: Arc<Control>,
    durable: probe::Handle<Epoch>,
    feed: F,
    life: Life,
    /// The epoch that records are read into; every earlier one is cut.
    epoch: Epoch,
    parts: Vec<Part>,
    turn: usize,
    /// New partitions that are not read yet.
    found: Vec<(Partition, Offset)>,
    /// Epochs that are cut and not yet durable, with the ends that become durable with them.
    in_flight: VecDeque<(Epoch, Vec<(Partition, Offset)>)>,
    /// Ends that are durable and that the broker has not been told.
    settled: BTreeMap<Partition, Offset>,
    group_committed_ms: u64,
    scratch: Vec<u8>,
}

impl<F: Feed> Source<F> {
    fn new(
        plan: &Arc<Plan>,
        config: SourceConfig,
        control: Arc<Control>,
        durable: probe::Handle<Epoch>,
        mut feed: F,
        worker: usize,
        peers: usize,
    ) -> Result<Self, Fault> {
        let mut parts = Vec::new();
        for PartitionPlan { start, until, retired, .. } in plan.partitions_of(worker, peers) {
            // A topic that is read no more may not exist any more: it is touched only if the
            // replay needs its records.
            let replayed = plan.replay.iter().flat_map(|bound| &bound.bindings);
            let assigned = !retired
                || replayed.clone().any(|b| b.partition == start.partition && b.end > start.end);
            if assigned {
                feed.assign(start.partition, start.end)?;
            }
            parts.push(Part {
                clock: PartitionClock::resume(config.patience, *start, plan.first_epoch),
                until: *until,
                read_up: false,
                retired: *retired,
                assigned,
                untold: true,
            });
        }
        let mine = |binding: &Binding| binding.partition.worker(peers) == worker;
        let replay: VecDeque<BoundEpoch> = plan
            .replay
            .iter()
            .map(|bound| BoundEpoch {
                bindings: bound.bindings.iter().filter(|b| mine(b)).copied().collect(),
                ..bound.clone()
            })
            .collect();
        control.gauges.replay_epochs.fetch_max(replay.len() as u64, Relaxed);
        let epoch = replay.front().map_or(plan.first_epoch, |bound| bound.epoch);
        let life = if replay.is_empty() { Life::Live } else { Life::Replay(replay) };
        Ok(Source {
            plan: Arc::clone(plan),
            config,
            control,
            durable,
            feed,
            life,
            epoch,
            parts,
            turn: 0,
            found: Vec::new(),
            in_flight: VecDeque::new(),
            settled: BTreeMap::new(),
            group_committed_ms: 0,
            scratch: Vec::new(),
        })
    }

    /// What the capabilities go down to; `None` gives them up.
    fn frontier(&self) -> Option<Epoch> {
        match self.life {
            Life::Stopped => None,
            Life::Replay(_) | Life::Live => Some(self.epoch),
        }
    }

    fn activate(&mut self, emit: &mut Emit) -> Result<Next, Fault> {
        let now_ms = (self.config.now_ms)();
        self.settle(now_ms);
        match &self.life {
            Life::Stopped if self.in_flight.is_empty() => Ok(Next::Done),
            Life::Stopped => Ok(Next::After(Duration::from_millis(10))),
            _ if self.in_flight.len() >= EPOCHS_IN_FLIGHT && !self.control.stopping() => {
                Ok(Next::After(Duration::from_millis(2)))
            }
            Life::Replay(_) => self.replay(emit),
            Life::Live => self.live(emit, now_ms),
        }
    }

    /// Takes note of what has become durable, and tells the broker now and then.
    fn settle(&mut self, now_ms: u64) {
        while let Some((epoch, _)) = self.in_flight.front()
            && !self.durable.less_equal(epoch)
        {
            let (epoch, ends) = self.in_flight.pop_front().expect("there is a front");
            self.control.gauges.durable_epoch.fetch_max(epoch, Relaxed);
            self.settled.extend(ends);
        }
        let last = matches!(self.life, Life::Stopped) && self.in_flight.is_empty();
        let due = now_ms.abs_diff(self.group_committed_ms) >= GROUP_COMMIT_EVERY_MS;
        if (last || due) && !self.settled.is_empty() {
            self.group_committed_ms = now_ms;
            self.feed.durable(&std::mem::take(&mut self.settled));
        }
    }

    /// Reads the oldest bound epoch again; when it is complete, cuts it as it was cut.
    fn replay(&mut self, emit: &mut Emit) -> Result<Next, Fault> {
        if self.control.stopping() {
            // The epoch at hand is half read and cannot be cut. Nothing new was read, so leaving
            // everything where it is loses nothing: the next start begins where this one did.
            self.control.abandon();
            return Ok(Next::After(Duration::from_millis(100)));
        }
        let Life::Replay(replay) = &mut self.life else { unreachable!("replaying") };
        let bound = replay.front().expect("a replay ends with its last epoch").clone();
        debug_assert_eq!(bound.epoch, self.epoch, "the replay goes in order");
        self.serve()?;
        let mut limit = RECORDS_PER_ACTIVATION;
        let mut next = None;
        for binding in &bound.bindings {
            let at = self.part(binding.partition);
            if !self.parts[at].assigned {
                continue;
            }
            match self.read(at, Some(binding.end), &mut limit, emit)? {
                Stopped::AtEnd => {}
                Stopped::AtLimit => next = Some(Next::Now),
                Stopped::Waiting => {
                    next = next.or(Some(Next::After(Duration::from_millis(100))));
                }
            }
        }
        if let Some(next) = next {
            return Ok(next);
        }
        for binding in &bound.bindings {
            self.check_replayed(binding);
            let at = self.part(binding.partition);
            let part = &mut self.parts[at];
            part.clock =
                PartitionClock::resume(self.config.patience, *binding, self.plan.first_epoch);
        }
        Emit::at(&mut emit.cuts, bound.epoch).push(Cut { bindings: bound.bindings });
        self.in_flight.push_back((bound.epoch, Vec::new()));
        self.control.gauges.replayed_epochs.fetch_add(1, Relaxed);
        let Life::Replay(replay) = &mut self.life else { unreachable!("replaying") };
        replay.pop_front();
        match replay.front() {
            Some(next) => self.epoch = next.epoch,
            None => {
                self.epoch = self.plan.first_epoch;
                self.life = Life::Live;
            }
        }
        Ok(Next::Now)
    }

    /// A bound epoch brings what it brought (I2), unless the topic has lost records since.
    fn check_replayed(&self, binding: &Binding) {
        let clock = &self.parts[self.part(binding.partition)].clock;
        let (records, dead) = clock.counts();
        if (records, dead) != (binding.records, binding.dead) {
            log::warn!(
                "{}[{}]: reading up to offset {} again brought {} records, {} were recorded: \
                 the topic has lost records since (compaction, deletion)",
                self.plan.topic(binding.partition),
                binding.partition.number,
                binding.end,
                records,
                binding.records,
            );
        }
    }

    fn live(&mut self, emit: &mut Emit, now_ms: u64) -> Result<Next, Fault> {
        let current = tick(now_ms, self.config.epoch_ms);
        let first =
            self.parts.iter().any(|part| part.untold) || self.epoch == self.plan.first_epoch;
        if self.control.stopping() {
            self.serve()?;
            self.cut(emit);
            self.life = Life::Stopped;
            return Ok(Next::Now);
        }
        if first || current > self.epoch {
            self.serve()?;
            self.cut(emit);
            if self.config.until_end && self.parts.iter().all(Part::has_ended) {
                self.life = Life::Stopped;
                return Ok(Next::Now);
            }
            self.epoch = current.max(self.epoch + 1);
            for (partition, start) in std::mem::take(&mut self.found) {
                self.discover(partition, start)?;
            }
        }
        let mut limit = RECORDS_PER_ACTIVATION;
        let mut at_limit = false;
        for _ in 0..self.parts.len() {
            self.turn = (self.turn + 1) % self.parts.len();
            let part = &self.parts[self.turn];
            if part.untold || part.retired {
                continue;
            }
            let before = limit.min(RECORDS_PER_TURN);
            let mut turn = before;
            let until = part.until;
            let stopped = self.read(self.turn, until, &mut turn, emit)?;
            limit -= before - turn;
            at_limit |= stopped == Stopped::AtLimit;
            self.parts[self.turn].read_up |= until.is_some() && stopped == Stopped::AtEnd;
        }
        if self.config.until_end && (0..self.parts.len()).all(|at| self.at_until(at)) {
            // Nothing is left to wait for: end with this epoch, not with its tick.
            self.serve()?;
            self.cut(emit);
            self.life = Life::Stopped;
            return Ok(Next::Now);
        }
        if at_limit {
            return Ok(Next::Now);
        }
        let end_ms = self.epoch + self.config.epoch_ms;
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
    fn cut(&mut self, emit: &mut Emit) {
        let mut bindings = Vec::new();
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
            let caught_up = part.assigned && self.feed.caught_up(partition);
            let bound = part.clock.cut(self.epoch, position, caught_up, ended);
            if bound != before || part.untold {
                bindings.push(bound);
                ends.push((partition, bound.end));
            }
            part.untold = false;
        }
        Emit::at(&mut emit.cuts, self.epoch).push(Cut { bindings });
        self.in_flight.push_back((self.epoch, ends));
    }

    /// Whether a bounded run has read this partition to where it ends.
    fn at_until(&self, at: usize) -> bool {
        let part = &self.parts[at];
        let partition = part.clock.bound().partition;
        part.retired
            || part.read_up
            || part.until.is_some_and(|until| {
                self.feed.position(partition) >= until || self.feed.caught_up(partition)
            })
    }

    fn discover(&mut self, partition: Partition, start: Offset) -> Result<(), Fault> {
        log::info!(
            "found a new partition: {}[{}], reading it from offset {start}",
            self.plan.topic(partition),
            partition.number
        );
        self.feed.assign(partition, start)?;
        let initial = Binding::initial(partition, start);
        self.parts.push(Part {
            clock: PartitionClock::resume(self.config.patience, initial, self.epoch),
            until: None,
            read_up: false,
            retired: false,
            assigned: true,
            untold: true,
        });
        Ok(())
    }

    fn part(&self, partition: Partition) -> usize {
        let found = self.parts.iter().position(|part| part.clock.bound().partition == partition);
        found.expect("a bound partition is in the plan")
    }

    /// Reads records of one partition into the current epoch, and takes them off `limit`.
    fn read(
        &mut self,
        at: usize,
        end: Option<Offset>,
        limit: &mut usize,
        emit: &mut Emit,
    ) -> Result<Stopped, Fault> {
        let Part { clock, .. } = &mut self.parts[at];
        let partition = clock.bound().partition;
        let (config, scratch, epoch) = (&self.config, &mut self.scratch, self.epoch);
        let latest = EventTime::from_millis(epoch as i64).plus(config.max_future_ms);
        let (topic, shards) = (self.plan.topic(partition), self.plan.shards());
        let (mut records, mut dead) = (0, 0);
        let arrivals = Emit::at(&mut emit.out, epoch);
        let dead_letters = Emit::at(&mut emit.dead, epoch);
        let mut take = |record: Record<'_>| {
            records += 1;
            match decode(&record, latest) {
                Ok(event) => {
                    clock.event(event.time, epoch);
                    scratch.clear();
                    key::encode(&event.ip, &event.host, scratch);
                    arrivals.push(Arrival {
                        hash: stable_hash(scratch),
                        key: Key::from_encoded(scratch),
                        span: Span::event(event.time),
                    });
                }
                Err(rejected) => {
                    dead += 1;
                    clock.dead_letter(epoch);
                    let shard = Shard::of_record(topic, partition.number, record.offset, shards);
                    let most = config.dead_letter_bytes;
                    dead_letters.push(dead_letter(shard, partition, &record, rejected, most));
                }
            }
        };
        let stopped = self.feed.read(partition, end, *limit, &mut take)?;
        *limit -= records.min(*limit);
        self.control.gauges.records.fetch_add(records as u64, Relaxed);
        self.control.gauges.dead.fetch_add(dead, Relaxed);
        Ok(stopped)
    }
}

/// Decodes a record; an event later than `latest` is none.
fn decode<'a>(record: &Record<'a>, latest: EventTime) -> Result<event::Event<'a>, Rejected> {
    let event = event::decode(record.payload)?;
    if event.time > latest {
        let detail = format!(
            "event_time {} is later than {latest}, the epoch's clock and \
                              --max-future",
            event.time
        );
        return Err(Rejected { reason: Reason::Future, detail });
    }
    Ok(event)
}

fn dead_letter(
    shard: Shard,
    partition: Partition,
    record: &Record<'_>,
    rejected: Rejected,
    most_bytes: usize,
) -> DeadLetter {
    DeadLetter {
        shard,
        partition,
        offset: record.offset,
        reason: rejected.reason,
        detail: rejected.detail,
        payload: record.payload.map(|bytes| bytes[..bytes.len().min(most_bytes)].to_vec()),
        payload_bytes: record.payload.map_or(0, |bytes| bytes.len() as u64),
    }
}
