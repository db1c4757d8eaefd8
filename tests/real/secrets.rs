//! No output contains a secret, whether it is right or wrong, and wherever it was set.

use std::process::Command;

use crate::lifecycle::{Traffic, wait_for_records};
use crate::secured::Secured;
use crate::server::Server;
use crate::watch::Watched;
use crate::world::{Running, World, eventually};

/// The part of every secret that nothing else has.
const CANARY: &str = "c4n4ry";
/// What breaks whoever quotes, splits or encodes.
const ODD: &str = "@:/?#%41^'\"\\ $(x) `y` ;=&<ä日";

/// A secret, and how a URL spells it.
fn secret(number: u8) -> (String, String) {
    let plain = format!("{CANARY}{number}{ODD}");
    let byte = |byte: &u8| match byte.is_ascii_alphanumeric() {
        true => char::from(*byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    let encoded = plain.as_bytes().iter().map(byte).collect();
    (plain, encoded)
}

fn holds_none(what: &str, output: &str) {
    assert!(!output.contains(CANARY), "{what} shows a secret:\n{output}");
}

/// Runs a command and returns its exit code; its output must not show a secret.
fn code_of(mut command: Command, args: &[&str]) -> Option<i32> {
    command.args(args);
    let output = command.output().expect("it can be run");
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into());
    let text: [String; 2] = text;
    holds_none(&format!("{args:?}"), &text.concat());
    output.status.code()
}

/// A job with a secret for each of its connections that are not those of `Secured`.
fn job_with_secrets(world: &World) -> Command {
    let (password, _) = secret(1);
    let mut command = world.command();
    command
        .env("POSTGRES_URL", format!("jdbc:postgresql://{}/{}", world.server, world.database))
        .env("POSTGRES_USER", "alice")
        .env("POSTGRES_PASSWORD", password)
        .env("SESSIONIZER_KAFKA_CONFIG", format!("client.rack={CANARY}2"))
        .env("RUST_LOG", "trace");
    command
}

fn of_process(job: &Running, file: &str) -> String {
    let bytes = std::fs::read(format!("/proc/{}/{file}", job.pid())).expect("it runs");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn a_running_job_shows_none() {
    let server = Server::start("secrets");
    let world = World::on(&server, "secrets");
    let (password, _) = secret(1);
    let quoted = password.replace('\'', "''");
    world.execute(&format!("create role alice login superuser password '{quoted}'"));
    let data = server.directory.join("data");
    let rules = b"host all alice 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n";
    crate::connect::write(&data.join("pg_hba.conf"), &data, rules, 0o600);
    world.execute("select pg_reload_conf()");
    let mut traffic = Traffic::new(&world);
    traffic.send(500);

    let mut command = job_with_secrets(&world);
    command.env("SESSIONIZER_HTTP", "127.0.0.1:0").env("SESSIONIZER_PAGE", "full");
    command.env("SESSIONIZER_LOG_FORMAT", "json");
    let watched = Watched::from(Running::start(command));
    wait_for_records(&world, traffic.records());
    for path in ["/", "/status", "/metrics", "/livez", "/readyz", "/nowhere"] {
        let answer = watched.get(path);
        holds_none(path, &(answer.head + &answer.body));
    }
    holds_none("ps", &of_process(&watched.job, "cmdline"));
    watched.job.signal("USR1");
    eventually("it says where it stands", || watched.job.log().contains("\"partition"));

    for args in [
        &["audit"][..],
        &["check", "--json"],
        &["check"],
        &["open"],
        &["report", "--json"],
        &["--help"],
        &["--version"],
        &["schema"],
    ] {
        // A check ends with 3 because the job is running.
        let code = code_of(job_with_secrets(&world), args);
        assert!(matches!(code, Some(0 | 3)), "{args:?}: {code:?}");
    }
    holds_none("the log", &watched.job.stop());
}

#[test]
fn an_abort_shows_none() {
    let world = World::new("secrets-abort");
    let mut traffic = Traffic::new(&world);
    traffic.send(100);
    let directory = std::env::temp_dir().join(&world.name);
    std::fs::create_dir_all(&directory).expect("created");
    let job = world.command();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -c $(ulimit -H -c) && exec \"$0\""]).arg(job.get_program());
    for (name, value) in job.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.current_dir(&directory).env("POSTGRES_PASSWORD", secret(1).0);
    let job = Running::start(command);
    wait_for_records(&world, traffic.records());
    let limits = of_process(&job, "limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size"));
    let soft = core.and_then(|line| line.split_whitespace().nth(4));
    assert!(matches!(soft, Some("0" | "1")), "a core dump would hold them: {limits}");
    job.signal("ABRT");
    let (status, log) = job.wait();
    assert!(!status.success());
    holds_none("the log", &log);
    let left = std::fs::read_dir(&directory).expect("there").count();
    assert_eq!(left, 0, "a core dump would hold them");
    std::fs::remove_dir(&directory).expect("empty");
}

#[test]
fn a_wrong_login_shows_none() {
    let secured = Secured::shared();
    let world = secured.world("secrets-wrong");
    world.create_topic(1);
    for args in [&["--until-end"][..], &["check"], &["check", "--json"], &["audit"]] {
        let mut command = secured.command(&world, &secret(3).0);
        command
            .env("SESSIONIZER_KAFKA_CONFIG", secured.trust())
            .env("SESSIONIZER_START_TIMEOUT", "3s")
            .env("RUST_LOG", "debug");
        assert_ne!(code_of(command, args), Some(0), "{args:?}");
    }
}

#[test]
fn wrong_settings_show_none() {
    let (plain, encoded) = secret(4);
    let url = |host: &str| format!("jdbc:postgresql://{host}/d?user=u&password={encoded}");
    let with_file = |name: &str| format!("/nowhere/{name}");
    let mut mistakes: Vec<Vec<(&str, String)>> = vec![
        vec![("POSTGRES_URL", url("host:notaport"))],
        vec![("POSTGRES_URL", format!("{}&sslmode=perhaps", url("127.0.0.1:1")))],
        vec![(
            "POSTGRES_URL",
            format!("{}&sslkey=/nowhere&sslpassword={encoded}", url("127.0.0.1:1")),
        )],
        vec![("POSTGRES_URL", format!("postgres://u:{encoded}@127.0.0.1:1"))],
        // Not encoded, as people write it.
        vec![("POSTGRES_URL", format!("postgres://u:{plain}@127.0.0.1:1/d"))],
        vec![("POSTGRES_URL", format!("jdbc:postgresql://127.0.0.1:1/d?password={plain}"))],
        vec![("POSTGRES_URL", format!("host=127.0.0.1 password={plain}"))],
        vec![("POSTGRES_URL", plain.clone())],
        vec![("KAFKA_URL", format!("SASL_SSL://u:{plain}@127.0.0.1:1"))],
        vec![("KAFKA_WEB_TRAFFIC_KEY", String::new()), ("KAFKA_WEB_TRAFFIC_SECRET", plain.clone())],
        vec![("KAFKA_WEB_TRAFFIC_SECRET", format!(" \"{plain}\"\r"))],
        vec![("POSTGRES_PASSWORD", format!("'{plain}' ")), ("POSTGRES_URL", "postgres://h".into())],
        vec![("SESSIONIZER_KAFKA_CONFIG", format!("sasl.passwrod={plain}"))],
        vec![("SESSIONIZER_KAFKA_CONFIG", format!("ssl.key.password={CANARY};{CANARY}"))],
        vec![("SESSIONIZER_KAFKA_CONFIG", format!("sasl.mechanism={CANARY}"))],
        vec![
            ("SESSIONIZER_CLUSTER_SECRET", CANARY.to_owned()),
            ("SESSIONIZER_PROCESSES", "2".into()),
        ],
        vec![
            ("SESSIONIZER_CLUSTER_SECRET", plain.clone()),
            ("SESSIONIZER_CLUSTER_INSECURE", "true".into()),
        ],
    ];
    for name in ["POSTGRES_PASSWORD_FILE", "KAFKA_WEB_TRAFFIC_SECRET_FILE"] {
        let secret = name.trim_end_matches("_FILE");
        mistakes.push(vec![(name, with_file("secret")), (secret, plain.clone())]);
    }
    for variables in mistakes {
        for args in [
            &[][..],
            &["check"],
            &["check", "--json"],
            &["audit"],
            &["reset", "--yes"],
            &["status"],
        ] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_sessionizer"));
            for (name, _) in std::env::vars() {
                if ["KAFKA_", "POSTGRES_", "SESSIONIZER_"].iter().any(|of| name.starts_with(of)) {
                    command.env_remove(name);
                }
            }
            command
                .env("KAFKA_URL", "127.0.0.1:1")
                .env("KAFKA_TOPIC", "t")
                .env("KAFKA_GROUP", "g")
                .env("POSTGRES_URL", "postgres://127.0.0.1:1/d")
                // Not the default address, where another job may answer.
                .env("SESSIONIZER_HTTP", "127.0.0.1:1")
                .env("SESSIONIZER_START_TIMEOUT", "1s")
                .env("RUST_LOG", "debug")
                .envs(variables.iter().map(|(name, value)| (*name, value)));
            let code = code_of(command, args);
            assert!(code.is_some_and(|code| code != 0), "{variables:?} {args:?}: {code:?}");
        }
    }
}

#[test]
fn a_file_of_settings_shows_none() {
    let (plain, _) = secret(5);
    let file = std::env::temp_dir().join(format!("secrets-{}.env", std::process::id()));
    for line in [
        format!("POSTGRES_PASSWORD {plain}"),
        format!("POSTGRES_PASWORD={plain}"),
        format!("export KAFKA_WEB_TRAFFIC_SECRET='{plain}"),
        plain.clone(),
    ] {
        std::fs::write(&file, format!("KAFKA_URL=127.0.0.1:1\n{line}\n")).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_sessionizer"));
        command.env("SESSIONIZER_START_TIMEOUT", "1s");
        let path = file.to_str().expect("UTF-8");
        assert_ne!(code_of(command, &["--env-file", path]), Some(0), "{line}");
    }
    std::fs::remove_file(&file).expect("there");
}
