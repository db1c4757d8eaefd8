//! A single audit: what it continues from, reads, finds and keeps.

use std::time::Instant;

use log::{info, warn};
use serde_json::{Map, Value};
use sessionizer_core::audit::{Comparison, OldEvents, Proof, Rules};
use sessionizer_core::fault::Fault;

use crate::commands::audit::report::Report;
use crate::commands::audit::topic::{Ends, RecordKind, TopicScan, ends_by_shard};
use crate::commands::audit::{Settings, stopped};
use crate::commands::output::unreadable;
use crate::commands::reread::Available;
use crate::dataflow::ports::LedgerError;
use crate::dataflow::run_state::RunState;
use crate::kafka::KafkaConfig;
use crate::ledger::{AuditSnapshot, Audits, LedgerConfig, NamedBinding, NewAudit};
use crate::ui::text::plural;

/// Compares the table of a job with the topic, and keeps the result.
pub(super) fn once(
    kafka: &KafkaConfig,
    ledger: &LedgerConfig,
    settings: &Settings,
    run_state: &RunState,
) -> Result<Report, Fault> {
    let began = Instant::now();
    let audits = begin(ledger, settings)?;
    let mut snapshot = AuditSnapshot::read(ledger).map_err(unreadable)?;
    let (proof, incremental) = start(&mut snapshot, audits.as_ref(), settings)?;
    let audit = Audit { kafka, run_state, incremental, shown: settings.show };
    let (comparison, mut report) = audit.compare(&mut snapshot, proof)?;
    report.next_start = match snapshot.check_next_start() {
        Ok(()) => None,
        Err(LedgerError::Fatal(fault)) => Some(fault),
        Err(error) => return Err(unreadable(error)),
    };
    if let Some(audits) = audits {
        let duration_ms = began.elapsed().as_millis() as i64;
        let audit = new_audit(&snapshot, &report, duration_ms);
        let proof = (!snapshot.found_rows).then(|| prove(&snapshot, comparison, settings.keep_ms));
        // The verdict stands, whether it can be kept or not.
        match audits.keep(&audit, proof.as_ref()) {
            Ok(None) => {}
            Ok(Some(why)) => warn!("what was verified is not kept: {why}"),
            Err(why) => warn!("the result of the audit is not kept: {why}"),
        }
    }
    Ok(report)
}

/// Claims the state; `None` if nothing may be kept.
fn begin(ledger: &LedgerConfig, settings: &Settings) -> Result<Option<Audits>, Fault> {
    if !settings.record {
        return Ok(None);
    }
    match Audits::begin(ledger).map_err(unreadable)? {
        Ok(audits) => Ok(Some(audits)),
        Err(why) => {
            if !settings.not_kept_logged.replace(true) {
                info!("the result of this audit is not kept: {why}");
            }
            Ok(None)
        }
    }
}

/// Returns the proof that the audit continues from, and whether an earlier audit left one.
fn start(
    snapshot: &mut AuditSnapshot,
    audits: Option<&Audits>,
    settings: &Settings,
) -> Result<(Proof, bool), Fault> {
    let nothing = Proof::of_nothing(snapshot.shards.len());
    if audits.is_none() || settings.full || snapshot.found_rows {
        return Ok((nothing, false));
    }
    let Some(found) = snapshot.proof().map_err(unreadable)? else {
        return Ok((nothing, false));
    };
    let usable = found.and_then(|proof| match why_outdated(&proof, snapshot) {
        Some(why) => Err(why),
        None => Ok(proof),
    });
    match usable {
        Ok(proof) => Ok((proof, true)),
        Err(why) => {
            info!("rereading everything: {why}");
            Ok((nothing, false))
        }
    }
}

fn why_outdated(proof: &Proof, snapshot: &AuditSnapshot) -> Option<String> {
    let changed = proof.why_outdated(&snapshot.history, &snapshot.shards);
    changed.or_else(|| {
        let ahead = |((topic, partition), verified): (&(String, i32), &Vec<_>)| {
            let place = |binding: &&_| is_at(binding, topic, *partition);
            let binding = snapshot.latest_bindings().iter().find(place);
            let ends = binding.map(|binding| ends_by_shard(snapshot, binding)).unwrap_or_default();
            let behind =
                verified.len() != ends.len() || verified.iter().zip(&ends).any(|(v, e)| v > e);
            behind.then(|| {
                format!("{topic}[{partition}] was verified further than the job has read it")
            })
        };
        proof.ends.iter().find_map(ahead)
    })
}

fn is_at(binding: &NamedBinding, topic: &str, partition: i32) -> bool {
    binding.topic == topic && binding.partition == partition
}

/// How an audit compares.
struct Audit<'a> {
    kafka: &'a KafkaConfig,
    run_state: &'a RunState,
    /// Whether it continues from an earlier one.
    incremental: bool,
    /// How many differences of a kind are shown.
    shown: usize,
}

impl Audit<'_> {
    fn compare(
        &self,
        snapshot: &mut AuditSnapshot,
        proof: Proof,
    ) -> Result<(Comparison, Report), Fault> {
        let ends = proof.ends.clone();
        let mut comparison = Comparison::new(self.rules(snapshot), proof);
        let (mut read, forgotten) = self.read_new(snapshot, &ends, &mut comparison)?;
        for (key, row) in std::mem::take(&mut snapshot.refused_rows) {
            comparison.refused(key, row);
        }
        let rows = self.read_table(snapshot, &mut comparison)?;
        let old = self.read_old(snapshot, &ends, &mut comparison, &mut read)?;
        let mut findings = comparison.finish(old).clone();
        if !self.incremental {
            // As many records must be forgotten as are recorded. An audit that continues reads none
            // of them: `sessionizer forget` deletes what audits have verified, so the next one is
            // full.
            for (at, progress) in findings.progress.iter_mut().enumerate() {
                let more = forgotten[at] as i64 - snapshot.forgotten_records[at] as i64;
                progress.open = progress.open.saturating_add_signed(more);
            }
        }
        let report = Report {
            events: comparison.events(),
            incremental: self.incremental,
            records_read: read,
            rows,
            ..Report::of(snapshot, findings)
        };
        Ok((comparison, report))
    }

    fn rules(&self, snapshot: &AuditSnapshot) -> Rules {
        let shards = snapshot.shards.iter();
        Rules {
            gap: snapshot.gap,
            end_after_ms: snapshot.end_after_ms(),
            found_rows: snapshot.found_rows,
            found_rows_to: snapshot.found_rows_to,
            shown: self.shown,
            closes_before: shards.map(|shard| snapshot.epochs[&shard.epoch].0).collect(),
        }
    }

    /// Reads the records that no audit has verified. Returns how many there are, and by shard how
    /// many are of visitors that were forgotten.
    fn read_new(
        &self,
        snapshot: &AuditSnapshot,
        verified: &Ends,
        comparison: &mut Comparison,
    ) -> Result<(u64, Vec<u64>), Fault> {
        let scan = TopicScan::new_records(snapshot, verified);
        self.refuse_holes(&scan)?;
        let (records, partitions) =
            (plural(scan.records(), "record"), plural(scan.ranges.len(), "partition"));
        match self.incremental {
            false => info!("reading up to {records} of {partitions} again"),
            true => {
                info!("continuing from the last audit: reading up to {records} of {partitions}")
            }
        }
        let mut forgotten = vec![0; snapshot.shards.len()];
        let read = scan.read(self.kafka, self.run_state, |shard, kind| match kind {
            RecordKind::Event(key, time) => comparison.event(shard, key, time),
            RecordKind::Forgotten => forgotten[shard.0 as usize] += 1,
            RecordKind::Dead => comparison.dead(shard),
        })?;
        let (records, sessions) =
            (plural(read, "record"), plural(comparison.sessions(), "session"));
        match self.incremental {
            false => info!("{records} make {sessions}; reading the table"),
            true => {
                info!("{records} and {sessions} that are open or recent; reading the table")
            }
        }
        Ok((read, forgotten))
    }

    fn refuse_holes(&self, scan: &TopicScan<'_>) -> Result<(), Fault> {
        let Some(available) = scan.missing(self.kafka, self.run_state)? else { return Ok(()) };
        let Available { range, oldest, end } = available;
        let since = if self.incremental { " since the last audit" } else { "" };
        Err(Fault::config(format!(
            "{}[{}]: the job has read offsets {} to {}{since}, Kafka has {oldest} to {end}: records \
             that are gone cannot be audited",
            range.topic, range.partition, range.start, range.end
        )))
    }

    /// Compares the rows of the table. Returns how many there are.
    fn read_table(
        &self,
        snapshot: &mut AuditSnapshot,
        comparison: &mut Comparison,
    ) -> Result<u64, Fault> {
        let mut rows = 0;
        snapshot
            .rows(|key, row| {
                rows += 1;
                comparison.row(key, row);
                !self.run_state.ending()
            })
            .map_err(unreadable)?;
        match self.run_state.ending() {
            true => Err(stopped()),
            false => Ok(rows),
        }
    }

    /// Reads the older events of late keys, if they are needed and Kafka still has them.
    fn read_old(
        &self,
        snapshot: &AuditSnapshot,
        verified: &Ends,
        comparison: &mut Comparison,
        read: &mut u64,
    ) -> Result<OldEvents, Fault> {
        if !comparison.needs_old_events() {
            return Ok(OldEvents::NotNeeded);
        }
        let scan = TopicScan::old_records(snapshot, verified);
        let keys = plural(comparison.late_keys(), "visitor");
        if scan.missing(self.kafka, self.run_state)?.is_some() {
            info!(
                "{keys} had late events in a period that was already verified, and Kafka lacks the \
                 older ones"
            );
            return Ok(OldEvents::Gone);
        }
        info!(
            "{keys} had late events in a period that was already verified: reading up to {} again \
             for them",
            plural(scan.records(), "record")
        );
        *read += scan.read(self.kafka, self.run_state, |_, kind| {
            if let RecordKind::Event(key, time) = kind {
                comparison.old_event(key, time);
            }
        })?;
        Ok(OldEvents::Read)
    }
}

/// The proof that the next audit continues from.
fn prove(snapshot: &AuditSnapshot, comparison: Comparison, keep_ms: i64) -> Proof {
    // A session that an on-time event may still join is never sealed.
    let before = snapshot.watermark.plus(-keep_ms.max(snapshot.gap.millis()));
    let epochs = snapshot.shards.iter().map(|shard| shard.epoch);
    let place = |binding: &NamedBinding| {
        ((binding.topic.clone(), binding.partition), ends_by_shard(snapshot, binding))
    };
    let ends: Ends = snapshot.latest_bindings().iter().map(place).collect();
    comparison.into_proof(before, epochs, ends, snapshot.history.clone())
}

fn new_audit(snapshot: &AuditSnapshot, report: &Report, duration_ms: i64) -> NewAudit {
    let end = |binding: &NamedBinding| {
        let end = ends_by_shard(snapshot, binding).into_iter().min()?;
        Some((format!("{}/{}", binding.topic, binding.partition), end.get().into()))
    };
    let through: Map<String, Value> = snapshot.latest_bindings().iter().filter_map(end).collect();
    NewAudit {
        duration_ms,
        incremental: report.incremental,
        verified_through: Value::Object(through).to_string(),
        as_of: snapshot.shards.iter().map(|shard| shard.epoch).min().unwrap_or(0),
        watermark: snapshot.watermark,
        records_read: report.records_read,
        rows_compared: report.rows,
        differences: report.differences(),
        unverifiable: report.findings.unverifiable,
        verdict: match report.verdict() {
            Ok(sentence) => sentence,
            Err(fault) => fault.to_string(),
        },
    }
}
