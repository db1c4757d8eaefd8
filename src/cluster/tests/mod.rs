//! Processes as threads of one test, on loopback ports.

mod sealed;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sessionizer_core::secret::Secret;
use timely::communication::allocator::zero_copy::stream::Stream;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// Addresses that nobody else has: the ports are bound for a moment, all at once.
fn addresses(count: usize) -> Vec<String> {
    let bind = |_| TcpListener::bind("127.0.0.1:0").expect("a free port");
    let bound: Vec<TcpListener> = (0..count).map(bind).collect();
    bound.iter().map(|it| it.local_addr().expect("bound").to_string()).collect()
}

type Gathering = JoinHandle<Result<Option<Cluster>, Fault>>;

/// One process that waits for the others, without a secret.
fn process(addresses: &[String], process: usize, gap: &str) -> (Arc<RunState>, Gathering) {
    process_with(addresses, process, gap, None)
}

/// One process that waits for the others.
fn process_with(
    addresses: &[String],
    process: usize,
    gap: &str,
    secret: Option<&str>,
) -> (Arc<RunState>, Gathering) {
    let config = ClusterConfig {
        process,
        addresses: addresses.to_vec(),
        peer_timeout: Duration::from_secs(2),
        start_timeout: Duration::from_secs(5),
        wall_ms: crate::job::clock::now_ms,
        secret: secret.map(|secret| SecretSource::Variable(Secret::new(secret))),
        insecure: false,
    };
    let settings = settings(addresses.len(), gap);
    let run_state = Arc::new(RunState::default());
    let ours = Arc::clone(&run_state);
    (run_state, thread::spawn(move || Cluster::gather(&config, settings, &ours)))
}

fn settings(processes: usize, gap: &str) -> Vec<Setting> {
    vec![("--processes".to_owned(), processes.to_string()), ("--gap".to_owned(), gap.to_owned())]
}

/// A message as timely sends it.
fn message(body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 48];
    bytes[32..40].copy_from_slice(&(body.len() as u64).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn all(addresses: &[String]) -> Vec<(Arc<RunState>, Cluster)> {
    gathered((0..addresses.len()).map(|at| process(addresses, at, "5m")).collect())
}

fn gathered(started: Vec<(Arc<RunState>, Gathering)>) -> Vec<(Arc<RunState>, Cluster)> {
    let gathered = |(run_state, gathering): (Arc<RunState>, Gathering)| {
        let cluster = gathering.join().expect("no panic").expect("no fault");
        (run_state, cluster.expect("nobody stopped it"))
    };
    started.into_iter().map(gathered).collect()
}

fn complete(gathering: Gathering) -> Cluster {
    gathering.join().expect("no panic").expect("no fault").expect("nobody stopped it")
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "it never happened: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn all_find_each_other_in_whatever_order_they_come() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let addresses = addresses(3);
        let mut started = Vec::new();
        for at in order {
            started.push(process(&addresses, at, "5m"));
            thread::sleep(Duration::from_millis(50));
        }
        let gathered = gathered(started);
        for (run_state, cluster) in &gathered {
            let others = cluster.wires.iter().flatten().count();
            assert_eq!((cluster.wires.len(), others), (3, 2));
            assert!(run_state.fault().is_none());
        }
    }
}

#[test]
fn bytes_that_one_sends_are_read_by_the_other_and_the_end_is_one_when_the_work_is_done() {
    let mut pair = all(&addresses(2));
    let (_, mut second) = pair.pop().expect("two");
    let (_, mut first) = pair.pop().expect("two");
    let mut there = first.wires[1].take().expect("a wire to process 1");
    let mut here = second.wires[0].take().expect("a wire to process 0");
    there.write_all(&message(b"abc")).expect("sent");
    let mut bytes = [0; 51];
    here.read_exact(&mut bytes).expect("received");
    assert_eq!(&bytes[48..], b"abc");
    first.finished();
    second.finished();
    there.write_all(&message(b"")).expect("sent");
    Stream::shutdown(&there, std::net::Shutdown::Write).expect("an open connection");
    here.read_exact(&mut bytes[..48]).expect("received");
    assert_eq!(here.read(&mut bytes).expect("the end"), 0);
}

#[test]
fn connections_cut_at_a_clean_end_are_no_fault_and_are_hidden_from_timely() {
    for all_finished in [true, false] {
        let mut pair = all(&addresses(2));
        let (run_state, mut second) = pair.pop().expect("two");
        let (_, mut first) = pair.pop().expect("two");
        let there = first.wires[1].take().expect("a wire to process 1");
        let mut here = second.wires[0].take().expect("a wire to process 0");
        first.finished();
        eventually("the first says that it is done", || second.members.is_done(0));
        if all_finished {
            second.finished();
        }
        // What timely still has to send when the last process is lost.
        Stream::shutdown(&there, std::net::Shutdown::Both).expect("an open connection");
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || sender.send(here.read(&mut [0; 48]).is_ok()));
        if all_finished {
            assert!(receiver.recv_timeout(Duration::from_secs(3)).is_err(), "timely panics then");
            assert!(run_state.fault().is_none(), "{:?}", run_state.fault());
        } else {
            // The second may need what was cut off: it resumes from what is durable.
            eventually("the loss is noticed", || run_state.failed());
            assert!(matches!(run_state.fault(), Some(Fault::Peer(_))), "{:?}", run_state.fault());
            assert!(receiver.try_recv().is_err(), "timely panics then");
        }
    }
}

#[test]
fn other_settings_are_reported_to_that_process_and_to_all_others() {
    let addresses = addresses(3);
    let started: Vec<_> = ["5m", "1m", "5m"]
        .iter()
        .enumerate()
        .map(|(at, gap)| process(&addresses, at, gap).1)
        .collect();
    for (at, gathering) in started.into_iter().enumerate() {
        let Err(Fault::Config(why)) = gathering.join().expect("no panic") else {
            panic!("process {at} has begun");
        };
        let why = why.to_string();
        let want = if at == 1 { "--gap is 5m there and 1m here" } else { "--gap is 1m there" };
        assert!(why.contains(want) && why.contains("process "), "process {at}: {why}");
    }
}

#[test]
fn a_mere_claim_of_other_settings_ends_nobody() {
    let addresses = addresses(2);
    let (run_state, first) = process(&addresses, 0, "5m");
    eventually("it listens", || TcpStream::connect(&addresses[0]).is_ok());
    for number in 0..30 {
        let mut stranger = TcpStream::connect(&addresses[0]).expect("it listens");
        let hello = greeting::Hello {
            process: [1, 1, 7, usize::MAX][number % 4],
            incarnation: 1,
            purpose: greeting::Purpose::Watch,
            clock_ms: crate::job::clock::now_ms(),
            settings: settings(2, "1m"),
        };
        greeting::send(&mut stranger, &hello).expect("sent");
        thread::sleep(Duration::from_millis(200));
    }
    assert!(!run_state.failed(), "{:?}", run_state.fault());
    let (_, second) = process(&addresses, 1, "5m");
    drop((complete(first), complete(second)));
}

#[test]
fn a_start_that_stands_still_ends_and_names_who_is_behind() {
    let members = all(&addresses(2));
    for (_, cluster) in &members {
        watch_the_start(&cluster.members, Duration::from_secs(1));
    }
    members[0].1.start_reporter().reach(StartStage::Running);
    members[1].1.start_reporter().reach(StartStage::Loading(0));
    for (run_state, _) in &members {
        eventually("it ends", || run_state.failed());
        let Some(Fault::Peer(why)) = run_state.fault() else { panic!("another fault") };
        let why = why.to_string();
        let says = format!("process 1 ({}) is still loading", members[0].1.members.addresses[1]);
        assert!(why.contains("stood still for 1s") && why.contains(&says), "{why}");
    }
}

#[test]
fn a_process_that_goes_before_all_are_there_may_come_again() {
    let addresses = addresses(3);
    let (_, first) = process(&addresses, 0, "5m");
    let (stopping, second) = process(&addresses, 1, "5m");
    thread::sleep(Duration::from_millis(700));
    // It fails without reporting a reason: it was killed.
    drop(TcpStream::connect(&addresses[1]).expect("it listens"));
    stopping.request_stop();
    assert!(second.join().expect("no panic").expect("a stop is no fault").is_none());
    // A cluster stops as one, even while it waits.
    assert!(first.join().expect("no panic").expect("a stop is no fault").is_none());
}

#[test]
fn a_lost_process_ends_the_run_of_the_others_with_its_name() {
    let addresses = addresses(3);
    let mut members = all(&addresses);
    let (_, lost) = members.remove(1);
    // As when it is killed: the connections close without a notice.
    lost.members.close();
    for (run_state, _) in &members {
        eventually("the loss is noticed", || run_state.failed());
        let Some(Fault::Peer(why)) = run_state.fault() else { panic!("another fault") };
        let why = why.to_string();
        assert!(why.contains(&format!("lost process 1 ({})", addresses[1])), "{why}");
    }
}

#[test]
fn a_data_connection_that_is_cut_alone_ends_the_run_as_well() {
    let mut pair = all(&addresses(2));
    let (run_state, mut second) = pair.pop().expect("two");
    let wire = pair[0].1.wires[1].take().expect("a wire to process 1");
    Stream::shutdown(&wire, std::net::Shutdown::Both).expect("an open connection");
    // As timely's thread does; it is held for ever.
    let mut here = second.wires[0].take().expect("a wire to process 0");
    thread::spawn(move || here.read(&mut [0; 8]));
    eventually("the loss is noticed", || run_state.failed());
    let Some(Fault::Peer(why)) = run_state.fault() else { panic!("another fault") };
    let why = why.to_string();
    assert!(why.contains("lost process 0 (") && why.contains("closed the connection"), "{why}");
}

#[test]
fn a_fault_of_one_is_the_fault_of_all() {
    let members = all(&addresses(3));
    members[2].0.fail(Fault::fenced("another instance has taken over"));
    for (run_state, _) in &members[..2] {
        eventually("the fault is told", || run_state.failed());
        let Some(Fault::Fenced(why)) = run_state.fault() else { panic!("another fault") };
        let why = why.to_string();
        assert!(why.starts_with("process 2 (") && why.ends_with("taken over"), "{why}");
    }
}

#[test]
fn a_stop_of_one_is_a_stop_of_all_and_so_is_an_end_without_a_commit() {
    let members = all(&addresses(2));
    members[1].0.request_stop();
    eventually("the stop is told", || members[0].0.stopping());
    members[0].0.abandon();
    eventually("the end is told", || members[1].0.abandoned());
    assert!(members.iter().all(|(run_state, _)| run_state.fault().is_none()));
}

#[test]
fn strangers_are_turned_away_and_stop_nothing() {
    let addresses = addresses(2);
    let (_, first) = process(&addresses, 0, "5m");
    let mut silent = None;
    eventually("it listens", || TcpStream::connect(&addresses[0]).is_ok());
    for bytes in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0; 100_000], Vec::new()] {
        let mut stranger = TcpStream::connect(&addresses[0]).expect("it listens");
        // It may be turned away before it has sent everything.
        let _ = stranger.write_all(&bytes);
        silent = Some(stranger);
    }
    let (_, second) = process(&addresses, 1, "5m");
    let first = first.join().expect("no panic").expect("no fault").expect("all came");
    let second = second.join().expect("no panic").expect("no fault").expect("all came");
    drop(silent);
    // The cluster is complete: nobody else is admitted, and it carries on.
    let elsewhere = [addresses[0].clone(), self::addresses(1).remove(0)];
    let (run_state, newcomer) = process(&elsewhere, 1, "5m");
    thread::sleep(Duration::from_millis(500));
    assert!(!first.members.run_state.failed() && !second.members.run_state.failed());
    run_state.request_stop();
    drop(newcomer.join().expect("no panic"));
}

#[test]
fn many_silent_connections_stop_no_start() {
    let addresses = addresses(3);
    let (_, first) = process(&addresses, 0, "5m");
    eventually("it listens", || TcpStream::connect(&addresses[0]).is_ok());
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let crowd: Vec<_> = (0..64)
        .map(|_| {
            let (address, over) = (addresses[0].clone(), Arc::clone(&over));
            thread::spawn(move || {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    // Until it is turned away; then it comes back at once.
                    let Ok(mut silent) = TcpStream::connect(&address) else { return };
                    let _ = silent.set_read_timeout(Some(Duration::from_secs(5)));
                    let _ = silent.read(&mut [0]);
                }
            })
        })
        .collect();
    thread::sleep(Duration::from_secs(1));
    let others = [1, 2].map(|at| process(&addresses, at, "5m").1);
    // All are connected before the first one leaves.
    let all: Vec<Cluster> = [first].into_iter().chain(others).map(complete).collect();
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    crowd.into_iter().for_each(|silent| silent.join().expect("no panic"));
    assert!(all.iter().all(|cluster| !cluster.members.run_state.failed()));
}

#[test]
fn an_address_of_another_machine_is_reported_as_such() {
    let addresses = vec!["192.0.2.1:4000".to_owned(), "127.0.0.1:4001".to_owned()];
    let (_, gathering) = process_with(&addresses, 0, "5m", Some("a secret of tests"));
    let Err(Fault::Config(why)) = gathering.join().expect("no panic") else { panic!("it listens") };
    let why = why.to_string();
    assert!(why.contains("192.0.2.1:4000") && why.contains("is --process right?"), "{why}");
}
