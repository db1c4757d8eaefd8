//! A cluster whose processes share a secret, and attackers between them or without the secret: the
//! table is the batch answer, or nothing was written.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::cluster::{Hosts, LOST, addresses};
use crate::lifecycle::{Traffic, count, wait_for_records};
use crate::rng::Rng;
use crate::world::{Running, World, eventually};

/// The secret; it must never appear in a log.
const SECRET: &str = "canary-4fbf4e5b@:/?#%^'\"-ü";

/// Each process has its own file, so that none is read while another is written.
fn secret_file(world: &World, process: usize, secret: &str) -> PathBuf {
    let file = std::env::temp_dir().join(format!("{}-secret-{process}", world.name));
    world.write(&file, &format!("{secret}\n"));
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&file, mode).expect("a file of this test");
    file
}

/// Starts a process whose secret is in the file.
fn start(world: &World, hosts: &Hosts, process: usize, secret: &str, args: &str) -> Running {
    let file = secret_file(world, process, secret);
    let mut command = world.command();
    command.args(hosts.place(process)).args(args.split(' ')).args(["--epoch", "50ms"]);
    command.arg("--cluster-secret-file").arg(file).env("RUST_LOG", "trace");
    Running::start(command)
}

fn ended(all: Vec<Running>) -> Vec<(ExitStatus, String)> {
    let ended: Vec<_> = all.into_iter().map(Running::wait).collect();
    for (_, log) in &ended {
        assert!(!log.contains("canary") && !log.contains("4fbf4e5b"), "the secret is in a log");
        assert_eq!((count(log, "panicked"), count(log, "this is a bug")), (0, 0), "{log}");
    }
    ended
}

/// A proxy between processes that forwards everything, until it is told to alter or cut it.
struct Proxy {
    address: String,
    flip: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    fn to(target: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let proxy = Proxy {
            address: listener.local_addr().expect("bound").to_string(),
            flip: Arc::default(),
            open: Arc::default(),
        };
        let (flip, open) = (Arc::clone(&proxy.flip), Arc::clone(&proxy.open));
        let target = target.to_owned();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&target) else { continue };
                let ends = [(&client, &server), (&server, &client)];
                for (from, to) in ends {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let flip = Arc::clone(&flip);
                    thread::spawn(move || pass(from, to, &flip));
                }
                open.lock().expect("not poisoned").extend([client, server]);
            }
        });
        proxy
    }

    fn cut(&self) {
        for stream in self.open.lock().expect("not poisoned").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, flip: &AtomicBool) {
    let mut buffer = [0; 4_096];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if flip.swap(false, Relaxed) {
            buffer[read / 2] ^= 4;
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// A cluster of two whose second process reaches the first by a proxy.
fn by_proxy(world: &World) -> (Proxy, [Hosts; 2]) {
    let real = addresses(2);
    let proxy = Proxy::to(&real[0]);
    let seen = vec![proxy.address.clone(), real[1].clone()];
    (proxy, [Hosts::new(world, real), Hosts::new(world, seen)])
}

#[test]
fn three_with_a_secret_give_the_batch_answer_also_after_a_kill() {
    let world = World::new("secret");
    let mut traffic = Traffic::new(&world);
    traffic.send(2_000);
    let hosts = Hosts::new(&world, addresses(3));
    let of = |args: &str| -> Vec<Running> {
        (0..3).map(|process| start(&world, &hosts, process, SECRET, args)).collect()
    };
    let mut all = of("-w 2");
    for process in &mut all {
        process.wait_for("connections between processes are encrypted");
        process.wait_for("reading begins");
    }
    traffic.send(1_000);
    wait_for_records(&world, 1);
    all[1].signal("KILL");
    for (process, (status, log)) in ended(all).into_iter().enumerate() {
        assert!(process == 1 || status.code() == LOST, "process {process}: {status}:\n{log}");
    }
    for (status, log) in ended(of("-w 1 --until-end")) {
        assert!(status.success(), "{status}:\n{log}");
    }
    traffic.compare(&world);
}

#[test]
fn another_secret_or_none_stops_nothing_and_is_reported_on_both_sides() {
    let world = World::new("secret-other");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let hosts = Hosts::new(&world, addresses(2));
    let mut first = start(&world, &hosts, 0, SECRET, "-w 1 --until-end");
    let mut other = start(&world, &hosts, 1, "another secret of this test", "-w 1 --gap 1m");
    other.wait_for("the cluster secret there is not the one here");
    first.wait_for("turned away 127.0.0.1:");
    assert!(other.is_running() && first.is_running());
    other.stop();
    let mut command = world.command();
    command.args(hosts.place(1)).args(["-w", "1", "--until-end", "--epoch", "50ms"]);
    let mut none = Running::start(command);
    none.wait_for("only one of the two has a cluster secret");
    none.stop();
    let second = start(&world, &hosts, 1, SECRET, "-w 1 --until-end");
    for (status, log) in ended(vec![first, second]) {
        assert!(status.success(), "{status}:\n{log}");
        assert_eq!(count(&log, "ERROR]"), 0, "{log}");
    }
    traffic.compare(&world);
}

#[test]
fn beyond_loopback_a_start_without_a_secret_is_refused_with_the_remedy() {
    let world = World::new("secret-none");
    let hosts = Hosts::new(&world, vec!["192.0.2.1:2101".to_owned(), "192.0.2.2:2101".to_owned()]);
    let place = hosts.place(0);
    let place: Vec<&str> = place.iter().map(String::as_str).collect();
    let (status, log) = world.start(&place).wait();
    assert_eq!(status.code(), Some(2), "{log}");
    for says in ["192.0.2.1:2101", "head -c 32 /dev/urandom | base64", "--cluster-secret-file"] {
        assert!(log.contains(says), "{log}");
    }
    // The address belongs to nobody, so both get as far as connecting.
    let insecure = [&place[..], &["--cluster-insecure", "--start-timeout", "1s"]].concat();
    let (status, log) = world.start(&insecure).wait();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("NOT ENCRYPTED and NOT AUTHENTICATED"), "{log}");
    assert!(log.contains("cannot listen on 192.0.2.1:2101"), "{log}");
    let (status, log) = start(&world, &hosts, 0, SECRET, "--start-timeout 1s").wait();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("cannot listen on 192.0.2.1:2101") && !log.contains("canary"), "{log}");
    let (status, log) = start(&world, &hosts, 0, "canary-short", "-w 1").wait();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("has 12 bytes") && !log.contains("canary"), "{log}");
}

#[test]
fn bytes_that_are_changed_on_the_way_never_become_rows() {
    let world = World::new("secret-flip");
    let mut traffic = Traffic::new(&world);
    for _ in 0..4 {
        let (proxy, hosts) = by_proxy(&world);
        let mut all: Vec<Running> =
            (0..2).map(|at| start(&world, &hosts[at], at, SECRET, "-w 1")).collect();
        all.iter_mut().for_each(|process| process.wait_for("reading begins"));
        traffic.send(1_000);
        wait_for_records(&world, traffic.records() - 500);
        proxy.flip.store(true, Relaxed);
        traffic.send(500);
        for (process, (status, log)) in ended(all).into_iter().enumerate() {
            assert_eq!(status.code(), LOST, "process {process}: {log}");
        }
    }
    traffic.check(&world, &["-w", "2"]);
}

#[test]
fn connections_that_are_cut_around_a_clean_end_are_a_clean_end_or_a_lost_peer() {
    let world = World::new("secret-cut");
    let mut traffic = Traffic::new(&world);
    let mut moments = Rng::new(11);
    let (mut clean, mut lost) = (0, 0);
    for round in 0..10 {
        traffic.send(300);
        let (proxy, hosts) = by_proxy(&world);
        // On a busy machine, a process may be lost before that.
        let began = |process: &mut Running| {
            eventually("it reads or has ended", || {
                process.log().contains("reading begins") || !process.is_running()
            });
        };
        let args = "-w 1 --until-end --peer-timeout 1s";
        let mut all: Vec<Running> = (0..2)
            .map(|at| match round % 2 {
                0 => start(&world, &hosts[at], at, SECRET, args),
                _ => {
                    let mut command = world.command();
                    command.args(hosts[at].place(at)).args(args.split(' '));
                    Running::start(command)
                }
            })
            .collect();
        all.iter_mut().for_each(began);
        thread::sleep(Duration::from_millis(moments.below(500)));
        proxy.cut();
        for (status, log) in ended(all) {
            match status.code() {
                Some(0) => clean += 1,
                code => {
                    assert_eq!(code, LOST, "round {round}: {status}:\n{log}");
                    lost += 1;
                }
            }
        }
    }
    eprintln!("{clean} ended cleanly, {lost} had lost the other");
    traffic.check(&world, &[]);
}

#[test]
fn silent_connections_do_not_keep_a_process_out() {
    let world = World::new("secret-crowd");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let hosts = Hosts::new(&world, addresses(2));
    let first = start(&world, &hosts, 0, SECRET, "-w 1 --until-end");
    eventually("it listens", || TcpStream::connect(&hosts.addresses[0]).is_ok());
    let over = Arc::new(AtomicBool::new(false));
    let crowd: Vec<_> = (0..64)
        .map(|_| {
            let (address, over) = (hosts.addresses[0].clone(), Arc::clone(&over));
            thread::spawn(move || {
                while !over.load(Relaxed) {
                    match TcpStream::connect(&address) {
                        Ok(mut silent) => drop(silent.read(&mut [0])),
                        Err(_) => thread::sleep(Duration::from_millis(10)),
                    }
                }
            })
        })
        .collect();
    thread::sleep(Duration::from_secs(1));
    let second = start(&world, &hosts, 1, SECRET, "-w 1 --until-end");
    for (status, log) in ended(vec![first, second]) {
        assert!(status.success(), "{status}:\n{log}");
        let lines = count(&log, "turned away");
        assert!(lines < 20, "{lines} lines for strangers");
    }
    over.store(true, Relaxed);
    crowd.into_iter().for_each(|silent| silent.join().expect("no panic"));
    traffic.compare(&world);
}
