//! `sessionizer open`: lists the open sessions, which have no row yet.
//!
//! They are in the snapshots, in a binary format that SQL cannot read.

use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use sessionizer_core::fault::Fault;
use sessionizer_core::key::Key;
use sessionizer_core::session::Span;
use sessionizer_core::time::{Epoch, EventTime};

use crate::cli::OpenArgs;
use crate::commands::http::printable;
use crate::commands::output::{print, unreadable};
use crate::config;
use crate::config::{Environment, Problems, whole};
use crate::job::clock::now_ms;
use crate::ledger;
use crate::ledger::{LedgerConfig, OpenSessions, WantedSessions};
use crate::ui::text::{count, duration, plural};

/// Shows the open sessions, as a table or as JSON.
pub fn open(args: &OpenArgs, env: &Environment) -> Result<(), Fault> {
    let (config, wanted, limit) = read(args, env)?;
    let found = ledger::open_sessions(&config, &wanted, limit).map_err(unreadable)?;
    let shown = match args.json {
        true => json(&config.job, &found),
        false => screen(&config.job, &wanted, &found, now_ms()),
    };
    print(&shown).map(drop)
}

fn read(
    args: &OpenArgs,
    env: &Environment,
) -> Result<(LedgerConfig, WantedSessions, usize), Fault> {
    let mut problems = Problems::new(env);
    let what = "the job to look at";
    let ledger = config::read_ledger_alone(&mut problems, args.job.name.as_deref(), what, env);
    let limit = problems.take("--limit", whole(&args.limit, 0, 1_000_000));
    let wanted = WantedSessions { ip: args.ip.clone(), host: args.host.clone() };
    match ledger.zip(limit) {
        Some((ledger, limit)) if problems.is_empty() => Ok((ledger, wanted, limit as usize)),
        _ => Err(problems.fault()),
    }
}

fn time(epoch: Epoch) -> EventTime {
    EventTime::from_millis(epoch as i64)
}

fn json(job: &str, found: &OpenSessions) -> String {
    let session = |(key, span): &(Key, Span)| {
        let (ip, host) = key.parts();
        serde_json::json!({
            "ip": ip, "host": host, "first": span.first.to_string(),
            "last": span.last.to_string(), "events": span.count,
        })
    };
    let as_of = |epoch: Epoch| (epoch > 0).then(|| time(epoch).to_string());
    let document = serde_json::json!({
        "job": job,
        "snapshots": { "oldest": as_of(found.oldest), "newest": as_of(found.newest) },
        "open_sessions": found.sessions,
        "events": found.events,
        "sessions": found.first.iter().map(session).collect::<Vec<_>>(),
    });
    format!("{document:#}\n")
}

fn screen(job: &str, wanted: &WantedSessions, found: &OpenSessions, now_ms: u64) -> String {
    if found.newest == 0 {
        return format!("The job {job} has not committed anything yet.\n");
    }
    let only = |what: &str, value: &Option<String>| {
        value.as_ref().map_or(String::new(), |value| format!(" {what} {}", printable(value)))
    };
    let (ip, host) = (only("of", &wanted.ip), only("on the host", &wanted.host));
    let (sessions, events) = match found.sessions {
        0 => ("No open session".to_owned(), String::new()),
        some => (plural(some, "open session"), format!(" with {}", plural(found.events, "event"))),
    };
    let mut text =
        format!("{sessions}{ip}{host}{events} in the job {job}.\n{}\n", age(found, now_ms));
    if found.first.is_empty() {
        return text;
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["ip", "host", "first event", "last event", "events"]);
    for (key, span) in &found.first {
        let (ip, host) = key.parts();
        let first = seconds(span.first);
        let last = after(&first, seconds(span.last));
        table.add_row([printable(ip), printable(host), first, last, count(span.count)]);
    }
    let right = comfy_table::CellAlignment::Right;
    for column in [3, 4] {
        table.column_mut(column).expect("it has five").set_cell_alignment(right);
    }
    for line in table.to_string().lines() {
        text.push('\n');
        text.push_str(line.trim_end());
    }
    let more = found.sessions - found.first.len() as u64;
    let more =
        if more > 0 { format!("\n… and {} more (--limit)", count(more)) } else { String::new() };
    text + &more + "\n"
}

/// A time in UTC to the second: `2026-11-25 08:00:00`.
fn seconds(time: EventTime) -> String {
    let text = time.to_string();
    text.split('.').next().unwrap_or(&text).replace('T', " ")
}

/// Says when the snapshots were taken.
fn age(found: &OpenSessions, now_ms: u64) -> String {
    let ago = |epoch: Epoch| duration(Duration::from_millis(now_ms.saturating_sub(epoch)));
    let OpenSessions { oldest, newest, .. } = *found;
    let [from, to] = [oldest, newest].map(|epoch| seconds(time(epoch)));
    match (oldest, newest) {
        (0, _) => format!("As of snapshots up to {to} UTC ({} ago).", ago(newest)),
        (oldest, newest) if oldest == newest => format!("As of {from} UTC, {} ago.", ago(oldest)),
        _ => format!(
            "As of {from} UTC ({} ago) to {} ({} ago), by shard.",
            ago(oldest),
            after(&from, to.clone()),
            ago(newest)
        ),
    }
}

/// The later of two times, without the day if that is the same.
fn after(first: &str, then: String) -> String {
    match (first.split_once(' '), then.split_once(' ')) {
        (Some((day, _)), Some((same, time))) if day == same => time.to_owned(),
        _ => then,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> OpenSessions {
        let at = EventTime::from_millis;
        let span = |first, last, count| Span { first: at(first), last: at(last), count };
        OpenSessions {
            first: vec![
                (
                    Key::new("192.0.2.7", "shop.example"),
                    span(1_790_251_380_000, 1_790_251_399_250, 3),
                ),
                (
                    Key::new("2001:db8::1", "\x1b[2Jx"),
                    span(1_790_200_000_000, 1_790_251_390_000, 1_200),
                ),
            ],
            sessions: 3,
            events: 1_204,
            oldest: 1_790_251_400_000,
            newest: 1_790_251_440_000,
        }
    }

    #[test]
    fn the_screen_says_how_old_it_is_and_fits() {
        let now = 1_790_251_460_000;
        let wanted = WantedSessions { host: Some("shop.example".to_owned()), ip: None };
        let screen = screen("visits", &wanted, &found(), now);
        let lines: Vec<&str> = screen.lines().collect();
        assert_eq!(
            lines[0],
            "3 open sessions on the host shop.example with 1,204 events in the job visits."
        );
        assert!(
            lines[1].ends_with("12:03:20 UTC (1 min ago) to 12:04:00 (20 s ago), by shard."),
            "{screen}"
        );
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{screen}");
        assert!(
            lines[4].contains("2026-09-24 12:03:00") && lines[4].ends_with("12:03:19       3"),
            "{screen}"
        );
        assert!(lines[5].contains("2026-09-24 12:03:10") && !screen.contains('\x1b'), "{screen}");
        assert_eq!(lines[6], "… and 1 more (--limit)");
    }

    #[test]
    fn a_clean_stop_has_one_time_and_a_new_job_none() {
        let stopped = OpenSessions { oldest: 1_790_251_440_000, ..found() };
        let text = screen("visits", &WantedSessions::default(), &stopped, 1_790_251_450_000);
        assert!(text.contains("\nAs of 2026-09-24 12:04:00 UTC, 10 s ago.\n"), "{text}");
        let text = screen("visits", &WantedSessions::default(), &OpenSessions::default(), 1);
        assert_eq!(text, "The job visits has not committed anything yet.\n");
    }

    #[test]
    fn where_no_session_is_open_nothing_is_counted() {
        let none = OpenSessions { sessions: 0, events: 0, first: Vec::new(), ..found() };
        let wanted = WantedSessions { ip: Some("192.0.2.9".to_owned()), host: None };
        let text = screen("visits", &wanted, &none, 1_790_251_460_000);
        assert!(text.starts_with("No open session of 192.0.2.9 in the job visits.\n"), "{text}");
    }
}
