//! The HTTP port of a running job: health, which requests are answered, and that no client can harm
//! the job.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::brokers::Broker;
use crate::lifecycle::{Traffic, wait_for_records};
use crate::server::Server;
use crate::world::{PATIENCE, Running, World, eventually, finish};

/// A job with an HTTP port.
pub struct Watched {
    pub job: Running,
    /// `127.0.0.1:port`.
    pub address: String,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Watched {
    /// Starts a job with a port of its own, and waits until that answers.
    pub fn start(world: &World, args: &[&str]) -> Watched {
        let mut command = world.command();
        command.env("SESSIONIZER_HTTP", "127.0.0.1:0").args(args);
        Watched::from(Running::start(command))
    }

    /// A job that was started with a port of its own.
    pub fn from(mut job: Running) -> Watched {
        let says = "the page: http://";
        job.wait_for(says);
        let log = job.log();
        let (_, rest) = log.split_once(says).expect("it was said");
        // A log in JSON goes on after it.
        let address = rest.split(['/', '"', '\n']).next().expect("an address");
        Watched { job, address: address.replace("0.0.0.0", "127.0.0.1") }
    }

    pub fn get(&self, path: &str) -> Answer {
        get(&self.address, path)
    }

    pub fn status(&self) -> Value {
        let answer = self.get("/status");
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str(&answer.body).expect("JSON")
    }

    /// Waits until a path answers with a status, and returns the body.
    pub fn wait_for(&self, path: &str, status: u16) -> String {
        let mut last = String::new();
        eventually(&format!("{path} answers with {status}"), || {
            let answer = self.get(path);
            last.clone_from(&answer.body);
            answer.status == status
        });
        last
    }

    /// Waits until the document fulfils a condition.
    pub fn wait_until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            last = self.status();
            if holds(&last) {
                return last;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("it never happened: {what}\n{last:#}");
    }
}

/// Sends a request as it is, and reads the answer to its end.
pub fn exchange(address: &str, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an answer");
    let text = String::from_utf8(bytes).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.unwrap_or_else(|| panic!("{request:?}: {text:?}"));
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

pub fn get(address: &str, path: &str) -> Answer {
    exchange(address, &format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n"))
}

#[test]
fn without_postgres_it_is_unready_and_not_dead() {
    let server = Server::start("health");
    let world = World::on(&server, "health");
    let mut traffic = Traffic::new(&world);
    traffic.send(300);
    let watched = Watched::start(&world, &["--epoch", "100ms", "--ready-within", "1s"]);
    watched.wait_for("/readyz", 200);
    wait_for_records(&world, traffic.records());

    server.act("stop");
    traffic.send(300);
    let said = watched.wait_for("/readyz", 503);
    assert!(said.starts_with("waiting for Postgres ("), "{said}");
    assert_eq!(watched.get("/livez").status, 200);
    let document = watched.wait_until("it is said", |document| {
        document["sentence"]["state"] == "waiting_for_postgres"
    });
    assert_eq!(document["sentence"]["tone"], "trouble");
    assert!(document["writers"]["rows"][0]["failing_since"].is_number(), "{document:#}");
    assert_eq!(document["health"]["ready"]["ok"], false);

    server.act("start");
    watched.wait_for("/readyz", 200);
    wait_for_records(&world, traffic.records());
    let document = watched.wait_until("the marks", |document| {
        let rows = document["marks"]["rows"].as_array().expect("an array");
        rows.iter().any(|mark| mark["kind"] == "postgres_back")
    });
    assert!(document["writers"]["rows"][0]["failing_since"].is_null(), "{document:#}");
    watched.job.stop();
}

#[test]
fn without_kafka_it_is_unready_and_an_idle_topic_is_ready() {
    let broker = Broker::start("health-kafka");
    let mut world = World::new("health-kafka");
    world.kafka.clone_from(&broker.address);
    world.create_topic(2);
    let watched = Watched::start(&world, &["--epoch", "100ms", "--ready-within", "1s"]);
    watched.wait_for("/readyz", 200);
    // It stays ready for longer than --ready-within, because there is nothing to do.
    let document =
        watched.wait_until("silence", |document| document["sentence"]["state"] == "quiet");
    assert!(document["sentence"]["text"].as_str().expect("text").starts_with("no events for"));
    assert_eq!(watched.get("/readyz").status, 200);

    broker.services("kill");
    let said = watched.wait_for("/readyz", 503);
    assert!(said.starts_with("waiting for Kafka ("), "{said}");
    assert_eq!(watched.get("/livez").status, 200);
    broker.services("start");
    watched.wait_for("/readyz", 200);
    watched.job.stop();
}

#[test]
fn a_port_that_is_taken_is_a_warning_and_is_taken_over_when_it_is_free() {
    let world = World::new("port-taken");
    let mut traffic = Traffic::new(&world);
    traffic.send(100);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let mut job = world.start(&["--http", &address, "--epoch", "100ms"]);
    job.wait_for(&format!("cannot listen on {address}"));
    wait_for_records(&world, traffic.records());
    let log = job.log();
    let warning = log.lines().find(|line| line.contains("cannot listen")).expect("it was said");
    assert!(warning.contains("WARN") && warning.contains("--http none"), "{warning}");
    drop(taken);
    let watched = Watched::from(job);
    assert_eq!(watched.address, address);
    assert_eq!(watched.get("/livez").status, 200);
    watched.job.stop();
}

#[test]
fn only_those_are_answered_who_ask_for_this_place_and_change_nothing() {
    let world = World::new("strangers");
    world.create_topic(1);
    let watched = Watched::start(&world, &["--http-host", "jobs.example"]);
    let address = &watched.address;
    let ask = |line: &str, host: &str| {
        exchange(address, &format!("{line}\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
    };
    for (line, host, status) in [
        ("GET /livez HTTP/1.1", "localhost", 200),
        ("GET /livez HTTP/1.1", "jobs.example:443", 200),
        ("HEAD /status HTTP/1.1", "127.0.0.1", 200),
        ("GET /livez HTTP/1.1", "evil.example", 421),
        ("GET http://evil.example/livez HTTP/1.1", "localhost", 421),
        ("POST /livez HTTP/1.1", "localhost", 405),
        ("PUT /status HTTP/1.1", "localhost", 405),
        ("GET /../../etc/passwd HTTP/1.1", "localhost", 404),
        ("GET /%2e%2e/etc/passwd HTTP/1.1", "localhost", 404),
    ] {
        let answer = ask(line, host);
        assert_eq!(answer.status, status, "{line} {host}: {answer:?}");
        for header in [
            "x-content-type-options: nosniff",
            "content-security-policy: default-src 'none'; script-src 'self'",
            "frame-ancestors 'none'",
        ] {
            assert!(answer.head.contains(header), "{line}: {header} is missing: {}", answer.head);
        }
        assert!(!answer.head.contains("access-control"), "{}", answer.head);
    }
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let mut stream = TcpStream::connect(address).expect("it listens");
    let _ = stream.write_all(long.as_bytes());
    let mut said = String::new();
    let _ = stream.read_to_string(&mut said);
    assert!(!said.contains(" 200 "), "{said}");
    for garbage in ["\0\0\0\0", "GET\r\n\r\n", "\u{16}\u{3}\u{1}\u{2}\r\n\r\n"] {
        let mut stream = TcpStream::connect(address).expect("it listens");
        let _ = stream.write_all(garbage.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_string(&mut String::new());
    }
    assert_eq!(watched.get("/livez").status, 200);
    watched.job.stop();
}

#[test]
fn a_thousand_silent_connections_block_nobody() {
    let world = World::new("half-open");
    let mut traffic = Traffic::new(&world);
    let watched = Watched::start(&world, &["--epoch", "100ms"]);
    watched.wait_for("/readyz", 200);
    let open: Vec<TcpStream> = (0..1_000)
        .map(|n| {
            let mut stream = TcpStream::connect(&watched.address).expect("it listens");
            if n % 2 == 0 {
                let _ = stream.write_all(b"GET /status HTTP/1.1\r\nHos");
            }
            stream
        })
        .collect();
    traffic.send(1_000);
    wait_for_records(&world, traffic.records());
    let began = Instant::now();
    assert_eq!(watched.get("/livez").status, 200);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let files = || {
        let metrics = watched.get("/metrics").body;
        let line = metrics.lines().find(|line| line.starts_with("process_open_fds "));
        let text = line.expect("it is there").split(' ').nth(1).expect("a number").to_owned();
        text.parse::<f64>().expect("a number")
    };
    assert!(files() < 300.0, "{}", files());
    drop(open);
    eventually("all connections are gone", || files() < 100.0);
    watched.job.stop();
}

#[test]
fn pages_beyond_the_limit_are_refused_and_the_others_go_on() {
    let world = World::new("many-pages");
    world.create_topic(1);
    let watched = Watched::start(&world, &[]);
    let request = format!("GET /events HTTP/1.1\r\nHost: {}\r\n\r\n", watched.address);
    let open = || {
        let mut stream = TcpStream::connect(&watched.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut start = [0; 12];
        stream.read_exact(&mut start).expect("an answer");
        (stream, String::from_utf8_lossy(&start).into_owned())
    };
    let pages: Vec<_> = (0..32).map(|_| open()).collect();
    assert!(pages.iter().all(|(_, start)| start == "HTTP/1.1 200"), "{pages:?}");
    assert_eq!(open().1, "HTTP/1.1 503");
    assert_eq!(watched.get("/livez").status, 200);
    drop(pages);
    eventually("there is room again", || open().1 == "HTTP/1.1 200");
    watched.job.stop();
}

#[test]
fn health_and_status_show_it_in_the_terminal() {
    let world = World::new("commands");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);
    let watched = Watched::start(&world, &["--epoch", "100ms", "-w", "2"]);
    wait_for_records(&world, traffic.records());
    watched.wait_for("/readyz", 200);
    let run = |args: &[&str]| {
        let mut command = world.command();
        command.args(args).env("SESSIONIZER_HTTP", &watched.address);
        command.env_remove("KAFKA_URL").env_remove("POSTGRES_URL");
        let output = command.output().expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let url = format!("http://{}", watched.address);
    for args in [&["health"][..], &["health", &url], &["health", "--live", &url]] {
        let (code, out, log) = run(args);
        assert_eq!(code, Some(0), "{args:?}: {out}{log}");
        assert!(!out.trim().is_empty());
    }
    watched
        .wait_until("the balance", |document| document["balance"]["records"] == traffic.records());
    let (code, screen, log) = run(&["status"]);
    assert_eq!(code, Some(0), "{log}");
    for part in [
        &format!("job {} into", world.name),
        &format!("{}/0", world.name),
        "events/s",
        "writer",
        &format!("{} records =", traffic.records()),
        "it adds up",
    ] {
        assert!(screen.contains(part), "{part:?} is missing:\n{screen}");
    }
    let (code, json, log) = run(&["status", "--json", &url]);
    assert_eq!(code, Some(0), "{log}");
    let document: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(document["job"]["workers"], 2);
    let line = format!("set -o pipefail; timeout 20 \"$0\" status --watch {url} | head -1");
    let mut watch = Command::new("bash");
    watch.args(["-c", &line, env!("CARGO_BIN_EXE_sessionizer")]);
    assert!(watch.status().expect("it runs").success(), "it goes on although nobody reads");
    watched.job.stop();
    let (code, _, log) = run(&["health"]);
    assert!(code == Some(1) && log.contains("no job answers at"), "{log}");
    let (code, _, log) = run(&["status", "https://x"]);
    assert!(code == Some(2) && log.contains("is not the URL of a job"), "{log}");
}

#[test]
fn another_job_that_has_the_port_does_not_answer_for_the_one_that_is_asked() {
    let world = World::new("whose");
    world.create_topic(1);
    let name = "first é%";
    let watched = Watched::start(&world, &["--job", name]);
    watched.wait_for("/readyz", 200);
    for path in ["/readyz", "/livez", "/status", "/metrics", "/"] {
        let head = watched.get(path).head;
        assert!(head.contains("\r\nsessionizer-job: first%20%c3%a9%25\r\n"), "{path}:\n{head}");
    }
    let foreign = exchange(&watched.address, "GET /readyz HTTP/1.0\r\nHost: evil.example\r\n\r\n");
    assert!(foreign.status == 421 && !foreign.head.contains("sessionizer-job"), "{foreign:?}");
    // The second job has the same port, and does not get it.
    let mut second = world.command();
    second.args(["--job", "second", "--table", "second"]);
    second.env("SESSIONIZER_HTTP", &watched.address);
    let mut second = Running::start(second);
    second.wait_for("cannot listen on");
    let run = |args: &[&str], job: Option<&str>| {
        let mut command = world.command();
        command.args(args).env("SESSIONIZER_HTTP", &watched.address);
        job.map(|job| command.env("SESSIONIZER_JOB", job));
        let (status, log) = finish(command);
        (status.code(), log)
    };
    let url = format!("http://{}", watched.address);
    for (args, job, says) in [
        (&["health"][..], Some("second"), "SESSIONIZER_JOB"),
        (&["health", "--live"], None, "KAFKA_GROUP"),
        (&["health", "--job", "second"], Some(name), "--job"),
        (&["health", "--job", "second", &url], None, "--job"),
        (&["status"], Some("second"), "SESSIONIZER_JOB"),
        (&["status", "--watch"], Some("second"), "SESSIONIZER_JOB"),
        (&["status", "--json"], None, "KAFKA_GROUP"),
    ] {
        let (code, log) = run(args, job);
        let asked =
            job.filter(|job| *job == "second").or(args.contains(&"--job").then_some("second"));
        let asked = asked.unwrap_or(&world.name);
        let says = format!("the job {name} answers at {url}, not {asked} ({says})");
        assert!(
            code == Some(2) && log.contains(&says) && log.contains("--http"),
            "{args:?}: {log}"
        );
    }
    for (args, job) in [
        (&["health"][..], Some(name)),
        (&["health", "--job", name], Some("second")),
        (&["health", &url], Some("second")),
        (&["status", &url], None),
    ] {
        let (code, log) = run(args, job);
        assert_eq!(code, Some(0), "{args:?}: {log}");
    }
    second.stop();
    watched.job.stop();
    let (code, log) = run(&["health", &format!("{url}/jobs/web")], None);
    let says = format!("no job answers at {url}/jobs/web: ");
    assert!(code == Some(1) && log.contains(&says), "{log}");
}

#[test]
fn the_log_as_json_is_one_object_a_line() {
    let world = World::new("json-log");
    let mut traffic = Traffic::new(&world);
    traffic.send(300);
    let log = world.run_to_end(&["--log-format", "json"]);
    for line in log.lines() {
        let fields: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        for name in ["time", "level", "target", "message", "job"] {
            assert!(fields[name].is_string(), "{name}: {line}");
        }
    }
    assert!(log.lines().count() > 3 && log.contains("read to the end"), "{log}");
    // A message of several lines, of a fault.
    let mut command = world.command();
    command.args(["--gap", "x", "-w", "x"]).env("SESSIONIZER_LOG_FORMAT", "json");
    let (status, log) = finish(command);
    assert_eq!(status.code(), Some(2));
    let fields: Value = serde_json::from_str(log.trim()).unwrap_or_else(|_| panic!("{log}"));
    assert_eq!(fields["level"], "error");
    let mut command = world.command();
    command.args(["--log-format", "xml"]);
    let (status, log) = finish(command);
    assert!(status.code() == Some(2) && log.contains("it can be text or json"), "{log}");
}

#[test]
fn a_signal_logs_where_everything_is() {
    let server = Server::start("usr1");
    let world = World::on(&server, "usr1");
    let mut traffic = Traffic::new(&world);
    traffic.send(300);
    let mut job = world.start(&["--epoch", "100ms", "-w", "2"]);
    wait_for_records(&world, traffic.records());
    server.act("stop");
    traffic.send(300);
    job.wait_for("cannot commit");
    job.signal("USR1");
    job.wait_for("where everything is: running");
    job.wait_for("durable up to epoch");
    let log = job.log();
    let (_, report) = log.split_once("where everything is").expect("it was said");
    for part in [
        "waiting for Postgres",
        "worker 0: stepped",
        "worker 1: stepped",
        &format!("{}[0] at offset", world.name),
        "writer 0: failing for",
    ] {
        assert!(report.contains(part), "{part:?} is missing:\n{report}");
    }
    server.act("start");
    wait_for_records(&world, traffic.records());
    job.stop();
}

#[test]
fn systemd_is_notified_of_life_and_status() {
    let world = World::new("systemd");
    world.create_topic(1);
    let path = std::env::temp_dir().join(format!("{}.socket", world.name));
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut command = world.command();
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    let job = Running::start(command);
    let read = || {
        let mut bytes = [0; 4_096];
        let length = socket.recv(&mut bytes).expect("it is told");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    assert_eq!(read(), "READY=1\n");
    let mut alive = 0;
    while alive < 5 {
        let said = read();
        alive += usize::from(said.contains("WATCHDOG=1"));
        assert!(said.starts_with("STATUS="), "{said}");
    }
    job.signal("TERM");
    let until = Instant::now() + PATIENCE;
    while !read().contains("STOPPING=1") {
        assert!(Instant::now() < until, "it never said that it stops");
    }
    job.wait();
    std::fs::remove_file(&path).expect("ours");
}
