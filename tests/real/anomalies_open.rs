//! Marathons that are still open: raised before there is a row, kept over a restart, taken over by
//! the row, and withdrawn if the session turns out to be another.

use crate::oracle::{Event, event};
use crate::watch::Watched;
use crate::world::{Running, World, eventually};

const HOST: &str = "a.example";
const MINUTE: i64 = 60_000;
/// 2026-06-01T12:00:00Z.
const NOON: i64 = 1_780_272_000_000 + 720 * MINUTE;
/// A marathon takes an hour here; the watermark follows the one partition that has events.
const ARGS: [&str; 8] = [
    "--epoch",
    "100ms",
    "--idle-timeout",
    "2s",
    "--anomalies",
    "marathon",
    "--anomaly-threshold",
    "marathon.min=3600",
];

const ROWS: &str = "select subject, (extract(epoch from at) / 60)::int8, state, reason,
                           details ? 'Open', changed_at::text
                    from sessionizer.anomalies order by at, subject";

/// A morning of ordinary sessions of the host.
fn morning(world: &World) {
    world.create_topic(1);
    let visits =
        (0..250).map(|n| event(&format!("10.0.0.{n}"), HOST, NOON - (251 - n) * 2 * MINUTE));
    world.send_events(0, &visits.collect::<Vec<Event>>());
}

/// A page every four minutes, from a minute to another, counted from noon.
fn visits(world: &World, ip: &str, from: i64, to: i64) {
    visits_of(world, &[(ip, from, to)]);
}

/// The same of several visitors, in the order of their times: wherever an epoch ends, nobody's
/// session closes because the watermark follows somebody else.
fn visits_of(world: &World, visitors: &[(&str, i64, i64)]) {
    let mut visits: Vec<(i64, &str)> = visitors
        .iter()
        .flat_map(|(ip, from, to)| (*from..=*to).step_by(4).map(move |minute| (minute, *ip)))
        .collect();
    visits.sort_unstable();
    let events = visits.iter().map(|(minute, ip)| event(ip, HOST, NOON + minute * MINUTE));
    world.send_events(0, &events.collect::<Vec<Event>>());
}

/// One event of somebody else, which moves the watermark.
fn until(world: &World, minute: i64) {
    world.send_events(0, &[event("192.0.2.1", HOST, NOON + minute * MINUTE)]);
}

fn start(world: &World, workers: &str) -> Watched {
    let mut command = world.command();
    command.env("SESSIONIZER_HTTP", "127.0.0.1:0").args(ARGS).args(["-w", workers]);
    let mut watched = Watched::from(Running::start(command));
    watched.job.wait_for("reading begins");
    watched
}

/// Waits until all that was sent is durable, so that what is sent next is in another epoch.
fn read(world: &World) {
    let (first, end) = world.log_range(&world.name, 0);
    let records = "select coalesce(sum(records), 0) from sessionizer.partitions";
    eventually("all is read", || world.value(records) == (end - first).to_string());
}

fn raised(watched: &Watched) -> String {
    let metrics = watched.get("/metrics").body;
    let of_it = |line: &&str| line.starts_with("sessionizer_anomalies_total{kind=\"marathon\"}");
    // It is there once the statistics have been published for the first time.
    let line = metrics.lines().find(of_it).unwrap_or("none yet");
    line.rsplit(' ').next().expect("a value").to_owned()
}

#[test]
fn a_marathon_is_raised_while_it_is_open_kept_over_restarts_and_taken_over_by_its_row() {
    let world = World::new("anomalies-open");
    morning(&world);
    visits(&world, "192.0.2.9", 0, 80);
    let job = start(&world, "1");
    read(&world);
    visits(&world, "192.0.2.9", 84, 96);
    eventually("it is raised while it is open", || world.query(ROWS).len() == 1);
    let first = world.query(ROWS).remove(0);
    let minute = (NOON / MINUTE).to_string();
    assert_eq!(first[..3], ["192.0.2.9", &minute, "raised"].map(str::to_owned));
    assert!(first[3].starts_with("open for "), "{}", first[3]);
    assert_eq!(first[4], "t");
    let table = "select count(*) from sessionized_events where ip = '192.0.2.9'";
    assert_eq!(world.value(table), "0", "there is no row yet");
    eventually("it is counted", || raised(&job) == "1");
    job.job.kill();

    // Two starts, one after a crash and one after a clean stop. The row of a session that is gone is
    // withdrawn by a start as soon as it knows what is live; that of the open session stays as it is.
    for (workers, stale) in [("3", "192.0.2.250"), ("2", "192.0.2.251")] {
        world.execute(&format!(
            "insert into sessionizer.anomalies (job, kind, host, subject, at, observed, expected,
                 threshold, unit, reason, details, state, raised_epoch)
             select job, kind, host, '{stale}', at, observed, expected, threshold, unit, reason,
                 details, state, raised_epoch
             from sessionizer.anomalies where subject = '192.0.2.9'"
        ));
        let job = start(&world, workers);
        let state = format!("select state from sessionizer.anomalies where subject = '{stale}'");
        eventually("the start has compared", || world.value(&state) == "withdrawn");
        assert_eq!(
            world.query(ROWS).into_iter().find(|row| row[0] == "192.0.2.9"),
            Some(first.clone())
        );
        eventually("it was raised before the start", || raised(&job) == "0");
        job.job.stop();
    }

    let job = start(&world, "2");
    until(&world, 120);
    eventually("its row takes it over", || {
        world.query(ROWS).iter().any(|row| row[0] == "192.0.2.9" && row[4] == "f")
    });
    let rows = world.query(ROWS);
    let of_it: Vec<&Vec<String>> = rows.iter().filter(|row| row[0] == "192.0.2.9").collect();
    assert_eq!(of_it.len(), 1, "{rows:?}");
    assert_eq!((&*of_it[0][1], &*of_it[0][2]), (&*minute, "raised"));
    assert!(of_it[0][3].starts_with("96 min long, an event every 4 min"), "{}", of_it[0][3]);
    assert_eq!(world.value(table), "1");
    eventually("it is the same one", || raised(&job) == "0");
    let log = job.job.stop();
    assert!(!log.contains("anomaly withdrawn"), "{log}");
}

#[test]
fn a_marathon_is_counted_once_and_withdrawn_if_its_session_began_earlier() {
    let world = World::new("anomalies-moved");
    morning(&world);
    visits_of(&world, &[("192.0.2.9", 0, 80), ("192.0.2.10", 1, 81)]);
    let job = start(&world, "2");
    read(&world);
    visits_of(&world, &[("192.0.2.9", 84, 96), ("192.0.2.10", 85, 97)]);
    eventually("they are raised while they are open", || world.query(ROWS).len() == 2);
    // A late event: the first session began four minutes earlier.
    visits(&world, "192.0.2.9", -4, -4);
    visits_of(&world, &[("192.0.2.9", 100, 100), ("192.0.2.10", 101, 101)]);
    let states = || -> Vec<[String; 3]> {
        let rows = world.query(ROWS).into_iter();
        rows.map(|row| [row[0].clone(), row[1].clone(), row[2].clone()]).collect()
    };
    let row = |ip: &str, minute: i64, state: &str| {
        [ip.to_owned(), (NOON / MINUTE + minute).to_string(), state.to_owned()]
    };
    let want = [
        row("192.0.2.9", -4, "raised"),
        row("192.0.2.9", 0, "withdrawn"),
        row("192.0.2.10", 1, "raised"),
    ];
    eventually("the one that began earlier is another", || states() == want);
    until(&world, 120);
    let of_rows = "select count(*) from sessionizer.anomalies
                   where state = 'raised' and details ? 'Session'";
    eventually("the rows take them over", || world.value(of_rows) == "2");
    assert_eq!(states(), want);
    eventually("they are counted", || raised(&job) == "3");
    let log = job.job.stop();
    assert_eq!(log.matches("anomaly withdrawn: marathon").count(), 1, "{log}");
    assert_eq!(log.matches("anomaly: marathon").count(), 3, "{log}");
}

#[test]
fn open_sessions_are_not_looked_at_if_marathons_are_not_looked_for() {
    let world = World::new("anomalies-not-open");
    morning(&world);
    visits(&world, "192.0.2.9", 0, 88);
    let kinds = ["--anomalies", "burst"];
    let mut job = world.start(&[&ARGS[..4], &kinds, &ARGS[6..]].concat());
    job.wait_for("reading begins");
    let rows = "select count(*) from sessionized_events";
    eventually("the morning is in the table", || world.value(rows) == "250");
    std::thread::sleep(std::time::Duration::from_secs(2));
    job.stop();
    assert_eq!(world.value("select count(*) from sessionizer.anomalies"), "0");
}
