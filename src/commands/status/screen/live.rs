//! The part of the screen about the last day: the hosts, the busiest visitors and the anomalies.

use serde_json::Value;
use sessionizer_core::time::EventTime;

use super::{cut, number, rows, rows_shown, seconds, text};
use crate::ui::text::{count, plural};

/// How many are shown at most.
const HOSTS: usize = 5;
const VISITORS: usize = 3;
const ANOMALIES: usize = 3;

/// The column of the hosts is at least this wide; columns that leave less room are left out.
const HOST_WIDTH: usize = 16;
const GAP: usize = 2;
/// And at most as wide as a name in the DNS can be.
const HOST_WIDTH_MAX: usize = 253;

/// The sessions of the last hour and day by host.
pub fn hosts(document: &Value, width: usize, most: usize) -> Vec<String> {
    let head = &document["statistics"];
    match head["state"].as_str() {
        Some("counting") => {}
        Some(_) => {
            let read = number(&head["rows_read"]);
            return vec![format!("statistics: reading the rows of the last day, {read} so far")];
        }
        None => return vec![format!("statistics: {}", text(&head["why"]["state"]))],
    }
    let all = rows(&document["statistics_hosts"]);
    let total = rows(&document["statistics_all"]);
    let other = &document["statistics_hosts"]["other"];
    let others = other["hosts"].as_u64().unwrap_or(0);
    let known = rows_shown(all.len() + others as usize, HOSTS.min(most));
    let shown = &all[..all.len().min(known)];
    if all.is_empty() {
        return vec!["no session has ended in the last day".to_owned()];
    }
    // The sums of a single host are those of all.
    let of_all = total.iter().filter(|_| all.len() > 1);
    let lines: Vec<&Value> = of_all.chain(shown).collect();
    let mut lines = host_table(&lines, width);
    let sessions = |row: &Value| row["day"]["sessions"].as_u64().unwrap_or(0);
    let left_out = &all[shown.len()..];
    let more = left_out.len() as u64 + others;
    let of_more = left_out.iter().map(sessions).sum::<u64>();
    let of_more = of_more + other["sessions"].as_u64().unwrap_or(0);
    if more > 0 {
        let of_more = plural(of_more, "session");
        lines.push(format!("and {} with {of_more}", plural(more, "more host")));
    }
    if head["hosts"].as_u64() >= head["hosts_limit"].as_u64() {
        let limit = number(&head["hosts_limit"]);
        lines.push(format!("(no more than {limit} hosts are counted individually)"));
    }
    lines
}

fn host_table(of: &[&Value], width: usize) -> Vec<String> {
    let mean = |row: &Value, sum: &str| {
        let sessions = row["day"]["sessions"].as_f64().filter(|sessions| *sessions > 0.0)?;
        Some(row["day"][sum].as_f64()? / sessions)
    };
    let unknown = || "–".to_owned();
    let mut columns: Vec<(&str, Vec<String>)> = Vec::new();
    let mut column = |name, cell: &dyn Fn(&Value) -> String| {
        columns.push((name, of.iter().map(|row| cell(row)).collect()));
    };
    column("last hour", &|row| number(&row["hour"]["sessions"]));
    column("last day", &|row| number(&row["day"]["sessions"]));
    if of.iter().any(|row| row["visitors"].is_number()) {
        column("visitors", &|row| number(&row["visitors"]));
    }
    column("events each", &|row| mean(row, "events").map_or_else(unknown, |n| format!("{n:.1}")));
    column("length", &|row| {
        mean(row, "duration_ms").map_or_else(unknown, |ms| seconds(&(ms / 1_000.0).into()))
    });
    column("one event", &|row| {
        mean(row, "singles").map_or_else(unknown, |share| format!("{:.0} %", share * 100.0))
    });
    let wide = |(name, cells): &(&str, Vec<String>)| {
        let cells = cells.iter().map(|cell| cell.chars().count());
        GAP + cells.max().unwrap_or(0).max(name.chars().count())
    };
    while columns.iter().map(wide).sum::<usize>() + HOST_WIDTH > width && columns.len() > 2 {
        columns.pop();
    }
    let rest = width.saturating_sub(columns.iter().map(wide).sum());
    let rest = rest.clamp(HOST_WIDTH, HOST_WIDTH_MAX);
    let name = |row: &Value| match row["host"].as_str() {
        Some("") => "all hosts".to_owned(),
        _ => cut(&text(&row["host"]), rest),
    };
    let names: Vec<String> = of.iter().map(|row| name(row)).collect();
    let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(HOST_WIDTH);
    let line = |name: &str, cell: &dyn Fn(usize) -> String| {
        let cells = columns.iter().enumerate();
        let cells = cells.map(|(at, column)| format!("{:>width$}", cell(at), width = wide(column)));
        format!("{name:<longest$}{}", cells.collect::<String>())
    };
    let head = line("sessions by host", &|at| columns[at].0.to_owned());
    let lines =
        names.iter().enumerate().map(|(row, name)| line(name, &|at| columns[at].1[row].clone()));
    std::iter::once(head).chain(lines).collect()
}

/// The visitors with the most sessions, if visitors are counted: as many as a line holds.
pub fn visitors(document: &Value, width: usize) -> Option<String> {
    let block = &document["statistics_visitors"];
    let all = block["rows"].as_array()?;
    let mut line = "busiest visitors of the day:".to_owned();
    if all.is_empty() {
        return Some(format!("{line} none had {} sessions or more", number(&block["least"])));
    }
    for (at, row) in all.iter().take(VISITORS).enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let sessions = number(&row["sessions"]);
        let next = format!("{comma} {} at {}: {sessions}", text(&row["ip"]), text(&row["host"]));
        if at > 0 && line.chars().count() + next.chars().count() > width {
            break;
        }
        line.push_str(&next);
    }
    Some(line)
}

/// The newest anomalies that are live.
pub fn anomalies(document: &Value, width: usize, most: usize) -> Vec<String> {
    let block = &document["anomalies"];
    let Some(all) = block["rows"].as_array() else {
        return vec![format!("anomalies: {}", text(&block["why"]["rows"]))];
    };
    let live = block["live"].as_u64().unwrap_or(0);
    let shown = all.len().min(ANOMALIES.min(most));
    let mut lines = vec![match live {
        0 => "anomalies: none".to_owned(),
        live if live as usize > shown => format!("anomalies: {}, the newest:", count(live)),
        live => format!("anomalies: {}", count(live)),
    }];
    for row in &all[..shown] {
        let of = match (text(&row["subject"]).as_str(), text(&row["host"]).as_str()) {
            ("", host) => format!(" at {host}"),
            (subject, "") => format!(" of {subject}"),
            (subject, host) => format!(" of {subject} at {host}"),
        };
        lines.push(format!("  {} {}{of}", when(&row["at"]), text(&row["kind"])));
        lines.extend(wrapped(&text(&row["reason"]), width, "    "));
    }
    if block["rows_refused"].as_u64() > Some(0) {
        let (limit, refused) = (number(&block["hosts_limit"]), number(&block["rows_refused"]));
        let said = format!("no more than {limit} hosts are looked at: not {refused} sessions");
        lines.extend(wrapped(&said, width, "  "));
    }
    if block["visitors_from"].is_number() {
        let from = when(&block["visitors_from"]);
        let said = format!("too many visitors: they are looked at again from {from} on");
        lines.extend(wrapped(&said, width, "  "));
    }
    lines
}

/// A time to the minute.
fn when(at: &Value) -> String {
    let Some(at) = at.as_i64() else { return "–".to_owned() };
    let at = EventTime::from_millis(at).to_string();
    match at.split_once('T') {
        Some((day, time)) => format!("{day} {}", time.get(..5).unwrap_or(time)),
        None => at,
    }
}

/// The words of a text in lines that are not wider, each with an indent.
fn wrapped(text: &str, width: usize, indent: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("{indent}{word}")),
        }
    }
    lines
}

/// A line, and what does not fit into it below, with an indent.
pub fn continued(line: &str, width: usize) -> Vec<String> {
    if line.chars().count() <= width {
        return vec![line.to_owned()];
    }
    let mut lines = wrapped(line, width, "  ");
    lines[0].drain(..2);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(host: &str, sessions: u64, visitors: Value) -> Value {
        json!({"host": host, "visitors": visitors,
               "hour": {"sessions": sessions / 20},
               "day": {"sessions": sessions, "events": sessions * 4, "singles": sessions / 2,
                       "duration_ms": sessions * 200_000}})
    }

    fn document(visitors: Value) -> Value {
        json!({
            "statistics": {"state": "counting", "hosts": 3, "hosts_limit": 10_000},
            "statistics_all": {"rows": [row("", 20_412, visitors.clone())]},
            "statistics_hosts": {
                "rows": [row("www.example", 20_000, visitors.clone()),
                         row(&"a".repeat(253), 400, visitors)],
                "other": {"hosts": 1, "sessions": 12}},
            "statistics_visitors": {"least": 5, "rows": [
                {"host": "www.example", "ip": "192.0.2.1", "sessions": 1_234},
                {"host": null, "ip": "2001:db8::1", "sessions": 23},
                {"host": "www.example", "ip": "192.0.2.9", "sessions": 7}]},
            "anomalies": {"live": 12, "rows": [
                {"kind": "burst", "host": "www.example", "subject": "192.0.2.1",
                 "at": 1_780_272_000_123_i64,
                 "reason": "412 events in 31 s; of 2,100,000 sessions in the 24 h before, 5 had \
                            64 or more"},
                {"kind": "fall", "host": "www.example", "subject": "", "at": 1_780_272_000_123_i64,
                 "reason": "no session in 5 min"},
                {"kind": "clock", "host": "", "subject": "web/3", "at": null,
                 "reason": "it is ahead"}]},
        })
    }

    #[test]
    fn hosts_of_any_name_fit_and_the_others_are_counted() {
        let name = format!("{}…", "a".repeat(25));
        let want = format!(
            "\
sessions by host            last hour  last day  events each      length  one event
all hosts                       1,020    20,412          4.0  3 min 20 s       50 %
www.example                     1,000    20,000          4.0  3 min 20 s       50 %
{name}         20       400          4.0  3 min 20 s       50 %
and 1 more host with 12 sessions"
        );
        assert_eq!(hosts(&document(Value::Null), 83, usize::MAX).join("\n"), want);
        let fewer = hosts(&document(Value::Null), 80, 1);
        assert_eq!(fewer.last().expect("a line"), "and 2 more hosts with 412 sessions");
        // Where columns do not fit, the last ones are left out.
        for width in [40, 60, 80] {
            let lines = hosts(&document(7.into()), width, 9);
            let widest = lines[..4].iter().map(|line| line.chars().count()).max();
            assert!(widest <= Some(width), "{lines:#?}");
            assert!(lines[0].contains("last day"), "{}", lines[0]);
        }
        assert!(hosts(&document(7.into()), 100, 9)[0].contains("visitors"));
    }

    #[test]
    fn what_is_not_counted_is_said() {
        let mut document = document(Value::Null);
        document["statistics"]["hosts"] = 10_000.into();
        let lines = hosts(&document, 80, 9);
        let last = "(no more than 10,000 hosts are counted individually)";
        assert_eq!(lines.last().expect("a line"), last);
        document["statistics"] = json!({"state": "reading", "rows_read": 1_234});
        let reading = "statistics: reading the rows of the last day, 1,234 so far";
        assert_eq!(hosts(&document, 80, 9), [reading]);
        document["statistics"] = json!({"why": {"state": "they are switched off"}});
        assert_eq!(hosts(&document, 80, 9), ["statistics: they are switched off"]);
        document["statistics_visitors"] = json!({"rows": null});
        assert_eq!(visitors(&document, 80), None);
        document["anomalies"] = json!({"rows": null, "why": {"rows": "none are looked for"}});
        assert_eq!(anomalies(&document, 80, 9), ["anomalies: none are looked for"]);
        document["anomalies"] = json!({"rows": [], "live": 0, "rows_refused": 0});
        assert_eq!(anomalies(&document, 80, 9), ["anomalies: none"]);
        document["anomalies"]["rows_refused"] = 1_234.into();
        document["anomalies"]["hosts_limit"] = 10_000.into();
        document["anomalies"]["visitors_from"] = 1_780_272_000_000_i64.into();
        let want = [
            "anomalies: none",
            "  no more than 10,000 hosts are looked at: not 1,234 sessions",
            "  too many visitors: they are looked at again from 2026-06-01 00:00 on",
        ];
        assert_eq!(anomalies(&document, 80, 9), want);
    }

    #[test]
    fn the_busiest_visitors_are_one_line() {
        let document = document(Value::Null);
        let want = "busiest visitors of the day: 192.0.2.1 at www.example: 1,234, \
                    2001:db8::1 at –: 23";
        assert_eq!(visitors(&document, 90).as_deref(), Some(want));
    }

    #[test]
    fn an_anomaly_has_a_line_and_its_reason_below() {
        let want = "\
anomalies: 12, the newest:
  2026-06-01 00:00 burst of 192.0.2.1 at www.example
    412 events in 31 s; of 2,100,000 sessions in the 24 h before, 5 had 64 or
    more
  2026-06-01 00:00 fall at www.example
    no session in 5 min
  – clock of web/3
    it is ahead";
        assert_eq!(anomalies(&document(Value::Null), 80, 9).join("\n"), want);
    }
}
