//! Anomalies: found in the topic of a scenario, once each, and kept with the verdict of the user.

use serde_json::Value;

use crate::watch::Watched;
use crate::world::{World, finish};

const ROWS: &str =
    "select kind, host, subject, at::text, observed::text, reason, state, details::text
                    from sessionizer.anomalies order by 1, 2, 3, 4";

/// Writes two days of traffic in which these scenarios happen. Returns the truth.
fn produce(world: &World, scenarios: &str) -> Vec<Value> {
    let truth = std::env::temp_dir().join(format!("{}-truth", world.name));
    let mut command = world.command();
    command.args(["produce", "--scenario", scenarios, "--visits", "4000", "--incidents", "1"]);
    command.args(["--seed", "12", "--historical", "2026-06-01T00:00:00Z", "--truth"]).arg(&truth);
    let (status, log) = finish(command);
    assert!(status.success(), "{log}");
    let text = std::fs::read_to_string(&truth).expect("the truth was written");
    std::fs::remove_file(&truth).expect("it can be removed");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn anomalies_are_found_once_and_keep_their_verdict() {
    let world = World::new("anomalies");
    let truth = produce(&world, "flood,marathon,surge");
    assert_eq!(truth.len(), 3);
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
                on (s.ip, s.host, s.num_logs) = (a.subject, a.host, a.observed::int8)
                and s.session_start = a.at where a.kind = 'burst'";
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

#[test]
fn nothing_is_looked_for_with_none() {
    let world = World::new("anomalies-none");
    produce(&world, "flood");
    world.run_to_end(&["--anomalies", "none"]);
    assert_eq!(world.value("select count(*) from sessionizer.anomalies"), "0");
}
