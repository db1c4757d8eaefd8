//! The HTTP ports of a cluster: process 0 shows the whole job, the others their own part.

use crate::cluster::Hosts;
use crate::lifecycle::{Traffic, wait_for_records};
use crate::watch::Watched;
use crate::world::{Running, World};

#[test]
fn process_0_shows_the_whole_job() {
    let world = World::new("watch-cluster");
    let mut traffic = Traffic::new(&world);
    traffic.send(1_000);
    let hosts = Hosts::local(&world, 3);
    let start = |process: usize| {
        let mut command = world.command();
        command.args(hosts.place(process)).args(["--epoch", "100ms"]);
        command.env("SESSIONIZER_HTTP", "127.0.0.1:0");
        Running::start(command)
    };
    let jobs: Vec<Running> = (0..3).map(start).collect();
    let watched: Vec<Watched> = jobs.into_iter().map(Watched::from).collect();
    wait_for_records(&world, traffic.records());
    let document = watched[0].wait_until("all of it", |document| {
        // A writer is shown from its first commit on.
        document["tiles"]["records"] == traffic.records()
            && document["job"]["scope"] == "job"
            && document["writers"]["rows"].as_array().map(Vec::len) == Some(3)
            // Those of the other processes arrive with their next report.
            && document["partitions"]["rows"].as_array().map(Vec::len) == Some(3)
    });
    let parts = document["partitions"]["rows"].as_array().expect("rows");
    let mut read_by: Vec<u64> =
        parts.iter().map(|part| part["process"].as_u64().expect("a number")).collect();
    read_by.sort_unstable();
    read_by.dedup();
    assert_eq!(read_by, [0, 1, 2], "{document:#}");
    let total = world.value("select count(*) from sessionizer.partitions");
    assert_eq!(document["partitions"]["total"].to_string(), total);
    assert_eq!(document["peers"]["rows"].as_array().map(Vec::len), Some(3));
    for (process, watched) in watched.iter().enumerate() {
        assert_eq!(watched.get("/livez").status, 200);
        watched.wait_for("/readyz", 200);
        let metrics = watched.get("/metrics").body;
        assert!(metrics.contains(&format!("process=\"{process}\",processes=\"3\"")), "{metrics}");
    }
    let document = watched[1].status();
    assert_eq!(
        (&document["job"]["scope"], &document["job"]["process"]),
        (&"process".into(), &1.into())
    );
    watched[2].job.signal("TERM");
    for Watched { job, .. } in watched {
        let (status, log) = job.wait();
        assert!(status.success(), "{status}:\n{log}");
    }
}

#[test]
fn who_is_waited_for_is_said() {
    let world = World::new("watch-waits");
    world.create_topic(2);
    let hosts = Hosts::local(&world, 2);
    let start = |process: usize| {
        let mut command = world.command();
        command.args(hosts.place(process)).env("SESSIONIZER_HTTP", "127.0.0.1:0");
        Watched::from(Running::start(command))
    };
    let first = start(0);
    let document = first.wait_until("it waits", |document| {
        let said = document["sentence"]["text"].as_str().expect("a sentence");
        said.starts_with("waiting for process 1 (")
    });
    assert_eq!(document["sentence"]["state"], "waiting");
    assert_eq!(
        document["job"]["scope_text"],
        "1 of 2 processes have reported their figures so far."
    );
    let second = start(1);
    first.wait_until("it runs", |document| {
        let said = document["sentence"]["text"].as_str().expect("a sentence");
        !said.contains("process") && document["job"]["scope_text"].is_null()
    });
    first.job.signal("TERM");
    for Watched { job, .. } in [first, second] {
        let (status, log) = job.wait();
        assert!(status.success(), "{status}:\n{log}");
    }
}
