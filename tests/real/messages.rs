//! Messages about problems: each can be understood at first reading.

use std::net::TcpListener;
use std::time::Instant;

use crate::kafka::fail;
use crate::oracle::event;
use crate::postgres::TEN;
use crate::world::{Running, World, finish};

/// A port that leads to something other than Postgres, or a frozen proxy.
#[test]
fn a_postgres_that_accepts_and_does_not_answer_ends_the_start_in_time() {
    let world = World::new("silent-postgres");
    world.create_topic(1);
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("bound");
    let url = format!("jdbc:postgresql://{address}/db");
    for (timeout, least, most) in [("1s", 700, 2_500), ("4s", 3_500, 10_000)] {
        let began = Instant::now();
        let (code, log) = fail(&world, &[("POSTGRES_URL", &url)], &["--start-timeout", timeout]);
        let took = began.elapsed().as_millis();
        assert_eq!(code, 1, "{log}");
        let says = format!("Postgres at {address}/db cannot be used: no answer for ");
        assert!(log.contains(&says) && log.contains("check POSTGRES_URL"), "{log}");
        assert!((least..most).contains(&took), "{timeout} took {took} ms:\n{log}");
    }
}

/// The broker of the tests has neither TLS nor logins.
#[test]
fn a_port_of_the_broker_that_takes_no_login_or_no_tls_is_called_that() {
    let world = World::new("no-login");
    world.create_topic(1);
    let login = [("KAFKA_WEB_TRAFFIC_KEY", "key"), ("KAFKA_WEB_TRAFFIC_SECRET", "GEHEIM")];
    let plain = ["--kafka-config", "security.protocol=sasl_plaintext"];
    for (args, want, says) in [
        (&plain[..], 2, "this port takes no login: use the broker's port that does, or unset "),
        (&[], 1, "check KAFKA_URL, and whether its port is one for TLS: "),
    ] {
        let (code, log) = fail(&world, &login, &[args, &["--start-timeout", "4s"]].concat());
        assert_eq!(code, want, "{log}");
        assert!(log.contains(says) && !log.contains("in state"), "{log}");
        let mut check = world.command();
        check.args(["check", "--only", "kafka"]).args(args).envs(login);
        let output = check.output().expect("the program was built");
        assert_eq!(output.status.code(), Some(want));
        let said = String::from_utf8_lossy(&output.stdout);
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn servers_that_accept_and_do_not_answer_end_every_command_in_time() {
    let world = World::new("silent-servers");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("bound").to_string();
    let url = format!("jdbc:postgresql://{address}/db?connectTimeout=1");
    let commands = [
        &["open"][..],
        &["report"],
        &["audit"],
        &["compare", "--against", "other"],
        &["forget", "--ip", "192.0.2.7", "--yes"],
        &["redrive", "--reason", "late", "--yes"],
        &["reset", "--yes"],
    ];
    let running = commands.map(|args| {
        let mut command = world.command();
        command.env("POSTGRES_URL", &url).args(args);
        (args, Running::start(command))
    });
    for (args, running) in running {
        let (status, log) = running.wait();
        assert_eq!(status.code(), Some(1), "{args:?}: {log}");
        let says = format!("connecting to {address}/db: no answer for 16 s; check POSTGRES_URL, ");
        assert!(log.contains(&says), "{args:?}: {log}");
    }
    let mut check = world.command();
    check.args(["check", "--only", "kafka"]).env("KAFKA_URL", &address);
    let output = check.output().expect("the program was built");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(&format!("Kafka at {address}: no answer")), "{said}");
}

#[test]
fn the_last_error_is_shown_unless_rust_log_is_off() {
    let world = World::new("rust-log");
    let run = |rust_log: &str| fail(&world, &[("RUST_LOG", rust_log)], &["--until-end"]).1;
    let missing = format!("the topic {} does not exist", world.name);
    for (rust_log, warns) in
        [("garbage", true), ("info,garbage", true), ("librdkafka=off", false), ("", false)]
    {
        let log = run(rust_log);
        assert!(log.contains(&missing), "RUST_LOG={rust_log}:\n{log}");
        let warned = log.contains(&format!("RUST_LOG: {rust_log:?} is not understood"));
        assert_eq!(warned, warns, "RUST_LOG={rust_log}:\n{log}");
    }
    assert_eq!(run("off"), "");
}

#[test]
fn files_for_tls_that_cannot_be_used_are_named_in_a_sentence() {
    let world = World::new("tls-files");
    world.create_topic(1);
    let file = std::env::temp_dir().join(format!("{}-no.pem", world.name));
    std::fs::write(&file, "this is no certificate\n").expect("the directory is writable");
    let path = file.to_str().expect("a path of text");
    let base = format!("jdbc:postgresql://{}/{}?", world.server, world.database);
    for (parameters, says) in [
        (
            "sslmode=verify-ca&sslrootcert=/nowhere/ca.pem".to_owned(),
            "POSTGRES_URL: sslrootcert: /nowhere/ca.pem cannot be read: no such file".to_owned(),
        ),
        (
            format!("sslmode=verify-ca&sslrootcert={path}"),
            format!("POSTGRES_URL: sslrootcert: {path} holds no certificate in PEM form"),
        ),
        (
            format!("sslcert={path}"),
            format!("POSTGRES_URL: sslcert: {path} is not what is expected there"),
        ),
        (
            "sslkey=/nowhere/key".to_owned(),
            "sslkey: /nowhere/key cannot be read: no such".to_owned(),
        ),
    ] {
        let url = format!("{base}{parameters}");
        let (code, log) = fail(&world, &[("POSTGRES_URL", &url)], &["--until-end"]);
        assert!(code == 2 && log.contains(&says), "{says:?} is not said:\n{log}");
        assert!(!log.contains("error:"), "{log}");
    }
    let args = ["--until-end", "--kafka-config", "security.protocol=ssl"];
    let args = [&args[..], &["--kafka-config", "ssl.ca.location=/nowhere/ca.pem"]].concat();
    let (code, log) = fail(&world, &[], &args);
    let says = "ssl.ca.location cannot be read: no such file";
    assert!(code == 2 && log.contains(says) && !log.contains("error:"), "{log}");
    std::fs::remove_file(file).expect("it is there");
}

#[test]
fn what_the_server_advises_is_passed_on() {
    let world = World::new("hint");
    world.create_topic(1);
    world.execute(
        "create table sessionized_events (ip text, host text, session_start timestamptz(3),
                                          session_end timestamptz(3), num_logs bigint);
         create publication everything for all tables",
    );
    // A late event would need it, which is found before there is one.
    world.send_events(0, &[event("10.0.0.1", "h", TEN)]);
    let mut command = world.command();
    command.arg("--until-end");
    let (status, log) = finish(command);
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("set REPLICA IDENTITY using ALTER TABLE"), "{log}");
}
