//! `sessionizer produce`: writes events to a topic, from an access log or generated.

pub mod access_log;
pub mod event;
pub mod generate;
pub mod history;
mod order;
pub mod pace;
pub mod planned;
pub mod scenario;

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use access_log::AccessLog;
use generate::{GeneratedRecord, Generator, Recipe};
use history::HistoryPlan;
use indicatif::ProgressBar;
use log::{info, warn};
use order::{Order, Source};
use pace::Pace;
use sessionizer_core::binding::Offset;
use sessionizer_core::fault::Fault;

use crate::cli::ProduceArgs;
use crate::config::Environment;
use crate::dataflow::run_state::{Interruption, RunState};
use crate::job::clock::now_ms;
use crate::kafka::{Admin, Foreign, KafkaConfig, Publisher, create_topic, foreign_records};
use crate::ui::bars::{bars, style};
use crate::ui::can_redraw;
use crate::ui::text;
use crate::ui::text::plural;

/// A record to be sent.
pub struct Outgoing {
    key: Option<String>,
    payload: Option<Vec<u8>>,
    /// `None`: the client chooses by the key.
    partition: Option<i32>,
}

/// Writes until the number is reached, the log ends, or somebody asks to stop.
pub fn produce(
    args: &ProduceArgs,
    env: &Environment,
    run_state: &Arc<RunState>,
) -> Result<(), Fault> {
    let order = order::read(args, env)?;
    let topic = &order.kafka.topics[0];
    if order.kafka.topics.len() > 1 {
        warn!("KAFKA_TOPIC names several topics: writing to the first, {topic}");
    }
    // A mistake must not leave a topic behind.
    let log = opened(&order, run_state)?;
    if let Source::Planned(planned) = &order.source {
        planned.check_truth()?;
    }
    if run_state.stopping() {
        return Ok(());
    }
    let suits = || match &order.source {
        Source::Planned(planned) => planned.check_partitions(topic, order.partitions as u32),
        _ => Ok(()),
    };
    let is_new = create_topic(&order.kafka, order.partitions, suits)?;
    if is_new {
        info!("created the topic {topic}, {}", plural(order.partitions, "partition"));
    } else if !order.append {
        refuse_foreign(&order.kafka)?;
    }
    let publisher = Publisher::new(&order.kafka, &order.compression)?;
    let writer = RecordSender::new(&order, publisher, run_state);
    match (&order.source, order.history) {
        (Source::AccessLog { .. }, _) => log.map_or(Ok(()), |log| writer.access_log(log)),
        (Source::Planned(planned), _) => {
            // Brokers may take a moment to know a new topic.
            let partitions = match is_new || !planned.chooses_partitions() {
                true => order.partitions,
                false => partitions(&order.kafka, run_state)?,
            };
            let plan = planned.plan(topic, partitions)?;
            let number = order.number.map_or(usize::MAX, |number| number as usize);
            writer.write(planned::records(&plan).map(Ok).take(number))
        }
        (Source::Generated(recipe), None) => writer.write(records(recipe.as_ref().clone())?),
        (Source::Generated(recipe), Some(history)) => writer.history_then_live(recipe, history),
    }
}

/// Opens the access log, if it is one that is written, and reads up to its first record.
fn opened<'a>(order: &Order, run_state: &'a RunState) -> Result<Option<AccessLog<'a>>, Fault> {
    let Source::AccessLog { path, host } = &order.source else { return Ok(None) };
    // A pipe may be silent for ever.
    let message = "stopped; nothing was written";
    run_state.set_interruption(Interruption::Anywhere { message, exit_code: 1 });
    let log = AccessLog::open(path, host, run_state)?;
    run_state.set_interruption(Interruption::Noticed);
    Ok(Some(log))
}

/// Refuses to write to a topic of real events: generated ones could not be removed again.
fn refuse_foreign(kafka: &KafkaConfig) -> Result<(), Fault> {
    let Some(Foreign { partition, records }) = foreign_records(kafka)? else { return Ok(()) };
    let topic = &kafka.topics[0];
    Err(Fault::config(format!(
        "the topic {topic} holds {}, and `sessionizer produce` has not written those of \
         {topic}[{partition}]: name another topic (KAFKA_TOPIC), or write to this one all the same \
         with --append",
        plural(records, "record")
    )))
}

fn records(recipe: Recipe) -> Result<impl Iterator<Item = Result<Outgoing, Fault>>, Fault> {
    let generator = Generator::new(recipe).map_err(Fault::config)?;
    Ok(generator.map(|record| Ok(Outgoing::from(record))))
}

/// How many partitions the topic has.
fn partitions(kafka: &KafkaConfig, run_state: &RunState) -> Result<i32, Fault> {
    Ok(Admin::new(kafka)?.topics(Duration::from_secs(60), || run_state.ending())?[0])
}

/// Whether nothing was ever written to the topic.
fn is_empty(kafka: &KafkaConfig, run_state: &RunState) -> Result<bool, Fault> {
    let admin = Admin::new(kafka)?;
    for partition in 0..partitions(kafka, run_state)? {
        if admin.offsets(&kafka.topics[0], partition)?.1 > Offset::ZERO {
            return Ok(false);
        }
    }
    Ok(true)
}

impl From<GeneratedRecord> for Outgoing {
    fn from(record: GeneratedRecord) -> Self {
        Outgoing { key: record.key, payload: record.payload, partition: None }
    }
}

/// Sends records at their rate and shows the progress.
struct RecordSender<'a> {
    order: &'a Order,
    publisher: Publisher,
    run_state: &'a RunState,
    bar: ProgressBar,
    sent: Cell<u64>,
}

impl<'a> RecordSender<'a> {
    fn new(order: &'a Order, publisher: Publisher, run_state: &'a RunState) -> Self {
        let bar = match (can_redraw(&std::io::stderr()), order.number) {
            (false, _) => ProgressBar::hidden(),
            (true, Some(number)) => bars().add(ProgressBar::new(number)).with_style(style(
                "{bar:24} {percent}% of {human_len} records, {rate}, {eta} to go",
            )),
            (true, None) => bars()
                .add(ProgressBar::new_spinner())
                .with_style(style("{spinner} {human_pos} records, {rate}")),
        };
        RecordSender { order, publisher, run_state, bar, sent: Cell::new(0) }
    }

    /// Writes the history if the topic is empty, then continues live.
    fn history_then_live(&self, recipe: &Recipe, history: HistoryPlan) -> Result<(), Fault> {
        let topic = &self.order.kafka.topics[0];
        let limit = self.order.number.unwrap_or(u64::MAX);
        let now = || now_ms() as i64;
        if is_empty(&self.order.kafka, self.run_state)? {
            let began = Instant::now();
            let past = history.records(recipe, now).map_err(Fault::config)?;
            let past = past.take(usize::try_from(limit).unwrap_or(usize::MAX));
            self.send(past.map(|record| Ok(Outgoing::from(record))), 0.0)?;
            self.publisher.flush()?;
            info!(
                "wrote {} records, the history of {}, in {:.1} s; live events follow",
                text::count(self.sent.get()),
                text::setting(history.length_ms),
                began.elapsed().as_secs_f64()
            );
        } else {
            info!("{topic} holds records already: no history is written, live events follow");
        }
        let number = self.order.number.map(|number| number.saturating_sub(self.sent.get()));
        self.write(records(history::live(&Recipe { number, ..recipe.clone() }, now()))?)
    }

    fn access_log(&self, mut log: AccessLog<'_>) -> Result<(), Fault> {
        let limit = self.order.number.unwrap_or(u64::MAX);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let result = self.write(log.by_ref().take(limit));
        log.summarize();
        result
    }

    /// Sends the records at the requested rate, waits until all are confirmed, and says so.
    fn write(&self, records: impl Iterator<Item = Result<Outgoing, Fault>>) -> Result<(), Fault> {
        let began = Instant::now();
        let ended = self.send(records, self.order.rate);
        self.publisher.flush()?;
        self.bar.finish_and_clear();
        info!(
            "wrote {} to the topic {} in {}",
            plural(self.publisher.delivered(), "record"),
            self.order.kafka.topics[0],
            text::duration(began.elapsed())
        );
        ended
    }

    /// Sends records at a rate until somebody asks to stop; 0 means as fast as possible.
    fn send(
        &self,
        records: impl Iterator<Item = Result<Outgoing, Fault>>,
        rate: f64,
    ) -> Result<(), Fault> {
        let began = Instant::now();
        let mut pace = (rate > 0.0).then(|| Pace::new(rate));
        let mut due = 0;
        for record in records {
            while let Some(pace) = &mut pace
                && due == 0
                && !self.run_state.stopping()
            {
                due = pace.due(began.elapsed());
                if due == 0 {
                    std::thread::sleep(pace.wait().min(Duration::from_millis(50)));
                }
            }
            if self.run_state.stopping() {
                break;
            }
            due = due.saturating_sub(1);
            let record = record?;
            let key = record.key.as_deref().filter(|_| self.order.keyed);
            let payload = record.payload.as_deref();
            let give_up = || self.run_state.stopping();
            if !self.publisher.send_to(record.partition, key, payload, give_up)? {
                break;
            }
            self.sent.set(self.sent.get() + 1);
            if self.sent.get().is_multiple_of(1_000) || pace.is_some() {
                self.bar.set_position(self.sent.get());
            }
        }
        Ok(())
    }
}
