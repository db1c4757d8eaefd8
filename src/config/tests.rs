//! Settings from the command line and the environment, right and wrong.

use sessionizer_core::secret::Secret;

use super::*;
use crate::ledger::SessionEnd;

const GOOD: [(&str, &str); 4] = [
    ("KAFKA_URL", "localhost:9092"),
    ("KAFKA_TOPIC", "web-events"),
    ("KAFKA_GROUP", "group"),
    ("POSTGRES_URL", "jdbc:postgresql://localhost:5432/web"),
];

fn read_with(env: &[(&str, &str)], args: &[&str]) -> Result<Config, String> {
    let env = env.iter().map(|(name, value)| (name.into(), value.into()));
    let args = std::iter::once(&"sessionizer").chain(args).map(Into::into);
    let (cli, env) = crate::cli::parse(args, env).map_err(|why| why.to_string())?;
    read(&cli.run, &env).map_err(|fault| fault.to_string())
}

#[test]
fn four_variables_are_enough_and_the_defaults_are_those_of_the_flink_job() {
    let config = read_with(&GOOD, &[]).expect("valid");
    assert_eq!(config.ledger.gap.millis(), 300_000);
    assert_eq!(config.watermark.out_of_orderness_ms, 15_000);
    assert_eq!(config.drift, Drift { most_ms: 600_000, sessions: 500_000 });
    assert_eq!((config.workers, config.writers, config.epoch_ms), (1, 1, 1_000));
    assert_eq!((config.ledger.job.as_str(), config.ledger.shards), ("group", 128));
    assert_eq!(config.ledger.table, "sessionized_events");
    assert_eq!(config.ledger.user, "postgres");
    assert_eq!(config.ledger.password.reveal(), "postgres");
    assert_eq!(config.ledger.session_end, SessionEnd::Window);
    assert!(config.kafka.login.is_none());
    assert_eq!((config.from, config.accept_overlap), (None, false));
}

#[test]
fn all_that_is_wrong_is_reported_at_once_with_its_name() {
    let env = [("KAFKA_WEB_TRAFFIC_KEY", "k"), ("POSTGRES_URL", "mysql://u:hunter2@h/d")];
    let args = ["--gap", "soon", "-w", "0", "--session-end", "never", "--from", "x"];
    let why = read_with(&env, &args).expect_err("invalid");
    for name in [
        "KAFKA_URL",
        "KAFKA_TOPIC",
        "KAFKA_GROUP",
        "KAFKA_WEB_TRAFFIC_SECRET",
        "POSTGRES_URL",
        "--gap",
        "--workers",
        "--session-end",
        "--from",
    ] {
        assert!(why.contains(&format!("\n  {name} ")), "{name} is missing in {why}");
    }
    assert!(why.starts_with("9 settings") && !why.contains("hunter2"), "{why}");
}

#[test]
fn an_empty_variable_is_one_that_is_not_set() {
    let mut env = GOOD.to_vec();
    env.extend([("KAFKA_WEB_TRAFFIC_KEY", ""), ("KAFKA_WEB_TRAFFIC_SECRET", " ")]);
    assert!(read_with(&env, &[]).expect("valid").kafka.login.is_none());
    env[0].1 = "";
    assert!(read_with(&env, &[]).expect_err("invalid").contains("KAFKA_URL"));
}

#[test]
fn a_user_in_the_url_counts_more_than_the_variable() {
    let mut env = GOOD.to_vec();
    env.extend([("POSTGRES_USER", "env"), ("POSTGRES_PASSWORD", "env-secret")]);
    let config = read_with(&env, &[]).expect("valid");
    assert_eq!((&*config.ledger.user, config.ledger.password.reveal()), ("env", "env-secret"));
    env[3].1 = "postgres://url:url-secret@localhost/web";
    let config = read_with(&env, &[]).expect("valid");
    assert_eq!((&*config.ledger.user, config.ledger.password.reveal()), ("url", "url-secret"));
}

#[test]
fn durations_are_written_as_people_write_them() {
    let args = ["--gap", "300s", "--epoch", "250ms", "--idle-timeout", "1m 30s"];
    let config = read_with(&GOOD, &args).expect("valid");
    assert_eq!((config.ledger.gap.millis(), config.epoch_ms), (300_000, 250));
    assert_eq!(config.watermark.idle_timeout_ms, 90_000);
    for bad in ["0s", "5", "-1s", "1ns"] {
        assert!(read_with(&GOOD, &[&format!("--gap={bad}")]).is_err(), "{bad}");
    }
}

#[test]
fn settings_of_librdkafka_pass_through_and_never_show() {
    let args = [
        "--kafka-config",
        "sasl.mechanism=SCRAM-SHA-512",
        "--kafka-config",
        "sasl.password=hunter2",
        "--kafka-config",
        "security.protocol=sasl_ssl",
    ];
    let config = read_with(&GOOD, &args).expect("valid");
    assert_eq!(config.kafka.extra[1].1.reveal(), "hunter2");
    assert!(!format!("{config:?}").contains("hunter2"));
    let cases = [
        ("no.such.setting=hunter2", "no.such.setting"),
        ("fetch.wait.max.ms=hunter2", "fetch.wait.max.ms"),
        ("enable.auto.commit=true", "enable.auto.commit cannot be set"),
        ("hunter2", "name=value"),
    ];
    for (setting, want) in cases {
        let why = read_with(&GOOD, &["--kafka-config", setting]).expect_err(setting);
        assert!(why.contains(want) && !why.contains("hunter2"), "{setting}: {why}");
    }
}

#[test]
fn a_process_has_its_place_and_writers_go_by_all_workers() {
    let config = read_with(&GOOD, &["-n", "3", "-p", "2", "-w", "2"]).expect("valid");
    assert_eq!((config.processes, config.process, config.writers), (3, 2, 6));
    let writers = |args: &[&str]| read_with(&GOOD, args).expect("valid").writers;
    let of_one = |workers| writers(&["-w", workers]);
    assert_eq!([of_one("1"), of_one("2"), of_one("3"), of_one("8")], [1, 1, 2, 4]);
    assert_eq!(writers(&["-w", "8", "--sink-connections", "3"]), 3);
    let why = read_with(&GOOD, &["-n", "3", "-p", "3"]).expect_err("only 0 to 2");
    assert!(why.contains("--process ") && why.contains("from 0 to 2"), "{why}");
    assert!(read_with(&GOOD, &["-p", "1"]).is_err(), "one process is process 0");
    assert!(read_with(&GOOD, &["--peer-timeout", "100ms"]).is_err(), "a beat may be late");
}

#[test]
fn what_processes_must_agree_on_names_no_server_and_no_secret() {
    let shared =
        |env: &[(&str, &str)], args: &[&str]| read_with(env, args).expect("valid").shared();
    let mut env = GOOD.to_vec();
    let here = shared(&env, &["-n", "2", "-p", "0"]);
    env.extend([("POSTGRES_PASSWORD", "hunter2"), ("POSTGRES_USER", "other")]);
    (env[0].1, env[3].1) = ("other:9092", "jdbc:postgresql://other:5432/web");
    let elsewhere = ["-n", "2", "-p", "1", "--from", "latest", "--hostfile", "hosts"];
    assert_eq!(here, shared(&env, &elsewhere));
    for (flag, value) in [("--gap", "1m"), ("-w", "2"), ("--late", "drop"), ("--epoch", "2s")] {
        assert_ne!(here, shared(&GOOD, &["-n", "2", flag, value]), "{flag}");
    }
}

#[test]
fn topics_are_a_list() {
    let mut env = GOOD.to_vec();
    env[1].1 = "a, b,a";
    assert_eq!(read_with(&env, &[]).expect("valid").kafka.topics, ["a", "b"]);
    env[1].1 = "a b";
    assert!(read_with(&env, &[]).expect_err("invalid").contains("a topic's name has letters"));
    env[1].1 = "a,__consumer_offsets";
    let why = read_with(&env, &[]).expect_err("a topic of Kafka");
    assert!(why.contains("has __consumer_offsets, which Kafka uses itself"), "{why}");
}

#[test]
fn a_start_can_be_a_time() {
    let from = |text| read_with(&GOOD, &["--from", text]).map(|config| config.from);
    assert_eq!(from("latest"), Ok(Some(StartAt::Latest)));
    assert_eq!(from("2023-11-14T22:13:20Z"), Ok(Some(StartAt::Timestamp(1_700_000_000_000))));
    assert_eq!(from("1700000000000"), Ok(Some(StartAt::Timestamp(1_700_000_000_000))));
    let why = from("1700000000").expect_err("seconds");
    assert!(
        why.contains("is 1700000000: in milliseconds since 1970 that is a time in 1970;"),
        "{why}"
    );
}

#[test]
fn a_start_can_be_the_offsets_of_a_consumer_group() {
    let from = |text| read_with(&GOOD, &["--from", text]).map(|config| config.from);
    assert_eq!(from("group"), Ok(Some(StartAt::Group("group".to_owned()))));
    assert_eq!(from("group:flink: web"), Ok(Some(StartAt::Group("flink: web".to_owned()))));
    assert_eq!(from("savepoint:file:/s"), Ok(Some(StartAt::Savepoint("file:/s".to_owned()))));
    for bad in ["group:", "groups", "group: ", "savepoint:", "savepoint"] {
        assert!(from(bad).expect_err("no group").contains("--from"), "{bad}");
    }
}

#[test]
fn a_cluster_has_one_secret_which_shows_nowhere() {
    let mut env = GOOD.to_vec();
    let file = ["--cluster-secret-file", "/run/secrets/cluster"];
    let config = read_with(&env, &file).expect("valid");
    let path = PathBuf::from("/run/secrets/cluster");
    assert_eq!(config.cluster_secret, Some(SecretSource::File(path)));
    assert!(!read_with(&env, &[]).expect("valid").cluster_insecure);
    env.push(("SESSIONIZER_CLUSTER_SECRET", "hunter2hunter2hunter2"));
    let config = read_with(&env, &[]).expect("valid");
    let secret = SecretSource::Variable(Secret::new("hunter2hunter2hunter2"));
    assert_eq!(config.cluster_secret, Some(secret));
    assert!(!format!("{config:?} {:?}", config.shared()).contains("hunter2"));
    for (args, says) in [
        (&file[..], "SESSIONIZER_CLUSTER_SECRET  is set, and so is --cluster-secret-file"),
        (&["--cluster-insecure"], "--cluster-insecure  contradicts the cluster secret"),
    ] {
        let why = read_with(&env, args).expect_err("only one of them");
        assert!(why.contains(says) && !why.contains("hunter2"), "{why}");
    }
    env.last_mut().expect("the variable").1 = "";
    assert!(read_with(&env, &[]).expect("valid").cluster_secret.is_none());
}

#[test]
fn a_limit_of_what_is_switched_off_is_refused() {
    let why = |args: &[&str]| read_with(&GOOD, args).expect_err("it would be ignored");
    let message = why(&["--statistics-visitors", "20"]);
    assert!(
        message.contains("--statistics-visitors") && message.contains("nothing to limit"),
        "{message}"
    );
    let message = why(&["--anomalies", "none", "--anomaly-threshold", "burst.min=100"]);
    assert!(
        message.contains("--anomaly-threshold") && message.contains("nothing to apply to"),
        "{message}"
    );
    for right in [
        &["--statistics", "visitors", "--statistics-visitors", "20"][..],
        &["--anomalies", "burst", "--anomaly-threshold", "burst.min=100"],
    ] {
        read_with(&GOOD, right).expect("valid");
    }
}

/// A file of its own for a test, which is gone when the test is over.
struct SecretFile(String);

impl SecretFile {
    fn new(name: &str, content: &[u8], mode: u32) -> SecretFile {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("sessionizer-{}-{name}", std::process::id()));
        std::fs::write(&path, content).expect("it can be written");
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&path, permissions).expect("it is ours");
        SecretFile(path.to_str().expect("UTF-8").to_owned())
    }
}

impl std::ops::Deref for SecretFile {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn secrets_can_come_from_files() {
    let password = SecretFile::new("password", b"p@ss word\n", 0o600);
    let secret = SecretFile::new("secret", b"k:s\r\n", 0o600);
    let files = [
        ("POSTGRES_PASSWORD_FILE", &*password),
        ("KAFKA_WEB_TRAFFIC_KEY", "key"),
        ("KAFKA_WEB_TRAFFIC_SECRET_FILE", &*secret),
    ];
    let config = read_with(&[&GOOD[..], &files].concat(), &[]).expect("valid");
    assert_eq!(config.ledger.password.reveal(), "p@ss word");
    let (key, secret) = config.kafka.login.expect("a login");
    assert_eq!((key.as_str(), secret.reveal()), ("key", "k:s"));

    let pgpass = SecretFile::new("pgpass", b"localhost:5432:web:postgres:from file", 0o600);
    let with_pgpass = [&GOOD[..], &[("PGPASSFILE", &*pgpass)]].concat();
    let config = read_with(&with_pgpass, &[]).expect("valid");
    assert_eq!(config.ledger.password.reveal(), "from file");
    let config = read_with(&[&with_pgpass[..], &[("POSTGRES_PASSWORD", "set")]].concat(), &[]);
    assert_eq!(config.expect("valid").ledger.password.reveal(), "set");
}

#[test]
fn what_is_wrong_with_a_file_of_a_secret_is_named_and_its_content_is_not() {
    let [empty, binary, open] = [
        SecretFile::new("empty", b" \n", 0o600),
        SecretFile::new("binary", b"hunter2\xff", 0o600),
        SecretFile::new("open", b"localhost:5432:web:postgres:hunter2", 0o644),
    ];
    for (set, want) in [
        (vec![("POSTGRES_PASSWORD_FILE", "/nowhere/p")], "/nowhere/p cannot be read: No such file"),
        (vec![("POSTGRES_PASSWORD_FILE", "/dev/zero")], "/dev/zero cannot be read: it has more"),
        (vec![("POSTGRES_PASSWORD_FILE", &empty)], "which is empty"),
        (vec![("POSTGRES_PASSWORD_FILE", &binary)], "which is not valid UTF-8"),
        (
            vec![("POSTGRES_PASSWORD_FILE", &empty), ("POSTGRES_PASSWORD", "hunter2")],
            "is set, and so is POSTGRES_PASSWORD: only one can be",
        ),
        (vec![("KAFKA_WEB_TRAFFIC_SECRET_FILE", &open)], "KAFKA_WEB_TRAFFIC_KEY  is not set"),
        (vec![("PGPASSFILE", &open)], "which others may read: chmod 600"),
        (vec![("PGPASSFILE", "/nowhere/p")], "PGPASSFILE  /nowhere/p cannot be read"),
    ] {
        let why = read_with(&[&GOOD[..], &set].concat(), &[]).expect_err("refused");
        assert!(why.contains(want) && !why.contains("hunter2"), "{why}");
    }
}

type Variables<'a> = &'a [(&'a str, &'a str)];

/// Reads good settings and these, of which the last of a name counts.
fn with_more(more: Variables<'_>, args: &[&str]) -> Result<Config, String> {
    read_with(&[&GOOD[..], more].concat(), args)
}

#[test]
fn a_login_in_the_list_of_brokers_is_refused_and_not_repeated() {
    for wrong in [
        "Endpoint=sb://ns.example/;SharedAccessKeyName=Root;SharedAccessKey=GEHEIM=",
        "h:9092;password=GEHEIM",
        "h:9092?sasl.password=GEHEIM",
        "h:9092 --password GEHEIM",
        "h:9092;GEHEIM!",
        "https://h/?GEHEIM",
        "u:GEHEIM@h:9092",
    ] {
        let why = with_more(&[("KAFKA_URL", wrong)], &[]).expect_err(wrong);
        assert!(why.contains("KAFKA_URL") && !why.contains("GEHEIM"), "{why}");
    }
    for (wrong, shown) in [("h", "\"h\""), ("ssl://h:1", "write h:1 alone"), ("h:+1", "a port")] {
        let why = with_more(&[("KAFKA_URL", wrong)], &[]).expect_err(wrong);
        assert!(why.contains(shown), "{why}");
    }
}

#[test]
fn a_login_or_tls_that_would_not_be_used_is_refused() {
    let login = [("KAFKA_WEB_TRAFFIC_KEY", "k"), ("KAFKA_WEB_TRAFFIC_SECRET", "GEHEIM")];
    let of = |env: Variables<'_>, settings: &[&str]| {
        let args: Vec<&str> = settings.iter().flat_map(|one| ["--kafka-config", one]).collect();
        with_more(env, &args)
    };
    let ca = "ssl.endpoint.identification.algorithm=none";
    let refused: [(Variables<'_>, &[&str]); 6] = [
        (&[], &["sasl.username=u", "sasl.password=GEHEIM"]),
        (&[], &[ca]),
        (&login, &["security.protocol=plaintext"]),
        (&login, &["security.protocol=SSL"]),
        (&login, &["security.protocol=sasl_plaintext", ca]),
        (&[], &["security.protocol=sasl_ssl"]),
    ];
    for (env, settings) in refused {
        let why = of(env, settings).expect_err("not used");
        assert!(why.contains("security.protocol") && !why.contains("GEHEIM"), "{why}");
    }
    let accepted: [(Variables<'_>, &[&str]); 5] = [
        (&login, &[ca]),
        (&login, &["security.protocol=sasl_plaintext"]),
        (&[], &["security.protocol=ssl", ca]),
        (&[], &["security.protocol=SASL_SSL", "sasl.mechanisms=PLAIN", "sasl.username=u", ca]),
        (&[], &[]),
    ];
    for (env, settings) in accepted {
        let why = of(env, settings).err().unwrap_or_default();
        assert!(!why.contains("security.protocol"), "{settings:?}: {why}");
    }
}

#[test]
fn months_are_not_minutes() {
    for gap in ["5M", "1M30s"] {
        assert!(with_more(&[], &["--gap", gap]).expect_err(gap).contains("--gap"), "{gap}");
    }
}

#[test]
fn tables_have_no_quotes_and_are_not_those_of_the_system() {
    for table in ["public.\"Web\"", "\"Web\"", "sessionizer.jobs", "information_schema.x", "pg_x.y"]
    {
        assert!(with_more(&[], &["--table", table]).is_err(), "{table}");
    }
    assert!(with_more(&[], &["--table", "public.Web"]).is_ok());
}
