//! Postgres: the server, the schema `sessionizer`, and the user's table. Nothing is written.

use std::time::Duration;

use super::codes::Code;
use super::report::Finding;
use crate::dataflow::ports::{Cause, LedgerError};
use crate::ledger::inspect::{Inspection, OwnSchema, ReadOnly, Server, is_pooler};
use crate::ledger::{Found, LedgerConfig, Table};
use crate::ui::text::{duration, plural};

/// The connections that a job needs besides its writers: one for the balance on the page, one to
/// remove old rows, one to read the rows of the last days, one to write anomalies, and the second
/// connection that detects a pooler.
const MORE_CONNECTIONS: i64 = 5;
/// How far apart the clocks may be without a warning.
const APART_MS: i64 = 2_000;

/// What the plan needs to know.
pub struct Facts {
    /// What a start would find; `None` if it would be refused, or if that is unknown.
    pub found: Option<Found>,
    /// The connections of instances: process id and address.
    pub running: Vec<(i32, String)>,
    /// Who started the job last, and when.
    pub started: Option<(String, String)>,
}

/// Checks Postgres. `writers` is the number of writers that a start would have. Returns `None` if
/// the server cannot be reached.
pub fn check(
    config: &LedgerConfig,
    writers: u32,
    timeout: Duration,
    report: &mut dyn FnMut(Finding),
) -> Option<Facts> {
    let (mut inspection, read_only) = match Inspection::open(config, timeout) {
        Ok(opened) => opened,
        Err(error) => {
            report(unreachable(config, &error));
            return None;
        }
    };
    let running = inspection.running().unwrap_or_default();
    let server = match inspection.server() {
        Ok(server) => server,
        Err(error) => {
            report(unreachable(config, &error));
            return None;
        }
    };
    address(&server, report);
    report(match read_only {
        None => Finding::good(Code::P03, "the server accepts writes"),
        Some(ReadOnly { why, remedy }) => Finding::failed(Code::P03, 1, why, remedy),
    });
    refused_or(Code::P04, inspection.encoding(), "the encoding keeps keys as they are", report);
    let own = own_schema(&mut inspection, report);
    let (table, usable) = table(&mut inspection, config, own, report);
    publications(&mut inspection, table.as_ref(), report);
    if let Some(table) = &table {
        roles(&mut inspection, table, report);
    }
    connections(&server, writers, !running.is_empty(), report);
    clocks(&server, report);
    lost_commits(&mut inspection, report);
    let found = match own && usable {
        true => state(&mut inspection, table.as_ref(), report),
        false => None,
    };
    let started = inspection.started().unwrap_or_default();
    Some(Facts { found, running, started })
}

fn unreachable(config: &LedgerConfig, error: &LedgerError) -> Finding {
    if is_pooler(error) {
        return Finding::of_error(Code::P02, error);
    }
    let remedy = match error {
        LedgerError::Retry(failure) if failure.cause == Cause::Other => {
            "check POSTGRES_URL, that the server is up, and that its port is reachable from here"
        }
        _ => "see the log of the server: it was reached, and has answered this",
    };
    let mut finding = Finding::of_error(Code::P01, error).or_remedy(remedy);
    finding.text = format!("{}: {}", config.url, finding.text);
    finding
}

/// The finding for a question that was answered with an error, or not at all.
fn unanswered(code: Code, error: &LedgerError) -> Finding {
    let remedy = match error {
        LedgerError::Retry(_) => "raise --timeout, and look for locks in pg_stat_activity",
        LedgerError::Fatal(_) => "docs/OPERATIONS.md explains the code",
    };
    Finding::of_error(code, error).or_remedy(remedy)
}

/// Reports the answer to a question that only decides whether a start would be refused.
fn refused_or(
    code: Code,
    answer: Result<(), LedgerError>,
    good: &str,
    report: &mut dyn FnMut(Finding),
) -> bool {
    match answer {
        Ok(()) => report(Finding::good(code, good)),
        Err(error) => {
            report(unanswered(code, &error));
            return false;
        }
    }
    true
}

/// Which server the connection leads to, and whether it is encrypted.
fn address(server: &Server, report: &mut dyn FnMut(Finding)) {
    let Server { version, database, tls, .. } = server;
    let tls = tls.as_ref().map_or("without TLS".to_owned(), |version| format!("by {version}"));
    let version = version.split(' ').next().unwrap_or_default();
    report(Finding::good(Code::P01, format!("PostgreSQL {version}, {database}, {tls}")));
    report(Finding::good(
        Code::P02,
        "no pooler, or one in session mode: no other client shares the session",
    ));
}

fn lost_commits(inspection: &mut Inspection, report: &mut dyn FnMut(Finding)) {
    report(match inspection.lost_commits() {
        Ok(None) => Finding::good(Code::P18, "what is committed is on disk"),
        Ok(Some(warning)) => Finding::advice(Code::P18, warning),
        Err(error) => unanswered(Code::P18, &error),
    });
}

fn connections(server: &Server, writers: u32, is_running: bool, report: &mut dyn FnMut(Finding)) {
    let left = server.connections.left.max(0);
    let needed = i64::from(writers) + MORE_CONNECTIONS;
    let text = format!(
        "{} left ({}), and a start needs {needed}",
        plural(left, "connection"),
        server.connections.limit
    );
    let remedy = &server.connections.remedy;
    report(match left {
        // A running instance has its connections already.
        left if left >= 2 * needed || is_running => Finding::good(Code::P16, text),
        left if left >= needed => Finding::warning(Code::P16, text, remedy),
        _ => Finding::failed(Code::P16, 1, text, remedy),
    });
}

fn clocks(server: &Server, report: &mut dyn FnMut(Finding)) {
    let apart = server.clock_ahead_ms.unsigned_abs();
    let sure = server.clock_ahead_ms.abs() - server.clock_error_ms;
    if sure < APART_MS {
        return report(Finding::good(Code::P17, "its clock agrees with this machine's"));
    }
    let which = if server.clock_ahead_ms > 0 { "ahead of" } else { "behind" };
    report(Finding::warning(
        Code::P17,
        format!("its clock is {} {which} this machine's", duration(Duration::from_millis(apart))),
        "set both by NTP: this machine's clock decides which events lie in the future",
    ));
}

/// Whether the schema `sessionizer` can be used.
fn own_schema(inspection: &mut Inspection, report: &mut dyn FnMut(Finding)) -> bool {
    let trusted = refused_or(
        Code::P05,
        inspection.owners(),
        "no other role's code can run as this login",
        report,
    );
    let there = match inspection.own_schema() {
        Ok(OwnSchema::Missing) => {
            report(Finding::good(Code::P06, "the first start creates the schema sessionizer"));
            return trusted;
        }
        Ok(OwnSchema::Older(version)) => {
            let text =
                format!("a start brings the schema sessionizer up to date, from version {version}");
            report(Finding::good(Code::P06, text));
            true
        }
        Ok(OwnSchema::Complete(version)) => {
            let text = format!("the schema sessionizer is complete, and of version {version}");
            report(Finding::good(Code::P06, text));
            true
        }
        Err(error) => {
            report(unanswered(Code::P06, &error));
            false
        }
    };
    let good = "this login has the rights it needs there";
    refused_or(Code::P07, inspection.own_rights(), good, report) && there && trusted
}

/// The table, and whether a start could use it.
fn table(
    inspection: &mut Inspection,
    config: &LedgerConfig,
    own_schema: bool,
    report: &mut dyn FnMut(Finding),
) -> (Option<Table>, bool) {
    let table = match inspection.table(own_schema) {
        Ok(Some(table)) => table,
        Ok(None) => {
            let text = format!("the first start creates the table {}", config.table);
            report(Finding::good(Code::P08, text));
            return (None, true);
        }
        Err(error) => {
            report(
                Finding::of_error(Code::P08, &error)
                    .or_remedy("name another table with --table, and a start creates it"),
            );
            return (None, false);
        }
    };
    let shown = &table.shown;
    report(Finding::good(Code::P08, format!("the table {shown} has the columns of sessions")));
    match table.advice.is_empty() {
        true => report(Finding::good(Code::P09, "it has room for every session")),
        false => table
            .advice
            .iter()
            .for_each(|advice| report(Finding::advice(Code::P09, advice.clone()))),
    }
    report(match table.keyed {
        true => Finding::good(Code::P10, "it has a key on ip, host, session_start"),
        false => Finding::warning(
            Code::P10,
            "it has no key: late events are slow to find their rows, and nothing keeps \
             duplicates out",
            table.add_key(),
        ),
    });
    let mut usable = refused_or(
        Code::P11,
        inspection.table_rights(&table),
        "this login may read, insert and delete, as late events need",
        report,
    );
    usable &= refused_or(
        Code::P12,
        inspection.row_security(&table),
        "no row level security hides rows",
        report,
    );
    triggers(inspection, &table, report);
    (Some(table), usable)
}

fn triggers(inspection: &mut Inspection, table: &Table, report: &mut dyn FnMut(Finding)) {
    let shown = &table.shown;
    let triggers = match inspection.triggers(table) {
        Ok(triggers) => triggers,
        Err(error) => return report(unanswered(Code::P13, &error)),
    };
    if let [first, ..] = &triggers.before[..] {
        let text = format!(
            "triggers can change rows or keep them out: {}. A start tries them, and refuses if \
             rows do not arrive as they are written",
            triggers.before.join(", ")
        );
        let name = first.split(" (").next().unwrap_or(first);
        let remedy = format!("alter table {shown} disable trigger {name};");
        return report(Finding::warning(Code::P13, text, remedy));
    }
    let text = match triggers.others.is_empty() {
        true => "it has no triggers".to_owned(),
        false => format!("its triggers change no row: {}", triggers.others.join(", ")),
    };
    report(Finding::good(Code::P13, text));
}

fn roles(inspection: &mut Inspection, table: &Table, report: &mut dyn FnMut(Finding)) {
    match inspection.owner_advice(table) {
        Ok(advice) if advice.is_empty() => {
            report(Finding::good(Code::P15, "no other role's code runs as this login"));
        }
        Ok(advice) => {
            let remedy = "deploy/postgres/role.sql makes a login with just the rights of the job";
            advice.into_iter().for_each(|advice| {
                report(Finding::advice(Code::P15, advice).or_remedy(remedy));
            });
        }
        Err(error) => report(unanswered(Code::P15, &error)),
    }
}

fn publications(
    inspection: &mut Inspection,
    table: Option<&Table>,
    report: &mut dyn FnMut(Finding),
) {
    let found = match inspection.unpublishable(table) {
        Ok(found) => found,
        Err(error) => return report(unanswered(Code::P14, &error)),
    };
    if found.is_empty() {
        return report(Finding::good(Code::P14, "no publication prevents deletes"));
    }
    for (name, publications) in found {
        let text = format!(
            "{name} has no replica identity, so Postgres would refuse deletes from it, which late \
             events need: it is in the publication {publications}"
        );
        let remedy = match name.starts_with("sessionizer.") {
            true => format!("alter table {name} replica identity full;"),
            false => format!("alter table {name} add primary key (ip, host, session_start);"),
        };
        report(Finding::failed(Code::P14, 2, text, remedy));
    }
}

/// The state of the job, if a start could go on from it.
fn state(
    inspection: &mut Inspection,
    table: Option<&Table>,
    report: &mut dyn FnMut(Finding),
) -> Option<Found> {
    match inspection.found(table) {
        Ok(found) => {
            let text = match &found.first {
                Some(_) => "the job has not begun".to_owned(),
                None => format!(
                    "the state of the job is complete: {}, {} to replay",
                    plural(found.durable.progress.len(), "shard"),
                    plural(found.durable.replay.len(), "epoch")
                ),
            };
            report(Finding::good(Code::P19, text));
            Some(found)
        }
        Err(error) => {
            report(
                Finding::of_error(Code::P19, &error)
                    .or_remedy("raise --timeout; or `sessionizer reset` to begin afresh"),
            );
            None
        }
    }
}
