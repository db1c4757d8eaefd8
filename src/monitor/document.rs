//! The document of `/status`, and what changes from one to the next. Rendering only: nothing is
//! counted here. docs/METRICS.md describes it; what is not known is null, with the reason beside
//! it.
//!
//! The file is longer than others because it holds the whole document, block by block: whoever
//! changes a field finds its neighbours here.

use serde_json::{Map, Value, json};

use crate::dataflow::changes::{HOSTS, HostSums, LATEST};
use crate::monitor::health::Verdict;
use crate::monitor::history::{Mark, POINT_INTERVAL_MS, Point, RETENTION_MS};
use crate::monitor::job_state::{JobState, PartRow, Totals, state_text};
use crate::monitor::mask::mask;
use crate::monitor::sample::{LatestSample, LetterSample, Sample, WriterSample};
use crate::monitor::{anomalies, statistics};
use crate::ui::text::count;

/// If it changes, pages that were loaded from an older version have to be reloaded.
pub const SCHEMA: u32 = 1;
/// How many partitions are shown.
const PARTS: usize = 512;
/// How much of a text that comes from outside is shown.
const TEXT_CHARS: usize = 300;

/// A document: blocks by name.
pub type Document = Map<String, Value>;

/// The document, without the history.
pub fn document(job_state: &JobState, totals: &Totals, samples: &[Sample]) -> Document {
    let facts = &job_state.facts;
    let blocks = json!({
        "schema": SCHEMA,
        "at": totals.at_ms,
        "run": facts.run,
        "version": facts.version,
        "revision": facts.revision,
        "job": {
            "name": facts.job, "table": facts.table, "topics": facts.topics,
            "gap_ms": facts.gap_ms, "out_of_orderness_ms": facts.out_of_orderness_ms,
            "idle_timeout_ms": facts.idle_timeout_ms, "epoch_ms": facts.epoch_ms,
            "late": facts.late, "until_end": facts.until_end,
            "process": facts.process, "processes": facts.processes, "workers": facts.workers,
            "writers": facts.writers,
            "scope": if samples.len() == facts.processes { "job" } else { "process" },
            "scope_text": scope_text(facts.process, samples.len(), facts.processes),
            "masked": facts.masked, "started_at": facts.started_ms,
        },
        "sentence": {
            "state": job_state.sentence.state, "tone": job_state.sentence.tone,
            "text": job_state.sentence.text, "since": job_state.since_ms,
            "cause": job_state.sentence.cause.as_deref().map(short),
        },
        "health": {"live": verdict(&job_state.live), "ready": verdict(&job_state.ready)},
        "tiles": tiles(totals, samples),
        "partitions": partitions(totals),
        "writers": {"rows": samples.iter().flat_map(|s| &s.writers).map(writer).collect::<Vec<_>>()},
        "hosts": hosts(job_state, samples),
        "latest": {"keep": LATEST, "rows": latest(job_state, samples)},
        "dead_letters": dead_letters(job_state, samples),
        "balance": balance(job_state),
        "proof": proof(job_state),
        "anomalies": anomalies::block(facts, samples),
        "peers": {"rows": samples.iter().map(peer).collect::<Vec<_>>()},
    });
    let mut document = match blocks {
        Value::Object(blocks) => blocks,
        _ => unreachable!("an object"),
    };
    statistics::add(&mut document, samples, (facts.process, facts.masked));
    document
}

/// A block of which nothing is known, with the reason.
pub(super) fn unknown(fields: &[&str], why: &str) -> Value {
    let mut block = Map::new();
    let mut reasons = Map::new();
    for field in fields {
        block.insert((*field).to_owned(), Value::Null);
        reasons.insert((*field).to_owned(), why.into());
    }
    block.insert("why".to_owned(), reasons.into());
    block.into()
}

/// A text from outside, cut.
fn short(text: &str) -> String {
    match text.char_indices().nth(TEXT_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

fn verdict(verdict: &Verdict) -> Value {
    json!({"ok": verdict.is_ok(), "text": verdict.as_ref().err()})
}

/// Two decimals are enough for people.
fn round(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}

/// What these figures leave out, if they are not those of the whole job.
fn scope_text(process: usize, known: usize, processes: usize) -> Option<String> {
    match process {
        _ if known == processes => None,
        0 => Some(format!(
            "{} of {processes} processes have reported their figures so far.",
            count(known as u64)
        )),
        _ => Some(format!(
            "Figures of process {process} of {processes} alone: the page of process 0 shows the \
             whole job."
        )),
    }
}

fn tiles(totals: &Totals, samples: &[Sample]) -> Value {
    let sum = |of: fn(&Sample) -> u64| samples.iter().map(of).sum::<u64>();
    let (events, rows) = totals.rates.unzip();
    let mut why = Map::new();
    let mut reason = |unknown: bool, field: &str, text: &str| {
        if unknown {
            why.insert(field.to_owned(), text.into());
        }
    };
    let starts = "it takes a moment to measure";
    reason(events.is_none(), "events_per_s", starts);
    reason(rows.is_none(), "sessions_per_s", starts);
    let ends = match totals.kafka_away {
        true => "Kafka does not answer",
        false => "the end of a partition is not known yet",
    };
    reason(totals.lag_s.is_none(), "lag_s", ends);
    reason(totals.lag.is_none(), "lag_records", ends);
    let left = match totals.lag {
        None => ends,
        Some(0) => "nothing is left to read",
        Some(_) => "nothing is being read",
    };
    reason(totals.left.is_none(), "left_s", left);
    let nothing = "nothing has become durable yet in this run";
    reason(totals.durable_s.is_none(), "durable_delay_s", nothing);
    reason(totals.durable_epoch == 0, "durable_at", nothing);
    let no_event = "no event has moved the watermark yet";
    reason(totals.watermark_ms.is_none(), "watermark", no_event);
    reason(totals.durable_watermark_ms.is_none(), "durable_watermark", no_event);
    let found = samples[0].anomalies.as_ref().map(|anomalies| anomalies.live());
    let why_no = anomalies::why_none(&samples[0]);
    reason(found.is_none(), "anomalies", why_no);
    const UNLIMITED: u64 = 1 << 50;
    let limit = sum(|s| s.memory.1.min(UNLIMITED));
    json!({
        "events_per_s": events.map(round), "records": totals.records,
        "sessions_per_s": rows.map(round),
        "rows": totals.rows, "rows_removed": sum(|s| s.rows_removed),
        "late_sessions": sum(|s| s.late_sessions),
        "lag_s": totals.lag_s.map(round), "lag_records": totals.lag,
        "left_s": totals.left.map(|left| round(left.as_secs_f64())),
        "durable_delay_s": totals.durable_s.map(round),
        "durable_at": (totals.durable_epoch > 0).then_some(totals.durable_epoch),
        "watermark": totals.watermark_ms, "durable_watermark": totals.durable_watermark_ms,
        "open_sessions": sum(|s| s.open), "dead_letters": sum(|s| s.dead),
        "memory_used": sum(|s| s.memory.0), "memory_limit": (limit < UNLIMITED).then_some(limit),
        "anomalies": found, "why": why,
    })
}

fn partitions(totals: &Totals) -> Value {
    let shown = &totals.parts[..totals.parts.len().min(PARTS)];
    json!({
        "total": totals.parts.len(),
        "order": shown.iter().map(|row| &row.id).collect::<Vec<_>>(),
        "rows": shown.iter().map(partition).collect::<Vec<_>>(),
    })
}

fn partition(row: &PartRow) -> Value {
    let part = &row.sample;
    let mut why = Map::new();
    let mut reason = |unknown: bool, field: &str, text: &str| {
        if unknown {
            why.insert(field.to_owned(), text.into());
        }
    };
    let ends = "its end is not known yet";
    reason(part.end.is_none(), "end", ends);
    reason(part.waiting.is_none(), "lag_records", ends);
    reason(part.lag_ms.is_none(), "lag_s", ends);
    reason(row.rate.is_none(), "rate", "it takes a moment to measure");
    reason(part.promise_ms.is_none(), "promise", "it has had no event yet");
    let mut shown = json!({
        "id": row.id, "topic": part.topic, "number": part.number,
        "offset": part.offset, "end": part.end, "lag_records": part.waiting,
        "lag_s": part.lag_ms.map(|ms| round(ms as f64 / 1_000.0)),
        "rate": row.rate.map(round), "promise": part.promise_ms,
        "state": part.state, "state_text": state_text(part), "since": row.since_ms,
        "holds_back": row.holds_back, "process": part.process,
    });
    if !why.is_empty() {
        shown["why"] = why.into();
    }
    shown
}

fn writer(writer: &WriterSample) -> Value {
    json!({
        "writer": writer.writer, "process": writer.process,
        "waiting_epochs": writer.waiting_epochs, "waiting_rows": writer.waiting_rows,
        "committing_since": writer.committing_since_ms, "failing_since": writer.failing_since_ms,
        "error": writer.error.as_deref().map(short),
        "durable_epoch": (writer.durable_epoch > 0).then_some(writer.durable_epoch),
        "commits": writer.commits, "rows": writer.rows, "last_commit_ms": writer.last_commit_ms,
    })
}

fn hosts(job_state: &JobState, samples: &[Sample]) -> Value {
    let mut all: Vec<(String, HostSums)> = Vec::new();
    let mut other = HostSums::default();
    for sample in samples {
        other.plus(sample.hosts.other);
        for (host, sums) in &sample.hosts.rows {
            match all.iter_mut().find(|(known, _)| known == host) {
                Some((_, known)) => known.plus(*sums),
                None => all.push((host.clone(), *sums)),
            }
        }
    }
    all.sort_by(|a, b| b.1.sessions.cmp(&a.1.sessions).then_with(|| a.0.cmp(&b.0)));
    let known = samples.iter().map(|sample| sample.hosts.known).max().unwrap_or(0).max(all.len());
    let sums = |sums: &HostSums| json!({"sessions": sums.sessions, "events": sums.events, "duration_ms": sums.duration_ms});
    let rows: Vec<Value> = all
        .iter()
        .map(|(host, of_host)| {
            let mut row = sums(of_host);
            row["host"] = host.as_str().into();
            row
        })
        .collect();
    let mut others = sums(&other);
    others["hosts"] = (known - rows.len()).into();
    json!({
        "since": job_state.facts.started_ms, "known": known, "limit": HOSTS, "rows": rows,
        "other": others,
    })
}

fn latest(job_state: &JobState, samples: &[Sample]) -> Vec<Value> {
    let mut all: Vec<(usize, &LatestSample)> = samples
        .iter()
        .flat_map(|sample| sample.latest.iter().map(|latest| (sample.process, latest)))
        .collect();
    all.sort_by_key(|(_, latest)| std::cmp::Reverse((latest.at_ms, latest.number)));
    all.truncate(LATEST);
    let shown = all.into_iter().map(|(process, latest)| {
        let change = match (latest.removed, latest.merged) {
            (true, _) => "removed",
            (false, true) => "merged",
            (false, false) => "added",
        };
        json!({
            "id": format!("{process}-{}", latest.number),
            "at": latest.at_ms, "host": latest.host,
            "ip": if job_state.facts.masked { mask(&latest.ip) } else { latest.ip.clone() },
            "start": latest.first_ms, "end": latest.last_ms + job_state.facts.end_after_ms,
            "events": latest.events, "change": change,
        })
    });
    shown.collect()
}

fn dead_letters(job_state: &JobState, samples: &[Sample]) -> Value {
    let mut all: Vec<LetterSample> = Vec::new();
    for letters in samples.iter().flat_map(|sample| &sample.letters) {
        match all.iter_mut().find(|known| known.reason == letters.reason) {
            Some(known) => {
                known.count += letters.count;
                known.last_ms = known.last_ms.max(letters.last_ms);
                known.examples.extend(letters.examples.clone());
            }
            None => all.push(letters.clone()),
        }
    }
    all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.reason.cmp(&b.reason)));
    let rows: Vec<Value> = all
        .iter_mut()
        .map(|letters| {
            letters.examples.sort_by_key(|example| std::cmp::Reverse(example.at_ms));
            letters.examples.truncate(3);
            let examples: Vec<Value> = letters
                .examples
                .iter()
                .map(|example| {
                    let place = example.place.as_ref();
                    let mut shown = json!({
                        "at": example.at_ms,
                        "topic": place.map(|place| &place.0),
                        "partition": place.map(|place| place.1),
                        "offset": place.map(|place| place.2),
                        "detail": example.detail,
                        "payload": example.payload.as_ref().filter(|_| !job_state.facts.masked),
                        "cut": example.cut,
                    });
                    if example.payload.is_none() {
                        shown["why"] = json!({"payload": "the record has none"});
                    } else if job_state.facts.masked {
                        let hidden = "it is shown on loopback, or with --page full";
                        shown["why"] = json!({"payload": hidden});
                        // Details quote the payload.
                        shown["detail"] = Value::Null;
                        shown["why"]["detail"] = hidden.into();
                    }
                    shown
                })
                .collect();
            json!({
                "reason": letters.reason, "count": letters.count, "last_at": letters.last_ms,
                "examples": examples,
            })
        })
        .collect();
    let total: u64 = all.iter().map(|letters| letters.count).sum();
    json!({"since": job_state.facts.started_ms, "total": total, "rows": rows})
}

fn balance(job_state: &JobState) -> Value {
    match &job_state.balance {
        Ok((read_at_ms, found)) => json!({
            "as_of": found.as_of_ms, "records": found.records, "closed": found.closed,
            "open": found.open, "dead": found.dead, "lost": found.lost,
            "forgotten": found.forgotten, "difference": found.difference, "ok": found.difference == 0, "read_at": read_at_ms,
        }),
        Err(why) => unknown(
            &[
                "as_of",
                "records",
                "closed",
                "open",
                "dead",
                "lost",
                "forgotten",
                "difference",
                "ok",
                "read_at",
            ],
            why,
        ),
    }
}

fn proof(job_state: &JobState) -> Value {
    let none = "no audit has been recorded: `sessionizer audit` compares the table with the topic";
    let audit = match &job_state.audit {
        Ok(Some(audit)) => audit,
        nothing => {
            let why = nothing.as_ref().err().map_or(none, String::as_str);
            return unknown(
                &["verified_through", "audited_at", "differences", "unverifiable", "rows", "kind"],
                why,
            );
        }
    };
    let mut shown = json!({
        "verified_through": audit.watermark_ms, "audited_at": audit.audited_at_ms,
        "differences": audit.differences, "unverifiable": audit.unverifiable, "rows": audit.rows,
        "kind": if audit.incremental { "incremental" } else { "full" },
    });
    if audit.watermark_ms.is_none() {
        shown["why"] = json!({"verified_through": "no event had moved the watermark yet"});
    }
    shown
}

fn peer(sample: &Sample) -> Value {
    json!({
        "process": sample.process, "workers": sample.workers.len(), "seen_at": sample.at_ms,
        "text": null,
    })
}

/// The history, for a whole document.
pub fn history<'a>(points: impl Iterator<Item = &'a Point>) -> Value {
    json!({
        "every_ms": POINT_INTERVAL_MS, "keep_ms": RETENTION_MS,
        "columns": ["at", "in", "out", "lag_s", "watermark_s", "durable_s"],
        "points": points.map(point).collect::<Vec<_>>(),
    })
}

/// A point, as an array.
pub fn point(point: &Point) -> Value {
    let Point { at_ms, events, rows, lag_s, watermark_s, durable_s } = *point;
    json!([at_ms, events, rows, lag_s, watermark_s, durable_s])
}

/// A mark.
pub fn mark_row(mark: &Mark) -> Value {
    json!({"at": mark.at_ms, "kind": mark.kind, "text": short(&mark.text)})
}

/// What has changed from one document to the next, for a page that has the first. `points` and
/// `marks` are those that are new.
pub fn change(
    before: &Document,
    now: &Document,
    points: Vec<Value>,
    marks: Vec<Value>,
) -> Document {
    let mut change = Document::new();
    for (name, block) in now {
        let old = before.get(name);
        if old == Some(block) {
            continue;
        }
        let block = match name.as_str() {
            "partitions" => changed_rows(old, block),
            "latest" => json!({"add": added_rows(old, block)}),
            _ => block.clone(),
        };
        change.insert(name.clone(), block);
    }
    if !points.is_empty() {
        change.insert("history".to_owned(), json!({"points": points}));
    }
    if !marks.is_empty() {
        change.insert("marks".to_owned(), json!({"add": marks}));
    }
    change
}

/// The partitions whose rows have changed; the order only if that has.
fn changed_rows(old: Option<&Value>, now: &Value) -> Value {
    let rows =
        |block: &Value| -> Vec<Value> { block["rows"].as_array().cloned().unwrap_or_default() };
    let before: std::collections::BTreeMap<String, Value> = old
        .map(rows)
        .unwrap_or_default()
        .into_iter()
        .map(|row| (row["id"].as_str().unwrap_or_default().to_owned(), row))
        .collect();
    let differs = |row: &Value| before.get(row["id"].as_str().unwrap_or_default()) != Some(row);
    let changed: Vec<Value> = rows(now).into_iter().filter(differs).collect();
    let mut block = json!({"rows": changed});
    for name in ["order", "total"] {
        if old.is_none_or(|old| old[name] != now[name]) {
            block[name] = now[name].clone();
        }
    }
    block
}

/// The rows that were not there before, which are the first.
fn added_rows(old: Option<&Value>, now: &Value) -> Vec<Value> {
    let newest = old.and_then(|old| old["rows"].get(0)).map(|row| row["id"].clone());
    let rows = now["rows"].as_array().cloned().unwrap_or_default();
    rows.into_iter().take_while(|row| Some(&row["id"]) != newest.as_ref()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Document {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn a_change_has_only_what_has_changed() {
        let row = |id: &str, offset: u64| json!({"id": id, "offset": offset});
        let before = object(json!({
            "at": 1, "tiles": {"rows": 1}, "job": {"name": "j"},
            "partitions": {"total": 2, "order": ["a", "b"], "rows": [row("a", 1), row("b", 1)]},
            "latest": {"keep": 2, "rows": [row("0-2", 0), row("0-1", 0)]},
        }));
        let mut now = before.clone();
        now["at"] = 2.into();
        assert_eq!(change(&before, &now, Vec::new(), Vec::new()), object(json!({"at": 2})));
        now["partitions"]["rows"][1] = row("b", 2);
        now["latest"]["rows"] = json!([row("0-3", 0), row("0-2", 0)]);
        let change = change(&before, &now, vec![json!([2])], vec![json!({"at": 2})]);
        let want = json!({
            "at": 2, "partitions": {"rows": [row("b", 2)]}, "latest": {"add": [row("0-3", 0)]},
            "history": {"points": [[2]]}, "marks": {"add": [{"at": 2}]},
        });
        assert_eq!(change, object(want));
    }

    #[test]
    fn texts_from_outside_are_cut_between_characters() {
        assert_eq!(short("é"), "é");
        assert_eq!(short(&"é".repeat(400)).chars().count(), TEXT_CHARS + 1);
    }
}
