//! Instances of a job that follow each other: the newer one takes over, and no two wait for each
//! other.

use crate::lifecycle::{Traffic, count, start, wait_for_records};
use crate::oracle::event;
use crate::world::{PATIENCE, Running, World, chrono_now_ms, eventually};

// ---- being replaced ------------------------------------------------------------------------

/// Records after which an epoch ends early.
const FULL: i64 = 65_536;
const EPOCH_MS: i64 = 5_000;
const BACKLOG: i64 = 800_000;

/// What is read in an epoch stays in memory until it ends, so one that brings many records ends
/// early.
#[test]
fn epochs_of_a_backlog_are_shorter_than_those_of_live_traffic() {
    // More than a worker reads in a quarter of a second: otherwise no epoch need end early.
    let world = World::new("short-epochs");
    world.create_topic(1);
    let mut produce = world.command();
    produce.args([
        "produce",
        "--number",
        &BACKLOG.to_string(),
        "--historical",
        "3d",
        "--density",
        "50",
    ]);
    let (status, log) = Running::start(produce).wait_at_most(5 * PATIENCE);
    assert!(status.success(), "{status}:\n{log}");
    // Long enough to be full before it is over, also where other tests take the processors.
    let running = world.start(&["-w", "1", "--epoch", &format!("{EPOCH_MS}ms")]);
    wait_for_records(&world, BACKLOG as u64);
    // That an epoch is over shows only in the next one, so live events are sent until there is one.
    eventually("an epoch of live traffic is over", || {
        world.send_events(0, [&event("10.1.1.1", "live", chrono_now_ms())]);
        epochs_of_a_backlog(&world).1 > 0
    });
    let (shorter, _) = epochs_of_a_backlog(&world);
    assert!(shorter > 0, "no epoch of the backlog ended early");

    running.stop();
    world.run_to_end(&["-w", "1"]);
    assert_eq!(world.rows(), world.answer(&world.name));
}

/// How many epochs ended early because they were full, and how many brought something after the
/// backlog. Each must have ended when it should.
fn epochs_of_a_backlog(world: &World) -> (usize, usize) {
    let epochs = "select epoch, coalesce((select max(records) from sessionizer.bindings b
                         where b.epoch <= e.epoch), 0) from sessionizer.epochs e order by epoch";
    let epochs = world.query(epochs).into_iter().map(|row| {
        let number = |at: usize| row[at].parse::<i64>().expect("a number");
        (number(0), number(1))
    });
    let epochs: Vec<(i64, i64)> = epochs.collect();
    let (mut shorter, mut live) = (0, 0);
    // The first epoch of a start says where reading begins, and ends before anything is read.
    for three in epochs.windows(3).filter(|three| three[2].0 > three[1].0 + 1) {
        let [(_, before), (began, read), (ended, _)] = three else { unreachable!("three") };
        let full = read - before >= FULL;
        let place = format!("the epoch {began} brought {} and ended at {ended}", read - before);
        assert_eq!(ended % if full { 250 } else { EPOCH_MS }, 0, "{place}: {epochs:?}");
        shorter += usize::from(full && ended % EPOCH_MS != 0);
        live += usize::from(*before >= BACKLOG && read > before);
    }
    (shorter, live)
}

#[test]
fn a_second_instance_takes_over_and_the_first_reports_which() {
    let world = World::new("takeover");
    let mut traffic = Traffic::new(&world);
    traffic.send(1_000);
    let mut job = start(&world, "-w 2");
    wait_for_records(&world, 1);
    for workers in ["1", "3", "2"] {
        traffic.send(300);
        let next = start(&world, &format!("-w {workers}"));
        let pid = next.pid();
        let (status, log) = std::mem::replace(&mut job, next).wait();
        assert_eq!(status.code(), Some(3), "{log}");
        assert_eq!(count(&log, "ERROR]"), 1, "{log}");
        let says =
            format!("another instance of the job {} has taken over (pid {pid} on ", world.name);
        assert!(log.contains(&says), "{log}");
        traffic.send(300);
    }
    wait_for_records(&world, traffic.records());
    job.stop();
    traffic.check(&world, &["-w", "2"]);
}

#[test]
fn a_job_that_is_deleted_while_it_runs_ends() {
    let world = World::new("deleted");
    Traffic::new(&world).send(100);
    let job = start(&world, "-w 1");
    wait_for_records(&world, 100);
    // It locks in another order than a commit, so Postgres may end it as a deadlock.
    let mut client = world.client();
    eventually("the job is deleted", || {
        client.batch_execute("delete from sessionizer.jobs").is_ok()
    });
    let (status, log) = job.wait();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("is gone from sessionizer.jobs"), "{log}");
}

// ---- locks ---------------------------------------------------------------------------------

#[test]
fn commits_and_starts_take_the_locks_of_shards_in_one_order() {
    let world = World::new("lock-order");
    let mut traffic = Traffic::new(&world);
    traffic.send(300);
    world.run_to_end(&["--shards", "8"]);
    // The order of the rows on disk is not the order of the shards: the first ones come last.
    world.execute(
        "cluster sessionizer.shard_progress using shard_progress_pkey;
         update sessionizer.shard_progress set shard = shard where shard < 5",
    );
    let free = || -> Vec<String> {
        let free = "select shard from sessionizer.shard_progress order by shard
                    for update skip locked";
        world.query(free).into_iter().map(|row| row[0].clone()).collect()
    };
    let waits = || {
        let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'
                     and datname = current_database() and application_name like 'sessionizer/%'";
        world.value(waits) != "0"
    };
    let mut blocker = world.client();
    let block = "begin; select from sessionizer.shard_progress where shard = 3 for update";
    blocker.batch_execute(block).expect("locked");
    let job = start(&world, "-w 1 --sink-connections 1 --shards 8");
    eventually("the start waits", waits);
    assert_eq!(free(), ["4", "5", "6", "7"], "a start holds what lies before, and nothing after");
    blocker.batch_execute("rollback").expect("unlocked");
    wait_for_records(&world, traffic.records());
    blocker.batch_execute(block).expect("locked");
    traffic.send(300);
    eventually("a commit waits", waits);
    assert_eq!(free(), ["4", "5", "6", "7"], "and so does a commit");
    blocker.batch_execute("rollback").expect("unlocked");
    wait_for_records(&world, traffic.records());
    job.stop();
    world.run_to_end(&["--shards", "8"]);
    traffic.compare(&world);
}

#[test]
fn instances_that_overtake_each_other_do_not_wait_in_a_circle() {
    let world = World::new("circle");
    let mut traffic = Traffic::new(&world);
    traffic.send(300);
    let args = "--sink-connections 4 --shards 64 --snapshot-interval 100ms";
    let mut job = start(&world, &format!("-w 1 {args}"));
    wait_for_records(&world, traffic.records());
    for workers in [2, 1, 2, 1, 2, 1] {
        traffic.send(500);
        let mut next = start(&world, &format!("-w {workers} {args}"));
        traffic.send(500);
        next.wait_for("reading begins");
        let (status, log) = job.wait();
        assert_eq!(status.code(), Some(3), "{log}");
        job = next;
    }
    wait_for_records(&world, traffic.records());
    job.stop();
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(world.value(deadlocks), "0");
    world.run_to_end(&["--shards", "64"]);
    traffic.compare(&world);
}
