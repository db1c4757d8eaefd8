//! The metrics, in the format that the client accepts. Their names never change;
//! docs/METRICS.md lists them, and a test holds the list against a running job.
//!
//! Times are timestamps and not ages, so that they are still right while the process hangs.

mod format;
mod out;

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

pub use self::format::Format;
use self::format::plain;
use self::out::{Labels, Out};
use crate::dataflow::anomalies::figures::Counts;
use crate::monitor::JobFacts;
use crate::monitor::job_state::{AuditRow, JobState, Totals};
use crate::monitor::process::ProcessFigures;
use crate::monitor::sample::{DetectorSample, PartSample, PartState, Sample};

/// Writes the metrics of this process.
pub fn write(shown: Shown, process: ProcessFigures, format: Format) -> String {
    let mut registry = Registry::default();
    registry.sub_registry_with_prefix("sessionizer").register_collector(Box::new(shown));
    registry.register_collector(Box::new(process));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string has room");
    match format {
        Format::OpenMetrics => text,
        Format::Text => plain(&text),
    }
}

/// What the metrics of a moment are made of.
#[derive(Debug)]
pub struct Shown {
    pub facts: JobFacts,
    pub ready: bool,
    pub sample: Sample,
    pub lag_s: Option<f64>,
    /// The partitions that this process reads, and whether each holds the others back.
    pub parts: Vec<(PartSample, bool)>,
    pub page_clients: usize,
    pub audit: Option<AuditRow>,
}

impl Shown {
    pub fn new(
        job_state: &JobState,
        totals: &Totals,
        sample: &Sample,
        page_clients: usize,
    ) -> Self {
        let own = totals.parts.iter().filter(|row| row.sample.process == sample.process);
        let parts: Vec<_> = own.map(|row| (row.sample.clone(), row.holds_back)).collect();
        let active = parts.iter().filter(|(part, _)| part.state.is_active());
        let lag_ms = active
            .map(|(part, _)| part.lag_ms)
            .try_fold(0, |most, lag| Some(most.max(lag?)))
            .filter(|_| !parts.is_empty());
        Shown {
            facts: job_state.facts.clone(),
            ready: job_state.ready.is_ok(),
            sample: sample.clone(),
            lag_s: lag_ms.map(|ms| ms as f64 / 1_000.0),
            parts,
            page_clients,
            audit: job_state.audit.as_ref().ok().copied().flatten(),
        }
    }
}

fn seconds(ms: i64) -> f64 {
    ms as f64 / 1_000.0
}

impl Collector for Shown {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut out = Out(encoder);
        self.run(&mut out)?;
        self.records(&mut out)?;
        self.partitions(&mut out)?;
        self.time(&mut out)?;
        self.statistics(&mut out)?;
        self.anomalies(&mut out)?;
        self.audit(&mut out)?;
        self.writers(&mut out)
    }
}

impl Shown {
    fn run(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let JobFacts { version, revision, .. } = self.facts;
        let labels = vec![("version", version.to_owned()), ("revision", revision.to_owned())];
        out.info("build", "The program: its version and the commit it was built from", &labels)?;
        let facts = &self.facts;
        let labels = vec![
            ("job", facts.job.clone()),
            ("process", facts.process.to_string()),
            ("processes", facts.processes.to_string()),
            ("workers", facts.workers.to_string()),
            ("writers", facts.writers.to_string()),
        ];
        out.info("run", "The run: its job, and how many take part in it", &labels)?;
        let ready = f64::from(u8::from(self.ready));
        out.gauge("ready", "1 if the process makes progress or has nothing to do", Some(ready))?;
        let clients = self.page_clients as f64;
        out.gauge("page_clients", "Pages that are open on this process", Some(clients))
    }

    /// Absent while no audit is known.
    fn audit(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let Some(audit) = &self.audit else { return Ok(()) };
        let at = seconds(audit.audited_at_ms);
        out.gauge("audit_timestamp_seconds", "When the last audit ended", Some(at))?;
        let found = audit.differences as f64;
        out.gauge("audit_differences", "Differences that the last audit has found", Some(found))?;
        let rows = audit.rows as f64;
        out.gauge("audit_rows", "Rows that the last audit has compared", Some(rows))
    }

    fn records(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let sample = &self.sample;
        let records = self.parts.iter().map(|(part, _)| (labels(part), part.records));
        out.counters("records", "Records read, in this run", records)?;
        let mut events: Vec<(&str, u64)> = Vec::new();
        for (part, _) in &self.parts {
            let read = part.records.saturating_sub(part.dead);
            match events.iter_mut().find(|(topic, _)| *topic == part.topic) {
                Some((_, events)) => *events += read,
                None => events.push((&part.topic, read)),
            }
        }
        let events = events.into_iter().map(|(topic, n)| (vec![("topic", topic.to_owned())], n));
        out.counters("events", "Records that were events, in this run", events)?;
        let letters = sample.letters.iter();
        let letters = letters.map(|of| (vec![("reason", of.reason.clone())], of.count));
        out.counters("dead_letters", "Records that became dead letters, in this run", letters)?;
        let dropped = sample.letters.iter().find(|letters| letters.reason == "late");
        let late = [("merged", sample.late_events), ("dropped", dropped.map_or(0, |of| of.count))];
        let late = late.map(|(outcome, n)| (vec![("outcome", outcome.to_owned())], n));
        out.counters(
            "late_events",
            "Events whose session had closed, by what became of them",
            late,
        )?;
        out.counter("rows_inserted", "Rows added to the table, in this run", sample.rows_added)?;
        out.counter(
            "rows_deleted",
            "Rows removed from the table because late events have joined them",
            sample.rows_removed,
        )?;
        let hosts = sample.hosts.metrics.iter().map(|(host, n)| (host.as_str(), *n));
        let hosts = hosts.chain([("(other)", sample.hosts.metrics_other)]);
        let hosts = hosts.map(|(host, n)| (vec![("host", host.to_owned())], n.max(0) as u64));
        out.counters("host_sessions", "Rows added to the table, by host", hosts)?;
        let open = Some(sample.open as f64);
        out.gauge("sessions_open", "Sessions that are open", open)?;
        let bytes = Some(sample.state_bytes as f64);
        out.gauge("state_bytes", "Memory of the tables of open sessions", bytes)?;
        let used = Some(sample.memory.0 as f64);
        out.gauge("in_flight_bytes", "Memory for data in flight that is in use (--memory)", used)
    }

    fn partitions(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let known = |of: fn(&PartSample) -> Option<f64>| {
            let values =
                self.parts.iter().filter_map(move |(part, _)| Some((labels(part), of(part)?)));
            values.collect::<Vec<_>>()
        };
        let flag = |of: &dyn Fn(&PartSample, bool) -> bool| {
            let values = self.parts.iter();
            let values = values.map(|(part, holds)| (labels(part), of(part, *holds)));
            values.map(|(labels, on)| (labels, f64::from(u8::from(on)))).collect::<Vec<_>>()
        };
        out.gauges(
            "lag_records",
            "Records that are available and not read; absent while the end is not known",
            known(|part| part.waiting.map(|waiting| waiting as f64)),
        )?;
        out.gauge(
            "lag_seconds",
            "For how long, at most, the oldest unread record has been in Kafka",
            self.lag_s,
        )?;
        out.gauges(
            "promise_timestamp_seconds",
            "No on-time event of the partition is older",
            known(|part| part.promise_ms.map(seconds)),
        )?;
        let idle = flag(&|part, _| part.state == PartState::Idle);
        out.gauges("partition_idle", "1 if it is silent and holds nothing back", idle)?;
        let paused = flag(&|part, _| part.state == PartState::Paused);
        out.gauges("partition_paused", "1 if it waits for slower ones (--max-drift)", paused)?;
        let holds = flag(&|_, holds| holds);
        out.gauges("partition_holds_back", "1 if the watermark waits for this one", holds)
    }

    fn time(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let sample = &self.sample;
        out.gauge(
            "watermark_timestamp_seconds",
            "No on-time event is older",
            sample.watermark_ms.map(seconds),
        )?;
        let epoch = |epoch: u64| (epoch > 0).then(|| seconds(epoch as i64));
        let last = epoch(sample.epoch);
        out.gauge("epoch_timestamp_seconds", "The last epoch that is complete", last)?;
        let durable = epoch(sample.durable_epoch);
        out.gauge("durable_epoch_timestamp_seconds", "The last epoch that is durable", durable)?;
        out.gauge(
            "durable_watermark_timestamp_seconds",
            "The watermark of the last durable epoch: the table is complete up to it",
            sample.durable_watermark_ms.map(seconds),
        )?;
        out.histograms(
            "durable_delay_seconds",
            "From the end of an epoch until it is durable",
            [(Labels::new(), &sample.durable_delay)],
        )?;
        let (oldest, bytes) = sample.snapshots.unzip();
        out.gauge(
            "snapshot_timestamp_seconds",
            "The oldest snapshot of open sessions: a restart replays what came since then",
            oldest.and_then(epoch),
        )?;
        let bytes = bytes.map(|bytes| bytes as f64);
        out.gauge("snapshot_bytes", "The size of the snapshots of open sessions", bytes)
    }

    fn anomalies(&self, out: &mut Out<'_>) -> Result<(), Error> {
        if let Some(DetectorSample { hosts, visitors, refused_rows, .. }) =
            self.sample.window.detectors
        {
            let help = "Hosts that are looked at for anomalies";
            out.gauge("anomalies_hosts", help, Some(hosts as f64))?;
            let help = "Visitors that are looked at for anomalies, on each day and at each host";
            out.gauge("anomalies_visitors", help, Some(visitors as f64))?;
            let help = "Rows that were not looked at, because there was no room for their host";
            out.counter("anomalies_rows_refused", help, refused_rows)?;
        }
        let Some(anomalies) = &self.sample.anomalies else { return Ok(()) };
        let of = |count: fn(&Counts) -> u64| {
            let all = anomalies.counts.iter();
            let all = all.map(move |(kind, n)| (vec![("kind", kind.name().to_owned())], count(n)));
            all.collect::<Vec<_>>()
        };
        let help = "Anomalies that were found, in this run";
        out.counters("anomalies", help, of(|n| n.raised))?;
        let help = "Anomalies that a correction has withdrawn, in this run";
        out.counters("anomalies_withdrawn", help, of(|n| n.withdrawn))?;
        let live = of(|n| n.live).into_iter().map(|(labels, n)| (labels, n as f64));
        out.gauges("anomalies_live", "Anomalies of the last day", live.collect::<Vec<_>>())
    }

    fn statistics(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let Sample { counts, window, statistics, .. } = &self.sample;
        if !counts {
            return Ok(());
        }
        let sizes = [
            ("statistics_hosts", "Hosts that are counted individually", window.hosts),
            ("statistics_cells", "Sums that are kept, by host, time and bin", window.cells),
            ("statistics_visitors", "Visitors that are kept, in each hour", window.visitors),
        ];
        for (name, help, size) in sizes {
            out.gauge(name, help, Some(size as f64))?;
        }
        let help = "Rows that were not counted, because their sessions had ended before the window";
        out.counter("statistics_rows_too_old", help, window.too_old)?;
        let Some(board) = statistics else { return Ok(()) };
        let epoch = Some(seconds(board.epoch as i64));
        let help = "Everything that was committed up to this epoch is in the statistics";
        out.gauge("statistics_epoch_timestamp_seconds", help, epoch)?;
        let help = "Counts that were negative: the statistics of this run are wrong";
        out.counter("statistics_broken", help, board.broken)
    }

    fn writers(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let writers = &self.sample.writers;
        let label = |writer: u32| vec![("writer", writer.to_string())];
        let commits = writers.iter().map(|writer| (label(writer.writer), writer.commits));
        out.counters("commits", "Transactions committed", commits)?;
        let rows = writers.iter().map(|writer| (label(writer.writer), writer.rows));
        out.counters("commit_rows", "Sessions that were committed", rows)?;
        let took = writers.iter().map(|writer| (label(writer.writer), &writer.took));
        out.histograms("commit_seconds", "How long commits took", took)?;
        let waits = writers.iter();
        let waits = waits.map(|writer| (label(writer.writer), writer.waiting_epochs as f64));
        out.gauges("writer_waiting_epochs", "Epochs that wait to be committed", waits)?;
        let of = |whose: &'static str, label: &'static str| {
            let troubles = self.sample.troubles.iter().filter(move |(of, ..)| of == whose);
            troubles.map(move |(_, kind, n)| (vec![(label, kind.clone())], *n))
        };
        let retries = of("postgres", "cause");
        out.counters("postgres_retries", "Attempts that failed and were repeated", retries)?;
        let errors = of("kafka", "kind");
        out.counters("kafka_errors", "Errors that the client of Kafka has reported", errors)
    }
}

fn labels(part: &PartSample) -> Labels {
    vec![("topic", part.topic.clone()), ("partition", part.number.to_string())]
}

impl Collector for ProcessFigures {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut out = Out(encoder);
        if let Some(seconds) = self.cpu_seconds {
            let help = "CPU time, of the user and the system";
            out.counter("process_cpu_seconds", help, seconds)?;
        }
        let resident = self.resident_bytes.map(|bytes| bytes as f64);
        out.gauge("process_resident_memory_bytes", "Resident memory", resident)?;
        let open = self.open_files.map(|files| files as f64);
        out.gauge("process_open_fds", "Open files", open)?;
        let most = self.most_files.map(|files| files as f64);
        out.gauge("process_max_fds", "How many files may be open", most)?;
        let started = self.started_seconds;
        out.gauge("process_start_time_seconds", "When the process was started", started)
    }
}
