//! The statistics of a running job: at rest they are what a query says of the table, to the last
//! digit, whatever has happened to the job.

use serde_json::Value;

use crate::cluster::Hosts;
use crate::lifecycle::wait_for_records;
use crate::oracle::{Event, event};
use crate::queries::run;
use crate::rng::Rng;
use crate::watch::Watched;
use crate::world::{PATIENCE, Running, World};

const ARGS: [&str; 6] =
    ["--epoch", "100ms", "--idle-timeout", "500ms", "--snapshot-interval", "300ms"];
const VISITORS: [&str; 2] = ["--statistics", "visitors"];

/// Sparse traffic over many hours, some of it late.
struct Traffic {
    random: Rng,
    clock_ms: i64,
    sent: u64,
}

impl Traffic {
    fn new(world: &World) -> Self {
        world.create_topic(3);
        Traffic { random: Rng::new(11), clock_ms: 1_709_632_800_000, sent: 0 }
    }

    /// Sends events of this many hours.
    fn send(&mut self, world: &World, hours: i64, events: u64) {
        let random = &mut self.random;
        let mut all: [Vec<Event>; 3] = Default::default();
        for _ in 0..events {
            self.clock_ms += hours * 3_600_000 / events as i64;
            let late_ms = if random.one_in(20) { 10_800_000 } else { 10_000 };
            let time_ms = self.clock_ms - random.below(late_ms) as i64;
            // Few visitors come often.
            let most = random.between(1, 60);
            let (ip, host) = (random.below(most), random.below(4));
            let ip = if ip % 7 == 0 { format!("2001:db8::{ip}") } else { format!("10.0.0.{ip}") };
            let partition = random.below(3) as usize;
            all[partition].push(event(&ip, &format!("host-{host}"), time_ms));
        }
        for (partition, events) in all.iter().enumerate() {
            world.send_events(partition as i32, events);
        }
        self.sent += events;
        wait_for_records(world, self.sent);
    }
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("not a number: {value}"))
}

/// Compares a summary with a line of a query: sessions, events, duration, sessions of one event, and
/// the four ranks.
fn compare(what: &str, shown: &[Value], line: &[i64]) -> Result<(), String> {
    for (at, (shown, said)) in shown.iter().zip(line).enumerate() {
        let same = match shown.as_array() {
            None => shown.as_i64() == Some(*said),
            // The bins are those of the documentation: the leading one and the next three bits.
            Some(bin) => {
                let shift = (*said as u64).max(16).ilog2() - 3;
                let lowest = if *said < 16 { *said } else { *said >> shift << shift };
                let highest = if *said < 16 { *said } else { lowest + (1 << shift) - 1 };
                bin[..] == [Value::from(lowest), Value::from(highest)]
            }
        };
        if !same {
            return Err(format!("{what}, figure {at}: the page says {shown}, SQL {said}"));
        }
    }
    Ok(())
}

fn summary(of: &Value) -> Vec<Value> {
    let figures = [
        "sessions",
        "events",
        "duration_ms",
        "singles",
        "events_median",
        "events_p95",
        "duration_median_ms",
        "duration_p95_ms",
    ];
    figures.iter().map(|figure| of[figure].clone()).collect()
}

fn fields(row: &str) -> (String, Vec<i64>) {
    let (name, rest) = row.split_once(" | ").expect("columns");
    (name.to_owned(), rest.split(" | ").map(|n| n.parse().expect("a number")).collect())
}

/// Whether the document says what queries say of the table.
fn differs(world: &World, document: &Value) -> Result<(), String> {
    let head = &document["statistics"];
    if head["state"] != "counting" {
        return Err(format!("{head}"));
    }
    assert_eq!((number(&head["broken"]), &head["rows_from"]), (0, &Value::Null), "{head}");
    let by_host = run(world, "last_day_by_host.sql");
    let mut lines = by_host.iter().map(|row| fields(row));
    let mut shown = vec![&document["statistics_all"]["rows"][0]];
    shown.extend(document["statistics_hosts"]["rows"].as_array().expect("rows"));
    for of in &shown {
        let (host, mut line) = lines.next().ok_or("SQL has no further host")?;
        let visitors = line.remove(4);
        if of["host"] != host.as_str() {
            return Err(format!("the page says {}, SQL {host}", of["host"]));
        }
        compare(&host, &summary(&of["day"]), &line)?;
        compare(&format!("{host}: visitors"), &[of["visitors"].clone()], &[visitors])?;
    }
    let rest = lines.next();
    let other = &document["statistics_hosts"]["other"];
    assert!(rest.is_none() && other["sessions"] == 0, "{rest:?} {other}");
    let by_hour = run(world, "last_day_by_hour.sql");
    let hours = document["statistics_hours"]["rows"].as_array().expect("rows");
    if hours.len() != by_hour.len() {
        return Err(format!("{} hours, SQL {}", hours.len(), by_hour.len()));
    }
    for (hour, row) in hours.iter().zip(&by_hour) {
        let (start, line) = fields(row);
        let hour = hour.as_array().expect("an array");
        let at = chrono::DateTime::from_timestamp_millis(number(&hour[0])).expect("a time");
        assert_eq!(at.format("%Y-%m-%d %H:%M:%S+00").to_string(), start);
        compare(&start, &hour[1..], &line)?;
    }
    let minutes = document["statistics_minutes"]["rows"].as_array().expect("rows");
    for minute in minutes {
        let of = |at: usize| number(&minute[at]);
        let sql = format!(
            "select count(*), sum(num_logs),
                    sum(round(1000 * extract(epoch from session_end - session_start)) - 300000)::bigint
             from sessionized_events where extract(epoch from session_end) >= {0}
                  and extract(epoch from session_end) < {0} + 60",
            of(0) / 1_000
        );
        let said: Vec<i64> = world.query(&sql)[0].iter().map(|n| n.parse().unwrap_or(0)).collect();
        if said != [of(1), of(2), of(3)] {
            return Err(format!("the minute {minute}, SQL {said:?}"));
        }
    }
    let visitors = document["statistics_visitors"]["rows"].as_array().expect("rows");
    let sessions: Vec<i64> = visitors.iter().map(|row| number(&row["sessions"])).collect();
    let busiest = run(world, "busiest_visitors.sql");
    let column = |row: &String, at: usize| row.split(" | ").nth(at).expect("a column").to_owned();
    let said = busiest.iter().take(10).map(|row| column(row, 2).parse().expect("a number"));
    let said: Vec<i64> = said.collect();
    for row in visitors {
        let [ip, host] = ["ip", "host"].map(|field| row[field].as_str().expect("text").to_owned());
        let found =
            busiest.iter().find(|r| (column(r, 0), column(r, 1)) == (ip.clone(), host.clone()));
        let same = found.is_some_and(|found| {
            row["sessions"] == column(found, 2).parse::<i64>().expect("a number")
        });
        if !same {
            return Err(format!("the busiest: the page says {row}, SQL {found:?}"));
        }
    }
    match sessions == said {
        true => Ok(()),
        false => Err(format!("the busiest: the page says {sessions:?}, SQL {said:?}")),
    }
}

/// Waits until the page says what SQL says: nobody sends, and only time moves the watermark.
fn agrees(world: &World, watched: &Watched) -> Value {
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        let document = watched.status();
        match differs(world, &document) {
            Ok(()) => return document,
            Err(why) if std::time::Instant::now() > until => panic!("{why}\n{document:#}"),
            Err(_) => {}
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

#[test]
fn at_rest_the_page_shows_what_sql_returns_whatever_happened() {
    let world = World::new("statistics");
    let mut traffic = Traffic::new(&world);
    let start =
        |workers: &str| Watched::start(&world, &[&ARGS[..], &VISITORS, &["-w", workers]].concat());

    // More than a day: what has left the window is not counted, and rows have been corrected.
    let watched = start("1");
    for _ in 0..30 {
        traffic.send(&world, 1, 200);
    }
    let document = agrees(&world, &watched);
    let day = number(&document["statistics_all"]["rows"][0]["day"]["sessions"]);
    let table: i64 = world.value("select count(*) from sessionized_events").parse().expect("count");
    assert!(0 < day && day < table, "{day} of {table}");
    assert!(number(&document["tiles"]["rows_removed"]) > 0, "nothing was corrected");
    assert!(document["statistics_visitors"]["rows"].as_array().expect("rows").len() == 10);
    traffic.send(&world, 2, 500);
    agrees(&world, &watched);
    watched.job.stop();

    let index =
        world.value("select count(*) from pg_indexes where indexdef like '%brin (session_end)%'");
    assert_eq!(index, "1");

    // Another number of workers reads the day from the table, and goes on.
    let watched = start("4");
    let document = agrees(&world, &watched);
    assert!(number(&document["statistics"]["rows_read"]) >= day, "{}", document["statistics"]);
    traffic.send(&world, 3, 600);
    agrees(&world, &watched);

    // Killed while it works.
    traffic.send(&world, 1, 300);
    watched.job.kill();
    let watched = start("2");
    agrees(&world, &watched);
    traffic.send(&world, 5, 800);
    agrees(&world, &watched);
    watched.job.kill();

    // Two processes; process 0 has all of it.
    let hosts = Hosts::local(&world, 2);
    let start = |process: usize| {
        let mut command = world.command();
        command.args(hosts.place(process)).args(ARGS).args(VISITORS).args(["-w", "2"]);
        command.env("SESSIONIZER_HTTP", "127.0.0.1:0");
        Running::start(command)
    };
    let jobs: Vec<Running> = (0..2).map(start).collect();
    let watched: Vec<Watched> = jobs.into_iter().map(Watched::from).collect();
    agrees(&world, &watched[0]);
    traffic.send(&world, 2, 500);
    agrees(&world, &watched[0]);
    let other = watched[1].status();
    assert_eq!(other["statistics"]["why"]["state"], "the page of process 0 has them");
    watched[0].job.signal("TERM");
    for Watched { job, .. } in watched {
        let (status, log) = job.wait();
        assert!(status.success(), "{status}:\n{log}");
    }
}

/// Statistics that are switched off say so; and visitors beyond the limit are not counted.
#[test]
fn what_is_not_counted_says_why() {
    let world = World::new("statistics-off");
    let mut traffic = Traffic::new(&world);
    let with = |args: &[&str]| Watched::start(&world, &[&ARGS[..], args].concat());
    let watched = with(&["--statistics", "none"]);
    traffic.send(&world, 2, 500);
    let document = watched.status();
    let why = &document["statistics"]["why"]["state"];
    assert_eq!(why, "they are switched off (--statistics none)");
    assert!(!watched.get("/metrics").body.contains("sessionizer_statistics_"));
    watched.job.stop();

    let watched = with(&["--statistics", "hosts"]);
    let document = watched.wait_until("it counts", |document| {
        document["statistics"]["state"] == "counting"
            && document["statistics_hosts"]["rows"].as_array().is_some_and(|rows| rows.len() == 4)
    });
    let why = &document["statistics_visitors"]["why"]["rows"];
    assert_eq!(why, "visitors are not counted (--statistics hosts)");
    assert!(document["statistics_all"]["rows"][0]["visitors"].is_null());
    watched.job.stop();

    let watched = with(&["--statistics", "visitors", "--statistics-visitors", "20"]);
    let document = watched
        .wait_until("it counts", |document| document["statistics"]["visitors_from"].is_number());
    assert!(number(&document["statistics"]["visitors_kept"]) <= 20, "{}", document["statistics"]);
    assert!(
        document["statistics"]["visitors_from"].as_i64() > document["statistics"]["from"].as_i64()
    );
    watched.job.stop();
}

/// An attack with random Host headers and addresses: what is kept is bounded, the job says what it
/// has not counted, and the table has all of it.
#[test]
fn random_hosts_and_addresses_are_bounded_and_the_rest_is_said() {
    const SESSIONS: i64 = 12_500;
    let world = World::new("statistics-attack");
    world.create_topic(1);
    let limits = ["--statistics", "visitors", "--statistics-visitors", "5000"];
    let watched = Watched::start(&world, &[&ARGS[..], &limits].concat());
    let noon_ms = 1_709_640_000_000;
    let random = |n: i64| {
        let ip = format!("10.{}.{}.1", n / 256, n % 256);
        event(&ip, &format!("{n:x}.example"), noon_ms + n)
    };
    // The last event closes the sessions of the others, and stays open.
    let last = event("192.0.2.1", "last.example", noon_ms + 600_000);
    let all = (0..SESSIONS).map(random).chain([last]);
    world.send_events(0, &all.collect::<Vec<_>>());
    let document = watched.wait_until("all have ended", |document| {
        document["statistics_all"]["rows"][0]["day"]["sessions"] == SESSIONS
            && document["anomalies"]["as_of"] == document["statistics"]["as_of"]
    });
    let head = &document["statistics"];
    assert_eq!((&head["hosts"], &head["hosts_limit"]), (&10_000.into(), &10_000.into()));
    let rows = document["statistics_hosts"]["rows"].as_array().expect("rows").len() as i64;
    let other = &document["statistics_hosts"]["other"];
    assert_eq!((number(&other["hosts"]), rows), (10_000 - rows, 20));
    assert_eq!(number(&other["sessions"]), SESSIONS - rows);
    assert!(number(&head["visitors_kept"]) <= 5_000, "{head}");
    // Visitors are counted again from the next hour on.
    assert_eq!(head["visitors_from"], noon_ms + 3_600_000);
    let anomalies = &document["anomalies"];
    assert_eq!(number(&anomalies["hosts"]), 10_000);
    assert_eq!(number(&anomalies["rows_refused"]), SESSIONS - 10_000);
    assert!(number(&anomalies["visitors_kept"]) <= 5_000, "{anomalies}");
    // The next day's visitors are known, so those of the day after it are compared with them.
    assert_eq!(anomalies["visitors_from"], noon_ms + 36 * 3_600_000);
    let metrics = watched.get("/metrics").body;
    let refused = format!("sessionizer_anomalies_rows_refused_total {}", SESSIONS - 10_000);
    assert!(metrics.contains(&refused), "{metrics}");
    assert!(metrics.contains("sessionizer_anomalies_hosts 10000"), "{metrics}");
    let mut status = world.command();
    status.args(["status", &format!("http://{}", watched.address)]);
    let output = status.output().expect("it runs");
    let screen = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(screen.contains("(no more than 10,000 hosts are counted individually)"), "{screen}");
    assert!(screen.contains("no more than 10,000 hosts are looked at"), "{screen}");
    watched.job.stop();
    let table = world.value("select count(*) from sessionized_events");
    assert_eq!(table, SESSIONS.to_string());
}
