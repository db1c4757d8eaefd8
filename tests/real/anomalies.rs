//! Anomalies: found in the topic of a scenario, once each, and kept with the verdict of the user.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::cluster::Hosts;
use crate::oracle::event;
use crate::rng::Rng;
use crate::watch::Watched;
use crate::world::{Running, World, eventually, finish};

const ROWS: &str =
    "select kind, host, subject, at::text, observed::text, reason, state, details::text
                    from sessionizer.anomalies order by 1, 2, 3, 4";

/// Writes the first two days of June, in which these scenarios happen. Returns the truth.
fn produce(world: &World, scenarios: &str) -> Vec<Value> {
    produce_from(world, scenarios, "2026-06-01T00:00:00Z")
}

/// Writes two days of traffic from this day on.
fn produce_from(world: &World, scenarios: &str, start: &str) -> Vec<Value> {
    let truth = std::env::temp_dir().join(format!("{}-truth", world.name));
    let mut command = world.command();
    command.args(["produce", "--scenario", scenarios, "--visits", "4000", "--incidents", "1"]);
    command.args(["--seed", "12", "--historical", start, "--truth"]).arg(&truth);
    let (status, log) = finish(command);
    assert!(status.success(), "{log}");
    let text = std::fs::read_to_string(&truth).expect("the truth was written");
    std::fs::remove_file(&truth).expect("it can be removed");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn anomalies_are_found_once_and_keep_their_verdict() {
    let world = World::new("anomalies");
    let truth = produce(&world, "flood,marathon,surge,crawler,distributed");
    assert_eq!(truth.len(), 5);
    world.run_to_end(&[]);
    let rows = world.query(ROWS);
    for incident in &truth {
        let of_it = |row: &&Vec<String>| {
            incident["kinds"][0] == row[0].as_str() && incident["subject"] == row[2].as_str()
        };
        let found: Vec<&Vec<String>> = rows.iter().filter(of_it).collect();
        assert_eq!(found.len(), 1, "{incident} in {rows:?}");
        assert_eq!(found[0][6], "raised");
        if incident["scenario"] == "flood" {
            assert_eq!(found[0][4], incident["size"].to_string());
            assert!(found[0][5].contains(" events in "), "{}", found[0][5]);
        }
    }
    // A session that is flagged is what the query says it is.
    let same = "select count(*) from sessionizer.anomalies a join sessionized_events s
                on (s.ip, s.host, s.session_start) = (a.subject, a.host, a.at)
                and a.observed = case a.unit when 'events' then s.num_logs
                    else div(s.num_logs * 60000, greatest(60000, extract(epoch from
                             s.session_end - interval '5 min' - s.session_start) * 1000)) end
                where a.kind = 'burst'";
    let bursts = "select count(*) from sessionizer.anomalies where kind = 'burst'";
    assert_eq!(world.value(same), world.value(bursts));
    // The user's verdict stays, and a restart adds nothing.
    world.execute("update sessionizer.anomalies set verdict = 'known' where kind = 'burst'");
    world.run_to_end(&[]);
    assert_eq!(world.query(ROWS), rows);
    let verdicts = "select count(*) from sessionizer.anomalies where verdict = 'known'";
    assert_eq!(world.value(verdicts), world.value(bursts));
}

#[test]
fn anomalies_are_on_the_page_and_among_the_metrics() {
    let world = World::new("anomalies-live");
    produce(&world, "flood");
    let watched = Watched::start(&world, &["--anomalies", "burst,fall"]);
    let document = watched.wait_until("the flood is found", |document| {
        document["anomalies"]["rows"].as_array().is_some_and(|rows| !rows.is_empty())
    });
    let first = &document["anomalies"]["rows"][0];
    assert_eq!((&first["kind"], &first["unit"]), (&"burst".into(), &"events".into()));
    let sql = first["sql"].as_str().expect("not masked on loopback");
    assert_eq!(world.query(sql).len(), 1, "{sql}");
    assert!(document["tiles"]["anomalies"].as_u64() > Some(0));
    let metrics = watched.get("/metrics").body;
    assert!(metrics.contains("sessionizer_anomalies_live{kind=\"burst\"} "), "{metrics}");
    assert!(!metrics.contains("kind=\"surge\""), "it is not looked for");
}

/// Starts the processes of a job that reads the topic into a table of its own.
fn start_job(world: &World, job: &str, processes: usize, args: &[&str]) -> Vec<Running> {
    let hosts = (processes > 1).then(|| Hosts::local(world, processes));
    let start_one = |process| {
        let mut command = world.command();
        command.env("KAFKA_GROUP", format!("{}-{job}", world.name));
        command.args(["--job", job, "--table", job, "--epoch", "50ms"]).args(args);
        if let Some(hosts) = &hosts {
            command.args(hosts.place(process));
        }
        Running::start(command)
    };
    (0..processes).map(start_one).collect()
}

/// How many records the topic has.
fn records(world: &World) -> i64 {
    let range = |partition| world.log_range(&world.name, partition);
    (0..4).map(range).map(|(first, end)| end - first).sum()
}

/// What identifies the rows of a job, and their state. Only those that are live at the end: in a
/// backlog that is read faster than a day a second, older ones may expire before they are
/// published.
fn identities(world: &World, job: &str) -> BTreeSet<Vec<String>> {
    let sql = format!(
        "select kind, host, subject, at::text, state from sessionizer.anomalies
         where job = '{job}' and at >= '2026-06-04'"
    );
    world.query(&sql).into_iter().collect()
}

/// Kills a job again and again while it reads, starts it with other workers each time, and compares
/// what it has found at the end with what an undisturbed job finds.
fn kills_and_other_workers_change_nothing(name: &str, processes: usize) {
    let world = World::new(name);
    let to_end = |job, processes, args: &[&str]| {
        let args = [args, &["--until-end"]].concat();
        for process in start_job(&world, job, processes, &args) {
            let (status, log) = process.wait();
            assert!(status.success(), "{log}");
        }
    };
    let mut moments = Rng::new(7);
    let mut round = |until_read: bool| {
        let workers = ["1", "3", "2"][moments.below(3) as usize];
        let args = ["-w", workers, "--snapshot-interval", "100ms"];
        let mut job = start_job(&world, "killed", processes, &args);
        job.iter_mut().for_each(|process| process.wait_for("reading begins"));
        if until_read {
            eventually("all is read", || {
                let sum = "select coalesce(sum(records), 0) from sessionizer.partitions";
                world.value(sum) == records(&world).to_string()
            });
        }
        std::thread::sleep(Duration::from_millis(moments.below(400)));
        let one = moments.below(processes as u64) as usize;
        job.remove(one).kill();
        job.into_iter().for_each(|process| drop(process.wait()));
    };
    let scenarios = "flood,marathon,surge,outage,crawler,distributed";
    produce(&world, scenarios);
    (0..2).for_each(|_| round(false));
    // In the middle of the topic, with everything read and perhaps not yet written.
    round(true);
    produce_from(&world, scenarios, "2026-06-03T00:00:00Z");
    (0..2).for_each(|_| round(false));
    to_end("killed", processes, &["-w", "2"]);
    to_end("alone", 1, &["-w", "2"]);
    assert_eq!(world.rows_of("killed"), world.rows_of("alone"));
    let (alone, killed) = (identities(&world, "alone"), identities(&world, "killed"));
    let kinds: BTreeSet<&str> = alone.iter().map(|row| row[0].as_str()).collect();
    for kind in ["burst", "marathon", "surge", "fall", "repeat", "network"] {
        assert!(kinds.contains(kind), "no {kind}: {alone:?}");
    }
    let differing: Vec<_> = alone.symmetric_difference(&killed).collect();
    assert!(differing.is_empty(), "{differing:?}");
}

#[test]
fn a_job_that_is_killed_finds_what_one_finds_that_is_left_alone() {
    kills_and_other_workers_change_nothing("anomalies-killed", 1);
}

#[test]
fn a_cluster_that_is_killed_finds_what_a_job_finds_that_is_left_alone() {
    kills_and_other_workers_change_nothing("anomalies-cluster", 2);
}

#[test]
fn a_correction_withdraws_and_so_does_the_next_start_if_a_crash_came_in_between() {
    let world = World::new("anomalies-withdrawn");
    produce(&world, "crawler");
    world.run_to_end(&[]);
    let crawler = "select host, subject, extract(epoch from at)::int8 from sessionizer.anomalies
                   where kind = 'repeat' and state = 'raised'";
    let rows = world.query(crawler);
    let [[host, ip, at]] = &rows.iter().map(|row| &row[..]).collect::<Vec<_>>()[..] else {
        panic!("one visitor: {rows:?}");
    };
    // A row that a correction would have withdrawn, had the run not ended before; one that has long
    // been final; and one of a kind that is not looked for.
    let stale = |subject: &str, kind: &str, days: i64| {
        world.execute(&format!(
            "insert into sessionizer.anomalies (job, kind, host, subject, at, observed, expected,
                 threshold, unit, reason, details, state, raised_epoch)
             select job, '{kind}', host, '{subject}', at - interval '{days} days', observed,
                 expected, threshold, unit, reason, details, 'raised', raised_epoch
             from sessionizer.anomalies where subject = '{ip}'"
        ));
    };
    stale("192.0.2.250", "repeat", 0);
    stale("192.0.2.251", "repeat", 4);
    stale("192.0.2.252", "network", 0);
    let kinds = ["--anomalies", "burst,repeat"];
    world.run_to_end(&kinds);
    let state = |subject: &str| {
        world.value(&format!(
            "select state from sessionizer.anomalies where subject = '{subject}'
             and kind <> 'burst'"
        ))
    };
    assert_eq!(state(ip), "raised");
    assert_eq!(state("192.0.2.250"), "withdrawn");
    assert_eq!([state("192.0.2.251"), state("192.0.2.252")], ["raised", "raised"]);
    // Late events join all sessions of the visitor.
    let from_ms = at.parse::<i64>().expect("a number") * 1_000;
    let late = (0..24 * 180).map(|n| event(ip, host, from_ms + n * 20_000));
    world.send_events(0, &late.collect::<Vec<_>>());
    world.run_to_end(&kinds);
    assert_eq!(state(ip), "withdrawn");
    let long =
        "select count(*) from sessionizer.anomalies where kind = 'burst' and state = 'raised'";
    assert_eq!(world.value(long), "1", "what they were joined to is a burst");
}

#[test]
fn a_partition_whose_clock_is_off_is_told_once_a_day() {
    let world = World::new("anomalies-clock");
    world.create_topic(4);
    let rows = "select subject, at::text, reason, state from sessionizer.anomalies";
    let subject = format!("{}/3", world.name);
    let reason =
        format!("{subject} is 29 min ahead of the other partitions; its sessions close too late");
    let want = [subject.as_str(), "2026-06-01 00:00:00+00", &reason, "raised"];
    let mut now_ms = 1_780_272_000_000 + 12 * 3_600_000;
    for workers in ["1", "3"] {
        let mut job = world.start(&["-w", workers, "--epoch", "100ms", "--idle-timeout", "2s"]);
        job.wait_for("reading begins");
        eventually("it is told", || {
            for partition in 0..4 {
                let ahead_ms = if partition == 3 { 1_800_000 } else { 10 * i64::from(partition) };
                let event = event("192.0.2.1", "a.example", now_ms + ahead_ms);
                world.send_events(partition, [&event]);
            }
            now_ms += 100;
            job.log().contains("anomaly: clock: ")
        });
        eventually("the row is written", || world.query(rows) == [want]);
        job.stop();
    }
    assert_eq!(world.query(rows), [want]);
}

#[test]
fn nothing_is_looked_for_with_none() {
    let world = World::new("anomalies-none");
    produce(&world, "flood");
    world.run_to_end(&["--anomalies", "none"]);
    assert_eq!(world.value("select count(*) from sessionizer.anomalies"), "0");
}

/// With `--session-end last-event`, a row may come a gap after the time at which its session ended.
#[test]
fn a_host_is_not_silent_because_its_last_sessions_are_open() {
    const MINUTE: i64 = 60_000;
    /// 2026-06-01T12:00:00Z.
    const NOON: i64 = 1_780_272_000_000 + 720 * MINUTE;
    let world = World::new("anomalies-last-event");
    world.create_topic(1);
    // Eight sessions a minute for five hours.
    let visits = (0..300 * 8).map(|n| {
        event(&format!("10.0.{}.{}", n / 250, n % 250), "a.example", NOON + n * MINUTE / 8)
    });
    let end = event("192.0.2.1", "a.example", NOON + 301 * MINUTE);
    world.send_events(0, &visits.chain([end]).collect::<Vec<_>>());
    let args = ["--session-end", "last-event", "--anomalies", "surge,fall", "--epoch", "100ms"];
    let mut job = world.start(&args);
    job.wait_for("reading begins");
    // All but those of the last five minutes.
    let rows = "select count(*) >= 2360 from sessionized_events";
    eventually("what has closed is in the table", || world.value(rows) == "t");
    std::thread::sleep(Duration::from_secs(3));
    let found = world.query("select kind, at::text, reason from sessionizer.anomalies");
    assert!(found.is_empty(), "{found:?}");
    let log = job.stop();
    assert!(!log.contains("anomaly"), "{log}");
}

#[test]
fn the_partition_of_a_skew_is_found_by_a_job_that_reads_along() {
    let world = World::new("anomalies-skew");
    world.create_topic(4);
    let args = ["--anomalies", "clock", "--epoch", "100ms", "--idle-timeout", "2s"];
    // Two days pass in twenty seconds, so partitions differ by minutes, and on a busy machine by
    // more, without a skew; the seed is one with a skew of three hours.
    let args = [&args[..], &["--anomaly-threshold", "clock.min=5400"]].concat();
    let mut job = world.start(&args);
    job.wait_for("reading begins");
    // Clocks are judged once the idle timeout has passed.
    std::thread::sleep(Duration::from_secs(3));
    let truth = std::env::temp_dir().join(format!("{}-truth", world.name));
    let mut command = world.command();
    command.args(["produce", "--scenario", "skew", "--visits", "3000", "--incidents", "1"]);
    command.args(["--historical", "2026-06-01T00:00:00Z", "--rate", "600", "--seed", "19"]);
    command.arg("--truth").arg(&truth);
    let (status, log) = finish(command);
    assert!(status.success(), "{log}");
    let text = std::fs::read_to_string(&truth).expect("the truth was written");
    std::fs::remove_file(&truth).expect("it can be removed");
    let incident: Value = serde_json::from_str(text.trim()).expect("one incident");
    assert_eq!((&incident["kinds"][0], &incident["host"]), (&"clock".into(), &"".into()));
    let subject = incident["subject"].as_str().expect("text");
    assert!(subject.starts_with(&format!("{}/", world.name)), "{subject}");
    let found = "select subject, host, reason like '%ahead of the other partitions%'
                 from sessionizer.anomalies where kind = 'clock' and at = '2026-06-02'";
    eventually("the skew is found", || {
        world.query(found).iter().any(|row| row[..] == [subject, "", "t"])
    });
    job.stop();
}
