//! Processes on separate machines, simulated by the kernel: three network namespaces behind a
//! bridge, each with its own address and loopback. Kafka and Postgres are reached by a forwarder in
//! each, so that only the network between the processes is cut.
//!
//! Needs root, `ip` and `socat`; `scripts/test` tries whether they work (`SESSIONIZER_TEST_NETNS`:
//! `yes`, or the reason why not).

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster::{Hosts, LOST};
use crate::lifecycle::{Traffic, count, wait_for_records};
use crate::skipped::skipped;
use crate::world::{Running, World, eventually};

/// How long a peer may be silent in these tests.
const PEER_TIMEOUT: Duration = Duration::from_secs(3);

/// A network of three machines.
struct Network {
    name: String,
    subnet: String,
    /// Forwarders, killed with the network.
    forwarders: Vec<Running>,
    sockets: Vec<PathBuf>,
}

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().expect("ip is here");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {args}: {said}");
}

impl Network {
    /// `None` where it cannot be created; `number` distinguishes the networks of a test run.
    fn new(world: &World, number: u32) -> Option<Network> {
        let possible = std::env::var("SESSIONIZER_TEST_NETNS");
        let possible = possible.as_deref().unwrap_or("SESSIONIZER_TEST_NETNS is not set");
        if possible != "yes" {
            skipped(&format!("the network test {}", world.name), possible);
            return None;
        }
        let own = std::process::id() % 250;
        // `scripts/test` chooses the name, so that it can clean up after a killed test.
        let prefix = std::env::var("SESSIONIZER_TEST_NETWORK");
        let prefix = prefix.unwrap_or_else(|_| format!("sz{}", std::process::id() % 100_000));
        let mut network = Network {
            name: format!("{prefix}n{number}"),
            subnet: format!("10.{}.{own}", 200 + number),
            forwarders: Vec::new(),
            sockets: Vec::new(),
        };
        let Network { name, subnet, .. } = &network;
        // In a namespace of its own, where the machine's firewall does not apply: Docker, for
        // one, drops what goes over bridges that are not its own.
        ip(&format!("netns add {name}-b"));
        ip(&format!("-n {name}-b link add {name} type bridge"));
        ip(&format!("-n {name}-b link set {name} up"));
        for at in 0..3 {
            let space = format!("{name}-{at}");
            ip(&format!("netns add {space}"));
            ip(&format!("-n {name}-b link add {name}v{at} type veth peer name eth0 netns {space}"));
            ip(&format!("-n {name}-b link set {name}v{at} master {name} up"));
            ip(&format!("-n {space} addr add {subnet}.{}/24 dev eth0", at + 1));
            ip(&format!("-n {space} link set eth0 up"));
            ip(&format!("-n {space} link set lo up"));
        }
        for server in [&world.kafka, &world.server] {
            network.forward(server);
        }
        Some(network)
    }

    /// Makes a server on this machine's loopback reachable on the loopback of each namespace, by a
    /// socket in the file system, which all network namespaces share.
    fn forward(&mut self, server: &str) {
        let (_, port) = server.rsplit_once(':').expect("host:port");
        let socket = std::env::temp_dir().join(format!("{}-{port}", self.name));
        let path = socket.display();
        let mut outside = Command::new("socat");
        outside.args([format!("UNIX-LISTEN:{path},fork"), format!("TCP:{server}")]);
        self.forwarders.push(Running::start(outside));
        eventually("the forwarder listens", || socket.exists());
        for at in 0..3 {
            let mut inside = Command::new("ip");
            inside
                .args(["netns", "exec", &format!("{}-{at}", self.name), "socat"])
                .arg(format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr"))
                .arg(format!("UNIX-CONNECT:{path}"));
            self.forwarders.push(Running::start(inside));
        }
        self.sockets.push(socket);
    }

    fn hosts(&self, world: &World) -> Hosts {
        Hosts::new(world, (1..=3).map(|at| format!("{}.{at}:2101", self.subnet)).collect())
    }

    /// Starts all three, and waits until they read.
    fn start(&self, world: &World, hosts: &Hosts) -> Vec<Running> {
        let start = |at: usize| {
            let program = world.command();
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &format!("{}-{at}", self.name)]);
            command.arg(program.get_program()).args(hosts.place(at));
            command.args(["-w", "1", "--epoch", "50ms", "--peer-timeout"]);
            command.arg(format!("{}ms", PEER_TIMEOUT.as_millis()));
            // Beyond loopback the processes need one.
            command.env("SESSIONIZER_CLUSTER_SECRET", "a secret of these tests");
            for (name, value) in program.get_envs() {
                command.env(name, value.expect("only set, never removed"));
            }
            command.stdin(Stdio::null());
            Running::start(command)
        };
        let mut all: Vec<Running> = (0..3).map(start).collect();
        all.iter_mut().for_each(|process| process.wait_for("reading begins"));
        all
    }

    /// Takes the link of a machine down or up. The machine notices that it has no network.
    fn link(&self, at: usize, state: &str) {
        ip(&format!("-n {}-{at} link set eth0 {state}", self.name));
    }

    /// Silently drops every packet of a machine (0), or none (3).
    fn forwarding(&self, at: usize, state: u8) {
        let port = format!("{}v{at}", self.name);
        let done = Command::new("bridge")
            .args(["-n", &format!("{}-b", self.name)])
            .args(["link", "set", "dev", &port, "state", &state.to_string()])
            .status();
        assert!(done.expect("bridge comes with ip").success(), "bridge link set dev {port}");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.forwarders.clear();
        let tidy = |args: String| {
            let _ = Command::new("ip").args(args.split(' ')).stderr(Stdio::null()).status();
        };
        for at in 0..3 {
            tidy(format!("netns pids {}-{at}", self.name));
            tidy(format!("netns del {}-{at}", self.name));
        }
        // The bridge goes with it.
        tidy(format!("netns del {}-b", self.name));
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// Checks that the two that can still reach each other report the loss of `at`, in time and by
/// name, that it reports the loss of one of them, and that none of them keeps writing.
fn all_notice(all: Vec<Running>, at: usize, began: Instant) {
    for (process, (status, log)) in all.into_iter().map(Running::wait).enumerate() {
        assert_eq!(status.code(), LOST, "process {process}: {log}");
        assert_eq!(count(&log, "panicked"), 0, "{log}");
        if process != at {
            assert!(log.contains(&format!("lost process {at} (")), "process {process}: {log}");
        }
    }
    let took = began.elapsed();
    assert!(took < PEER_TIMEOUT + Duration::from_secs(5), "it took {took:?}");
}

#[test]
fn a_link_that_goes_down_ends_all_and_the_next_start_goes_on() {
    let world = World::new("network-link");
    let Some(network) = Network::new(&world, 0) else { return };
    let mut traffic = Traffic::new(&world);
    traffic.send(1_000);
    let hosts = network.hosts(&world);
    for at in [0, 2] {
        let all = network.start(&world, &hosts);
        traffic.send(500);
        let began = Instant::now();
        network.link(at, "down");
        all_notice(all, at, began);
        network.link(at, "up");
    }
    let all = network.start(&world, &hosts);
    wait_for_records(&world, traffic.records());
    all[1].signal("TERM");
    assert!(all.into_iter().all(|process| process.wait().0.success()));
    traffic.check(&world, &[]);
}

#[test]
fn packets_that_are_dropped_are_noticed_and_short_trouble_is_survived() {
    let world = World::new("network-drop");
    let Some(network) = Network::new(&world, 1) else { return };
    let mut traffic = Traffic::new(&world);
    traffic.send(1_000);
    let hosts = network.hosts(&world);
    let all = network.start(&world, &hosts);
    // Shorter than any timeout: lost packets are sent again, and nothing else happens.
    network.forwarding(1, 0);
    traffic.send(200);
    std::thread::sleep(Duration::from_millis(500));
    network.forwarding(1, 3);
    wait_for_records(&world, traffic.records());
    let began = Instant::now();
    network.forwarding(1, 0);
    traffic.send(500);
    all_notice(all, 1, began);
    network.forwarding(1, 3);
    traffic.check(&world, &["-w", "2"]);
}

#[test]
fn a_machine_that_is_cut_off_and_comes_back_cannot_write_what_others_have_taken_over() {
    let world = World::new("network-stale");
    let Some(network) = Network::new(&world, 2) else { return };
    let mut traffic = Traffic::new(&world);
    traffic.send(1_000);
    let hosts = network.hosts(&world);
    let mut all = network.start(&world, &hosts);
    traffic.send(1_000);
    // It is frozen, and can still reach Postgres when it wakes; the others are not told.
    let stale = all.remove(1);
    stale.signal("STOP");
    let began = Instant::now();
    let names = |(status, log): (std::process::ExitStatus, String)| {
        assert_eq!(status.code(), LOST, "{log}");
        assert!(log.contains("lost process 1 ("), "{log}");
    };
    all.into_iter().map(Running::wait).for_each(names);
    assert!(began.elapsed() < PEER_TIMEOUT + Duration::from_secs(5));
    let mut job = world.start(&["-w", "2", "--epoch", "50ms"]);
    traffic.send(1_000);
    // If it froze within a transaction, the job waits for that; otherwise it has the fence by now.
    std::thread::sleep(Duration::from_secs(2));
    stale.signal("CONT");
    let (status, log) = stale.wait();
    assert!(matches!(status.code(), Some(3 | 4)), "{status}:\n{log}");
    job.wait_for("reading begins");
    wait_for_records(&world, traffic.records());
    job.stop();
    traffic.check(&world, &[]);
}
