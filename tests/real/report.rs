//! `sessionizer report`: it reports exactly what the queries return, whatever the names of hosts.

use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;

use crate::analysis::two_weeks;
use crate::oracle::event;
use crate::postgres::TEN;
use crate::queries;
use crate::world::World;

fn report(world: &World, args: &[&str]) -> Output {
    let mut command = world.command();
    command.arg("report").args(args);
    command.output().expect("the program was built")
}

/// What a report prints; it must succeed.
fn said(world: &World, args: &[&str]) -> String {
    let output = report(world, args);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {log}");
    String::from_utf8(output.stdout).expect("text")
}

fn json(world: &World, args: &[&str]) -> Value {
    let text = said(world, &[&["--json"], args].concat());
    serde_json::from_str(&text).unwrap_or_else(|why| panic!("{why}: {text}"))
}

/// The exit code and the log of a report that must not succeed.
fn refused(world: &World, args: &[&str]) -> (Option<i32>, String) {
    let output = report(world, args);
    assert!(output.stdout.is_empty(), "{args:?}");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Writes a page and returns its text.
fn page(world: &World, args: &[&str]) -> String {
    let file: PathBuf = std::env::temp_dir().join(format!("{}.html", world.name));
    world.write(&file, "");
    let path = file.to_str().expect("text");
    said(world, &[&["--html", path], args].concat());
    std::fs::read_to_string(&file).expect("it was written")
}

/// A value of JSON as psql writes it.
fn as_psql(holds: &str, value: &Value) -> String {
    match (holds, value) {
        (_, Value::Null) => String::new(),
        ("seconds", value) => {
            let all = value.as_f64().expect("a number") as i64;
            format!("{:02}:{:02}:{:02}", all / 3_600, all / 60 % 60, all % 60)
        }
        ("time", value) => {
            let time = value.as_str().expect("a time").replacen('T', " ", 1);
            time.strip_suffix(":00").expect("a zone").to_owned()
        }
        (_, Value::String(text)) => text.clone(),
        (_, value) => value.to_string(),
    }
}

#[test]
fn the_json_is_what_the_queries_say() {
    let world = two_weeks("report", &[]);
    let report = json(&world, &["--addresses"]);
    assert_eq!(report["job"], world.name);
    assert_eq!(report["table"], "public.sessionized_events");
    let parts = report["parts"].as_array().expect("parts");
    assert_eq!(parts.len(), 10);
    for part in parts {
        let name = part["name"].as_str().expect("a name");
        let columns = part["columns"].as_array().expect("columns");
        let rows = part["rows"].as_array().expect("rows").iter().map(|row| {
            let cell = |column: &Value| {
                let value = &row[column["name"].as_str().expect("a name")];
                as_psql(column["holds"].as_str().expect("what it holds"), value)
            };
            columns.iter().map(cell).collect::<Vec<_>>()
        });
        let rows: Vec<Vec<String>> = rows.collect();
        let want = queries::run(&world, &format!("{name}.sql"));
        assert_eq!(rows.len(), want.len(), "{name}");
        for (row, want) in rows.iter().zip(want) {
            let want: Vec<&str> = want.split(" | ").collect();
            let is_same = |(cell, want): (&String, &&str)| match (cell.parse(), want.parse()) {
                (Ok::<f64, _>(cell), Ok::<f64, _>(want)) => cell == want,
                _ => cell == want,
            };
            assert_eq!(row.len(), want.len(), "{name}");
            assert!(row.iter().zip(&want).all(is_same), "{name}: {row:?} is not {want:?}");
        }
    }
}

#[test]
fn addresses_are_masked_unless_asked_for() {
    let world = two_weeks("report-mask", &[]);
    let first = |args: &[&str]| {
        let report = json(&world, &[&["--only", "longest_sessions"], args].concat());
        report["parts"][0]["rows"][0]["ip"].clone()
    };
    assert_eq!(first(&[]), "10.0.0.x");
    assert_eq!(first(&["--addresses"]), "10.0.0.1");
    let csv = said(&world, &["--csv", "--only", "longest_sessions"]);
    assert!(csv.contains("\n10.0.0.x,a.example,2024-03-11T09:00:00+00:00,"), "{csv}");
    for text in [csv, said(&world, &[]), page(&world, &[])] {
        assert!(!text.contains("10.0.0.1") && !text.contains("10.0.0.2"), "{text}");
    }
    let open = page(&world, &["--addresses"]);
    assert!(open.contains("<bdi>10.0.0.1</bdi>"));
    // It says when it was made.
    let but_when = |page: &str| {
        let (before, rest) = page.split_once(", as of ").expect("it says when");
        format!("{before}{}", rest.split_once(';').expect("something follows").1)
    };
    assert_eq!(but_when(&said(&world, &["--addresses", "--html", "-"])), but_when(&open));
}

#[test]
fn tables_fit_into_eighty_columns() {
    let world = two_weeks("report-tables", &[]);
    let text = said(&world, &[]);
    let too_wide: Vec<&str> = text.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(too_wide.is_empty(), "{too_wide:#?}");
    for part in ["a.example", "8:00", "2024-03-04", "What share of the sessions"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let short = said(&world, &["--rows", "2", "--only", "returning_visitors"]);
    assert!(short.contains("and 5 more rows: --rows 7"), "{short}");
}

#[test]
fn a_part_of_the_table_is_chosen_by_day_host_and_zone() {
    let world = two_weeks("report-part", &[]);
    let sessions = |args: &[&str]| {
        let report = json(&world, &[&["--only", "bounce_rate"], args].concat());
        report["parts"][0]["rows"][0]["sessions"].as_i64().expect("a count")
    };
    assert_eq!(sessions(&[]), 9);
    assert_eq!(sessions(&["--from", "2024-03-05", "--to", "2024-03-10"]), 3);
    assert_eq!(sessions(&["--to", "2024-03-04"]), 3);
    assert_eq!(sessions(&["--to", "2024-03-04", "--host", "b.example"]), 1);
    assert_eq!(sessions(&["--host", "b.example,a.example"]), 9);
    assert_eq!(sessions(&["--host", "' or true --"]), 0);
    // In Berlin it is an hour later: two of the three began on the fifth.
    assert_eq!(sessions(&["--to", "2024-03-04", "--time-zone", "Europe/Berlin"]), 1);
}

#[test]
fn times_without_a_zone_are_those_of_utc() {
    let zoned = two_weeks("report-zoned", &[]);
    let plain = World::new("report-plain");
    plain.create_topic(1);
    plain.execute(
        "create table sessionized_events (ip varchar, host varchar, session_start timestamp(3),
                                          session_end timestamp(3), num_logs bigint)",
    );
    for row in zoned.query(
        "select ip, host, session_start at time zone 'UTC', session_end at time zone 'UTC',
                num_logs from sessionized_events",
    ) {
        plain.execute(&format!("insert into sessionized_events values ('{}')", row.join("', '")));
    }
    plain.run_to_end(&["--from", "earliest"]);
    for args in [
        &["--time-zone", "Europe/Berlin"][..],
        &["--from", "2024-03-05", "--time-zone", "Asia/Tokyo"],
    ] {
        assert_eq!(json(&plain, args)["parts"], json(&zoned, args)["parts"], "{args:?}");
    }
}

/// The rows of a CSV, parsed as by RFC 4180.
fn parse(csv: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell) = (Vec::new(), Vec::new(), String::new());
    let mut chars = csv.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        match (quoted, c) {
            (true, '"') if chars.peek() == Some(&'"') => {
                chars.next();
                cell.push('"');
            }
            (_, '"') => quoted = !quoted,
            (false, ',') => row.push(std::mem::take(&mut cell)),
            (false, '\n') => {
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            (_, c) => cell.push(c),
        }
    }
    assert!(!quoted && row.is_empty() && cell.is_empty(), "{csv}");
    rows
}

#[test]
fn hostile_hosts_are_text_in_every_format() {
    let script = "</td></table><script src=//evil.example>alert(1)</script>'\"&";
    let hosts =
        [script, "=HYPERLINK(\"http://evil.example\",\"a\"),b", "\u{1b}[2J\u{202e}txet\nline"];
    let world = World::new("report-hostile");
    world.create_topic(1);
    let events = hosts.iter().enumerate().flat_map(|(n, host)| {
        let event = event("<b>10.0.0.1</b>", host, 1_709_546_400_000);
        vec![event; n + 1]
    });
    world.send_events(0, &events.collect::<Vec<_>>());
    world.run_to_end(&[]);
    let rows = parse(&said(&world, &["--csv", "--only", "hosts_side_by_side"]));
    assert_eq!(rows[0][..2], ["host", "sessions"]);
    let mut found: Vec<&str> = rows[1..].iter().map(|row| row[0].as_str()).collect();
    found.sort_unstable();
    let formula = format!("'{}", hosts[1]);
    let mut want = vec![script, formula.as_str(), hosts[2]];
    want.sort_unstable();
    assert_eq!(found, want);
    assert!(rows.iter().all(|row| row.len() == 8), "{rows:?}");
    let html = page(&world, &["--addresses"]);
    for tag in ["<script", "<b>", "style=", "\u{1b}"] {
        assert!(!html.contains(tag), "{tag:?}");
    }
    assert!(html.contains("&lt;/table&gt;&lt;script src=//evil.example&gt;alert(1)"), "{html}");
    assert!(html.contains("default-src 'none'; style-src 'sha256-"), "{html}");
    assert!(!said(&world, &[]).contains('\u{1b}'));
    let found = json(&world, &["--only", "bounce_rate"]);
    let rows = found["parts"][0]["rows"].as_array().expect("rows").clone();
    assert!(rows.iter().any(|row| row["host"] == script), "{rows:?}");
}

#[test]
fn the_page_has_the_numbers() {
    let world = two_weeks("report-page", &[]);
    let html = page(&world, &[]);
    for part in [
        "<td class=\"number\" data-name=\"one event %\">55.6</td>",
        "<td class=\"number\" data-name=\"average length\">2:00</td>",
        "<td class=\"number\" data-name=\"sessions ±%\">-33.3</td>",
        "<td class=\"shade-10\" title=\"2\">2</td>",
        "<polyline class=\"line-1\"",
        "All sessions in the table public.sessionized_events of the job report-page",
    ] {
        assert!(html.contains(part), "{part:?} is not in {html}");
    }
}

#[test]
fn an_empty_table_makes_a_report_too() {
    let world = World::new("report-empty");
    world.create_topic(1);
    world.run_to_end(&[]);
    assert!(said(&world, &[]).contains("\n  nothing\n"));
    assert!(page(&world, &[]).contains("<p class=\"nothing\">Nothing.</p>"));
    assert_eq!(said(&world, &["--csv", "--only", "longest_sessions"]).lines().count(), 1);
    assert_eq!(json(&world, &[])["parts"][7]["rows"], Value::Array(Vec::new()));
}

#[test]
fn what_is_missing_or_wrong_is_said() {
    let world = World::new("report-wrong");
    let (code, log) = refused(&world, &[]);
    assert!(code == Some(2) && log.contains("there is no job report-wrong"), "{code:?} {log}");
    world.create_topic(1);
    world.run_to_end(&[]);
    let (code, log) = refused(&world, &["--job", "another"]);
    assert!(code == Some(2) && log.contains("the jobs are: report-wrong"), "{code:?} {log}");
    let (code, log) = refused(&world, &["--time-zone", "Mars/Crater"]);
    assert!(code == Some(2) && log.contains("knows no time zone \"Mars/Crater\""), "{log}");
    // Postgres takes an offset with the opposite sign.
    let (code, log) = refused(&world, &["--time-zone", "+02:00"]);
    assert!(code == Some(2) && log.contains("knows no time zone \"+02:00\""), "{log}");
    let wrong = ["--from", "yesterday", "--only", "nothing", "--json", "--csv", "--rows", "0"];
    let (code, log) = refused(&world, &wrong);
    assert_eq!(code, Some(2), "{log}");
    for part in ["it must be a day like", "names \"nothing\", which is none of", "choose one"] {
        assert!(log.contains(part), "{log}");
    }
    let (code, log) = refused(&world, &["--html", "/nowhere/report.html", "--timeout", "1ms"]);
    assert!(code == Some(2) && log.contains("\"/nowhere/report.html\" cannot be wri"), "{log}");
    let (code, log) = refused(&world, &["--csv"]);
    assert!(code == Some(2) && log.contains("is one table: choose it with --only"), "{log}");
    let (code, log) = refused(&world, &["--only", "unlike_the_rest", "--timeout", "1ms"]);
    assert!(code == Some(1) && log.contains("took longer than --timeout 1ms"), "{code:?} {log}");
    world.execute("alter table sessionized_events rename to elsewhere");
    let (code, log) = refused(&world, &[]);
    let gone = "the table public.sessionized_events of the job report-wrong";
    assert!(code == Some(2) && log.contains(gone), "{code:?} {log}");
}

#[test]
fn a_login_that_may_only_read_makes_a_report() {
    let mut world = two_weeks("report-role", &[]);
    let role = world.role();
    world.execute(&format!("create role {role} login password '{}'", "report"));
    world.login = Some(role.clone());
    world.password = "report".to_owned();
    let (code, log) = refused(&world, &[]);
    assert!(code == Some(2) && log.contains("a report needs select on the table"), "{log}");
    let admin = World::client;
    let grant = format!(
        "grant usage on schema sessionizer to {role};
         grant select on sessionizer.jobs, sessionized_events to {role}"
    );
    admin(&world).batch_execute(&grant).expect("granted");
    assert_eq!(json(&world, &["--only", "bounce_rate"])["parts"][0]["rows"][0]["sessions"], 9);
    admin(&world).batch_execute(&format!("drop owned by {role}")).expect("dropped");
}

/// Surges and falls are looked for in buckets of five minutes: not in all those since the year 1.
#[test]
fn an_old_row_does_not_hold_up_a_report() {
    let world = World::new("report-old");
    world.create_topic(1);
    let year_1 = -62_135_596_800_000;
    for time_ms in [year_1, 0, two_weeks_ago()] {
        world.send_events(0, &[event("192.0.2.1", "old.example", time_ms)]);
    }
    world.run_to_end(&[]);
    assert_eq!(world.rows().len(), 3);
    let found = json(&world, &["--only", "unlike_the_rest", "--timeout", "10s"]);
    assert!(found["reports"][0]["rows"].as_array().is_none_or(Vec::is_empty), "{found}");
}

fn two_weeks_ago() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("after 1970").as_millis() as i64 - 14 * 86_400_000
}

#[test]
fn a_page_that_cannot_be_written_is_trouble_outside() {
    let world = World::new("report-full");
    world.create_topic(1);
    world.send_events(0, &[event("10.0.0.1", "h", TEN)]);
    world.run_to_end(&[]);
    let output = report(&world, &["--only", "bounce_rate", "--html", "/dev/full"]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("/dev/full\" cannot be written: No space left"), "{log}");
}
