//! The data of the page: the document, and the stream that keeps it up to date.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Command;

use serde_json::Value;

use crate::lifecycle::{Traffic, wait_for_records};
use crate::watch::Watched;
use crate::world::{PATIENCE, Running, World};

/// An open page.
struct Page {
    reader: BufReader<TcpStream>,
}

impl Page {
    fn open(address: &str) -> Page {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let request = format!("GET /events HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        Page { reader: BufReader::new(stream) }
    }

    /// The next message: its name and its data; `None` at the end.
    fn next(&mut self) -> Option<(String, Value)> {
        let mut name = String::new();
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).expect("a line") == 0 {
                return None;
            }
            if let Some(event) = line.strip_prefix("event: ") {
                event.trim().clone_into(&mut name);
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return Some((name, serde_json::from_str(data).expect("JSON")));
            }
        }
    }
}

/// Applies a change as the page does.
fn apply(document: &mut Value, change: &Value) {
    for (name, block) in change.as_object().expect("an object") {
        match name.as_str() {
            "history" => {
                let points = document["history"]["points"].as_array_mut().expect("an array");
                points.extend(block["points"].as_array().expect("an array").iter().cloned());
            }
            "marks" => {
                let rows = document["marks"]["rows"].as_array_mut().expect("an array");
                rows.extend(block["add"].as_array().expect("an array").iter().cloned());
            }
            "latest" => {
                let mut rows = block["add"].as_array().expect("an array").clone();
                rows.extend(document["latest"]["rows"].as_array().expect("an array").clone());
                rows.truncate(document["latest"]["keep"].as_u64().expect("a number") as usize);
                document["latest"]["rows"] = rows.into();
            }
            "partitions" => {
                let mut rows = document["partitions"]["rows"].as_array().expect("rows").clone();
                for row in block["rows"].as_array().expect("rows") {
                    match rows.iter_mut().find(|known| known["id"] == row["id"]) {
                        Some(known) => *known = row.clone(),
                        None => rows.push(row.clone()),
                    }
                }
                for name in ["order", "total"] {
                    if !block[name].is_null() {
                        document["partitions"][name] = block[name].clone();
                    }
                }
                let order = document["partitions"]["order"].as_array().expect("an order");
                let row = |id: &Value| rows.iter().find(|row| row["id"] == *id).cloned();
                let rows: Vec<Value> = order.iter().filter_map(row).collect();
                document["partitions"]["rows"] = rows.into();
            }
            _ => document[name] = block.clone(),
        }
    }
}

#[test]
fn a_snapshot_and_its_changes_are_the_document() {
    let world = World::new("stream");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let watched = Watched::start(&world, &["--epoch", "100ms"]);
    let mut page = Page::open(&watched.address);
    let (name, mut document) = page.next().expect("a snapshot");
    assert_eq!((name.as_str(), &document["schema"]), ("snapshot", &1.into()));
    traffic.send(2_000);
    wait_for_records(&world, traffic.records());
    // They can be compared when the document is as of the last change.
    let mut compared = 0;
    for _ in 0..300 {
        let (name, change) = page.next().expect("it goes on");
        assert_eq!(name, "change");
        apply(&mut document, &change);
        let mut whole = watched.status();
        if whole["at"] != document["at"] || whole["tiles"]["records"] == 0 {
            continue;
        }
        for block in [&mut whole, &mut document] {
            // The page may have one that the job has dropped.
            block["history"]["points"] = Value::Null;
        }
        assert_eq!(document, whole);
        document["history"]["points"] = Value::Array(Vec::new());
        compared += 1;
        if compared == 3 {
            break;
        }
    }
    assert_eq!(compared, 3, "they never met");
    watched.job.signal("TERM");
    let mut last = Value::Null;
    while let Some((_, change)) = page.next() {
        apply(&mut document, &change);
        last = document["sentence"]["state"].clone();
    }
    assert_eq!(last, "stopped");
    watched.job.wait();
}

/// After --stop-timeout nothing is lost, and there is nothing to correct.
#[test]
fn a_stop_that_cannot_commit_is_no_failure_of_the_job() {
    let world = World::new("uncommitted");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let watched = Watched::start(&world, &["--epoch", "100ms", "--stop-timeout", "1s"]);
    wait_for_records(&world, traffic.records());
    let mut page = Page::open(&watched.address);
    let (_, mut document) = page.next().expect("a snapshot");
    let mut client = world.client();
    let mut lock = client.transaction().expect("begun");
    lock.execute("select from sessionizer.shard_progress for update", &[]).expect("locked");
    watched.job.signal("TERM");
    while let Some((_, change)) = page.next() {
        apply(&mut document, &change);
    }
    let (status, log) = watched.job.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    let sentence = &document["sentence"];
    assert_eq!(sentence["state"], "uncommitted", "{sentence}\n{log}");
    assert_eq!(
        (&sentence["tone"], &sentence["text"]),
        (&"trouble".into(), &"stopped without a last commit".into())
    );
    let cause = sentence["cause"].as_str().expect("a cause");
    assert!(cause.contains("Postgres did not take it within 1 s"), "{cause}");
    drop(lock);
    traffic.check(&world, &[]);
}

#[test]
fn the_document_equals_the_table_and_the_views() {
    let world = World::new("document");
    let mut traffic = Traffic::new(&world);
    traffic.send(3_000);
    let watched = Watched::start(&world, &["--epoch", "100ms", "-w", "2"]);
    wait_for_records(&world, traffic.records());
    let document = watched.wait_until("all of it", |document| {
        document["balance"]["records"] == traffic.records()
            && document["tiles"]["lag_records"] == 0
            && document["tiles"]["records"] == traffic.records()
    });
    let count = |sql: &str| world.value(sql).parse::<i64>().expect("a number");
    let balance = &document["balance"];
    assert_eq!((&balance["difference"], &balance["ok"]), (&0.into(), &true.into()));
    let rows = count("select count(*) from sessionized_events");
    let tiles = &document["tiles"];
    let added = watched.get("/metrics").body;
    let metric = |name: &str| {
        let line = added.lines().find(|line| line.starts_with(&format!("{name} ")));
        let line = line.unwrap_or_else(|| panic!("{name} is missing"));
        line.rsplit(' ').next().expect("a value").parse::<f64>().expect("a number") as i64
    };
    let table =
        metric("sessionizer_rows_inserted_total") - metric("sessionizer_rows_deleted_total");
    assert_eq!(table, rows);
    let hosts = document["hosts"]["rows"].as_array().expect("rows");
    let sessions: i64 = hosts.iter().map(|host| host["sessions"].as_i64().expect("a count")).sum();
    let events: i64 = hosts.iter().map(|host| host["events"].as_i64().expect("a count")).sum();
    assert_eq!(sessions, rows);
    assert_eq!(events, count("select sum(num_logs) from sessionized_events"));
    assert_eq!(tiles["dead_letters"], count("select count(*) from sessionizer.dead_letters"));
    let letters = &document["dead_letters"]["rows"][0];
    assert_eq!(letters["reason"], "bad_json");
    assert!(letters["examples"][0]["payload"].as_str().expect("text").starts_with("no event"));
    let newest = &document["latest"]["rows"][0];
    let known = format!(
        "select count(*) from sessionized_events where ip = '{}' and host = '{}'",
        newest["ip"].as_str().expect("text"),
        newest["host"].as_str().expect("text")
    );
    assert!(newest["change"] == "removed" || count(&known) > 0, "{newest}");
    for part in document["partitions"]["rows"].as_array().expect("rows") {
        let end = format!(
            "select end_offset from sessionizer.partitions where topic = '{}' and partition = {}",
            world.name, part["number"]
        );
        assert_eq!(part["offset"], count(&end), "{part}");
        assert_eq!((&part["lag_records"], &part["end"]), (&0.into(), &part["offset"]), "{part}");
    }
    let Watched { job, .. } = watched;
    job.stop();
}

/// Beyond loopback, visitors are shown only with --page full; secrets are never shown.
#[test]
fn visitors_are_masked_beyond_loopback_and_secrets_are_nowhere() {
    let mut world = World::new("masked");
    world.password = "h@nter:2/?#%".to_owned();
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    for (args, masked) in [(&[][..], true), (&["--page", "full"], false)] {
        let mut command: Command = world.command();
        command.args(args).args(["--http", "0.0.0.0:0", "--epoch", "100ms"]);
        let watched = Watched::from(Running::start(command));
        wait_for_records(&world, traffic.records());
        traffic.send(500);
        let document = watched.wait_until("sessions and dead letters", |document| {
            !document["latest"]["rows"][0].is_null()
                && !document["dead_letters"]["rows"][0].is_null()
        });
        let ip = document["latest"]["rows"][0]["ip"].as_str().expect("text").to_owned();
        let example = &document["dead_letters"]["rows"][0]["examples"][0];
        assert_eq!(ip == "10.0.0.x", masked, "{ip}");
        assert_eq!(example["payload"].is_null(), masked, "{example}");
        assert_eq!(document["job"]["masked"], masked);
        for path in ["/status", "/metrics", "/readyz"] {
            assert!(!watched.get(path).body.contains("nter:2"), "{path}");
        }
        watched.job.stop();
    }
}
