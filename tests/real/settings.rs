//! Wrong arguments and variables are explained and refused with exit code 2 before anything
//! connects. And output goes where it is redirected; a closed pipe ends the program quietly.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::skipped::skipped;

/// A password that must never be shown.
const SECRET: &str = "Qq7-geheim";

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessionizer"));
    command.env_clear().env("RUST_BACKTRACE", "1").stdin(Stdio::null());
    command
}

/// The exit code, what was printed, and what was logged.
fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().expect("the program was built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Each mistake: the arguments, the variables, and what the message must contain.
type Mistake = (&'static [&'static str], &'static [(&'static str, &'static str)], &'static str);

const MISTAKES: [Mistake; 93] = [
    (&["prodcue"], &[], "produce"),
    (&["--no-such-flag"], &[], "--no-such-flag"),
    (&["--workes", "2"], &[], "--workers"),
    (&["--gap", "soon"], &[], "--gap  is \"soon\": it must be a duration like 300s"),
    (&["--gap", "-5m"], &[], "--gap  is \"-5m\": it must be a duration"),
    (&["-w", "-1"], &[], "--workers  is \"-1\": it must be a whole number from 1"),
    (&["--gap", "--table", "x"], &[], "--gap  has no value: write --gap DURATION"),
    (&["--gap="], &[], "--gap  has an empty value"),
    (&["--late", "never"], &[], "--late  is \"never\": it can be merge or drop"),
    (&["--from", "yesterday"], &[], "--from  is \"yesterday\""),
    (&["--table", "a.b.c"], &[], "--table  is \"a.b.c\": it must be name or schema.name"),
    (
        &["--table", "x23456789x23456789x23456789x23456789x23456789x23456789x234567890x"],
        &[],
        "at most 63 are possible",
    ),
    (&["--job", "a\nb"], &[], "--job  holds a control character"),
    (&["--kafka-config", "sasl.password="], &[], "has no value for sasl.password"),
    (
        &["--kafka-config", "client.rack=a", "--kafka-config", "client.rack=b"],
        &[],
        "has client.rack twice: only one of them can count",
    ),
    (
        &[],
        &[("POSTGRES_URL", "jdbc:postgresql://h/d?currentSchema=")],
        "currentSchema without a name",
    ),
    (&["--kafka-config", "Qq7-geheim"], &[], "--kafka-config  is not of the form name=value"),
    (&["--kafka-config", "=Qq7-geheim"], &[], "is not of the form name=value"),
    (&["--kafka-config", "no.such=Qq7-geheim"], &[], "does not accept no.such"),
    (&["--kafka-config", "isolation.level=read_uncommitted"], &[], "isolation.level cannot be set"),
    (&["--kafka-config", "topic.blacklist=^web"], &[], "topic.blacklist cannot be set"),
    (&["--kafka-config", "group.id=x"], &[], "set KAFKA_GROUP instead"),
    (&["--env-file", "/nowhere/job.env"], &[], "--env-file  /nowhere/job.env cannot be read"),
    (&[], &[("SESSIONIZER_GAP", "soon")], "SESSIONIZER_GAP  is \"soon\""),
    (&[], &[("SESSIONIZER_WORKERS", "two")], "SESSIONIZER_WORKERS  is \"two\""),
    (&[], &[("SESSIONIZER_ACCEPT_LOST_OFFSETS", "never")], "it must be true or false"),
    (&[], &[("SESSIONIZER_GAP", "\"5m\"")], "SESSIONIZER_GAP  has quotes around it"),
    (&[], &[("SESSIONIZER_LATE", "dorp")], "SESSIONIZER_LATE  is \"dorp\""),
    (
        &[],
        &[("SESSIONIZER_LATE", "drop"), ("SESSIONIZER_LATE_EVENTS", "merge")],
        "SESSIONIZER_LATE_EVENTS  is not the same as SESSIONIZER_LATE",
    ),
    (&[], &[("SESSIONIZER_KAFKA_CONFIG", "enable.auto.commit=true")], "enable.auto.commit cannot"),
    (&[], &[("KAFKA_URL", "")], "KAFKA_URL  is not set: the brokers, as host:port"),
    (&[], &[("KAFKA_URL", "\"h:9092\"")], "KAFKA_URL  has quotes around it"),
    (&[], &[("KAFKA_URL", "h")], "KAFKA_URL  has no port in \"h\": write host:port, like h:9092"),
    (&[], &[("KAFKA_URL", "h:x")], "a port is a number from 1 to 65535"),
    (&[], &[("KAFKA_URL", "h:0")], "a port is a number from 1 to 65535"),
    (&[], &[("KAFKA_URL", "h:99999")], "a port is a number from 1 to 65535"),
    (&[], &[("KAFKA_URL", "h:1,,i:1")], "has a comma with nothing before or after it"),
    (&[], &[("KAFKA_URL", "h:1 i:1")], "has a blank in broker 1"),
    (&[], &[("KAFKA_URL", "kafka://h:9092")], "begins with kafka://: write h:9092 alone"),
    (&[], &[("KAFKA_URL", "http://h:9092/")], "begins with http://: write h:9092 alone"),
    (&[], &[("KAFKA_URL", "PLAINTEXT://h:9092")], "write h:9092 alone"),
    (&[], &[("KAFKA_URL", "SASL_SSL://h:9092")], "set KAFKA_WEB_TRAFFIC_KEY and"),
    (&[], &[("KAFKA_URL", "SSL://h:9092")], "--kafka-config security.protocol=ssl"),
    (&[], &[("KAFKA_URL", "::1:9092")], "in brackets, like [::1]:9092"),
    (&[], &[("KAFKA_URL", "[::1")], "write an IPv6 address like [::1]:9092"),
    (&[], &[("KAFKA_URL", "kafka://u:Qq7-geheim@h:9092")], "KAFKA_URL  has an @ in it"),
    (&[], &[("KAFKA_URL", "u:Qq7-geheim,x@h:9092")], "KAFKA_URL  has an @ in it"),
    (&[], &[("KAFKA_TOPIC", "")], "KAFKA_TOPIC  is not set"),
    (&[], &[("KAFKA_TOPIC", "a b")], "a topic's name has letters, digits"),
    (&[], &[("KAFKA_TOPIC", "a,,b")], "KAFKA_TOPIC  has a comma with nothing"),
    (&[], &[("KAFKA_TOPIC", "..")], "a topic's name has letters, digits"),
    (&[], &[("KAFKA_GROUP", "")], "KAFKA_GROUP  is not set"),
    (&[], &[("KAFKA_GROUP", "a\tb")], "KAFKA_GROUP  holds a control character"),
    (&[], &[("KAFKA_WEB_TRAFFIC_KEY", "k")], "KAFKA_WEB_TRAFFIC_SECRET  is not set and"),
    (&[], &[("POSTGRES_URL", "")], "POSTGRES_URL  is not set"),
    (&[], &[("POSTGRES_URL", "mysql://u:Qq7-geheim@h/d")], "POSTGRES_URL  must be of the form"),
    (&[], &[("POSTGRES_URL", "postgres://u:Qq7-geheim/x@h/d")], "POSTGRES_URL  has a port that"),
    (&[], &[("POSTGRES_URL", "postgres://h:5432")], "POSTGRES_URL  names no database: write"),
    (&[], &[("POSTGRES_URL", "postgres://h/d?password=a&Qq7-geheim")], "number 2 after"),
    (&[], &[("POSTGRES_URL", "postgres://h/d?sslmode=Qq7-geheim")], "sslmode that is not known"),
    (&[], &[("POSTGRES_URL", "postgres://h/d?sslfactory=x")], "sslfactory, which is not supported"),
    (&[], &[("POSTGRES_URL", "postgres://h/d?requireAuth=x")], "requireAuth, which is not"),
    (&[], &[("POSTGRES_URL", "postgres://h/d?targetServerType=secondary")], "needs the primary"),
    (&[], &[("POSTGRES_URL", "postgres://h/d?sslrootcert=ca.pem")], "must be an absolute path"),
    (&["produce"], &[("KAFKA_URL", "")], "KAFKA_URL  is not set"),
    (&["produce", "--rate", "-1"], &[], "--rate  is \"-1\""),
    (&["produce", "--density", "5"], &[], "--density  is for historical events: add --historical"),
    (&["produce"], &[("SESSIONIZER_PRODUCE_LATE", "x")], "SESSIONIZER_PRODUCE_LATE  is \"x\""),
    (&["audit", "--show", "many"], &[], "--show  is \"many\""),
    (&["audit"], &[("POSTGRES_URL", "")], "POSTGRES_URL  is not set"),
    (&["forget", "--ip", ""], &[], "--ip  has an empty value"),
    (&["forget", "--ip"], &[], "--ip  has no value: write --ip ADDRESS"),
    (&["redrive", "--reason", ","], &[], "--reason  names no reason: it can be "),
    (&["compare", "--against", ""], &[], "a setting is missing or wrong:\n      --against"),
    (
        &["compare", "--against=t", "--since=2026-02-01T00:00:00Z", "--until=2026-01-01T00:00:00Z"],
        &[],
        "--until  is 2026-01-01T00:00:00.000Z, which is not after --since (2026-02-01",
    ),
    (&["open"], &[("POSTGRES_URL", ""), ("KAFKA_GROUP", "")], "--job         is not given"),
    (
        &["check", "--no-connect", "--only", "kafka"],
        &[],
        "--no-connect  checks the settings alone, and --only does not name them",
    ),
    (&["status", "127.0.0.1:99999"], &[], "is not the URL of a job"),
    (
        &["--metrics-hosts", "a,,b"],
        &[],
        "--metrics-hosts  has a comma with nothing before or after",
    ),
    (&["--http-host", "a,"], &[], "--http-host  has a comma with nothing before or after it"),
    (&[], &[("SESSIONIZER_METRICS_HOSTS", ",a")], "SESSIONIZER_METRICS_HOSTS  has a comma with"),
    (&["check", "--only", "settings,,plan"], &[], "--only  has a comma with nothing before or"),
    (&["report", "--host", "a,,b"], &[], "--host  has a comma with nothing before or after it"),
    (&["redrive", "--reason", "late,,future"], &[], "--reason  has a comma with nothing before"),
    (&["produce", "--host", "a,,b"], &[], "--host  has a comma with nothing before or after it"),
    (&["produce", "--host", "a\nb"], &[], "--host  holds a control character"),
    (&["produce", "--scenario", "clean", "--host", "a\tb"], &[], "--host  holds a control"),
    (
        &["produce", "--access-log", "/nowhere.log", "--host", "a\nb"],
        &[],
        "--host  holds a control character",
    ),
    (
        &["produce", "--access-log", "/nowhere.log", "--host", "a,b"],
        &[],
        "--host  names several hosts: name the one that the access log belongs to",
    ),
    (&["health", "--job", ""], &[], "--job  has an empty value"),
    (&["health", "--env-file", "/nowhere"], &[], "--env-file  /nowhere cannot be read"),
    (&["health", "http://127.0.0.1:1/x?y=1"], &[], "without a query or a fragment"),
    (&["status", "http://127.0.0.1:1/x#y"], &[], "without a query or a fragment"),
];

#[test]
fn every_mistake_is_reported_at_once_and_nothing_connects() {
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    server.set_nonblocking(true).expect("possible");
    let port = server.local_addr().expect("bound").port();
    for (args, variables, says) in MISTAKES {
        let mut command = program();
        command
            .env("KAFKA_URL", format!("127.0.0.1:{port}"))
            .env("KAFKA_TOPIC", "t")
            .env("KAFKA_GROUP", "g")
            .env("POSTGRES_URL", format!("postgres://127.0.0.1:{port}/d"))
            .args(args)
            .envs(variables.iter().copied());
        let began = Instant::now();
        let (code, printed, log) = run(&mut command);
        let took = began.elapsed();
        assert_eq!((code, &*printed), (Some(2), ""), "{args:?} {variables:?}:\n{log}");
        assert!(log.contains(says), "{args:?} {variables:?} does not say {says:?}:\n{log}");
        assert!(!log.contains(SECRET), "{args:?} {variables:?}:\n{log}");
        assert!(took < Duration::from_secs(5), "{args:?} {variables:?} took {took:?}");
    }
    let connected = server.accept().map(|(_, from)| from);
    assert!(connected.is_err(), "{connected:?}");
}

#[test]
fn an_unread_variable_is_logged() {
    let mut command = program();
    let (_, _, log) = run(command.env("SESSIONIZER_GPA", "6m").env("KAFKA_TOPICS", "t"));
    for says in ["SESSIONIZER_GPA is not", "mean SESSIONIZER_GAP?", "mean KAFKA_TOPIC?"] {
        assert!(log.contains(says), "{says:?} is missing in\n{log}");
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    for (args, says) in [
        (&["--help"][..], "Required environment variables"),
        (&["-h"], "--gap <DURATION>"),
        (&["help", "produce"], "KAFKA_TOPIC"),
        (&["audit", "--help"], "POSTGRES_URL"),
        (&["-V"], concat!("sessionizer ", env!("CARGO_PKG_VERSION"))),
        (&["--version"], "librdkafka 2."),
        (&["--version"], "OpenSSL 3."),
        (&["--version"], "sasl"),
    ] {
        let (code, printed, log) = run(program().args(args));
        assert!(code == Some(0) && printed.contains(says), "{args:?}: {printed}{log}");
        assert_eq!(log, "", "{args:?}");
    }
}

/// Runs a line of a shell; `$0` is the program.
fn shell(line: &str) -> (Option<i32>, String, String) {
    let program = program();
    let mut command = Command::new("bash");
    command.args(["-c", line]).arg(program.get_program());
    run(&mut command)
}

#[test]
fn an_output_that_nobody_takes_is_no_bug() {
    for line in ["$0 --help | true", "$0 --help | head -1", "$0 --version >/dev/full"] {
        let (_, _, log) = shell(&format!("set -o pipefail; {line}"));
        assert!(!log.contains("bug") && !log.contains("panicked"), "{line}:\n{log}");
    }
    for args in ["--help", "-V", "audit --help", "schema", "man", "completions bash"] {
        let (code, _, log) = shell(&format!("$0 {args} >/dev/full"));
        assert_eq!(code, Some(1), "{args}:\n{log}");
        assert!(log.contains("cannot write to standard output: No space left"), "{args}:\n{log}");
    }
}

#[test]
fn a_dumb_terminal_gets_plain_text() {
    if Command::new("script").arg("--version").output().is_err() {
        skipped("colours on terminals", "there is no script(1)");
        return;
    }
    for (terminal, has_colours) in [("xterm", true), ("dumb", false)] {
        // It runs its command on a terminal of its own.
        let line = format!("TERM={terminal} script -qec \"'$0' check --no-connect\" /dev/null");
        let (code, printed, log) = shell(&line);
        assert_eq!(code, Some(2), "{printed}{log}");
        assert_eq!(printed.contains('\x1b'), has_colours, "{terminal}: {printed:?}");
    }
}

#[test]
fn too_few_threads_are_refused_before_one_is_missing() {
    // The limit does not count for root, and counts everything that runs as one user.
    let limited = "setpriv --reuid=54321 --clear-groups prlimit --nproc=12";
    if !shell(&format!("{limited} $0 --version")).1.contains("sessionizer") {
        skipped("the limit on threads", "it needs root, and a directory that others may read");
        return;
    }
    let set = "export KAFKA_URL=127.0.0.1:1 KAFKA_TOPIC=t KAFKA_GROUP=g \
               POSTGRES_URL=postgres://127.0.0.1:1/d";
    let (code, _, log) = shell(&format!("{set}; exec {limited} $0"));
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("more threads, and needs at least") && log.contains("ulimit -u"), "{log}");
    let (code, printed, _) = shell(&format!("{set}; exec {limited} $0 check --no-connect"));
    assert!(code == Some(2) && printed.contains("SZ-S03"), "{printed}");
}

#[test]
fn too_few_files_are_refused_with_the_number_that_is_needed() {
    let set = "export KAFKA_URL=127.0.0.1:1 KAFKA_TOPIC=t KAFKA_GROUP=g \
               POSTGRES_URL=postgres://127.0.0.1:1/d";
    let (code, _, log) = shell(&format!("{set}; ulimit -n 48; exec $0"));
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("may open 48 files, and needs ") && log.contains("ulimit -n"), "{log}");
    // A limit that may be raised is raised.
    let (code, _, log) = shell(&format!("{set}; ulimit -S -n 48; exec $0 --start-timeout 0s"));
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("Kafka at 127.0.0.1:1 cannot be used"), "{log}");
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_of_the_write() {
    let set = "export KAFKA_URL=127.0.0.1:1 KAFKA_TOPIC=t KAFKA_GROUP=g \
               POSTGRES_URL=postgres://127.0.0.1:1/d; file=$(mktemp); trap 'rm $file' EXIT";
    // 1 KiB: the help is longer.
    let (code, _, log) = shell(&format!("{set}; ulimit -f 1; $0 --help >$file"));
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("cannot write to standard output: File too large"), "{log}");
    // A log that has become too long is no reason to end: it ends as it would have anyway.
    let start = "ulimit -f 1; $0 --start-timeout 0s 2>>$file; echo $?; wc -c <$file";
    let (code, printed, _) = shell(&format!("{set}; head -c 1000 /dev/zero >$file; {start}"));
    assert_eq!((code, printed.trim()), (Some(0), "1\n1024"));
    let (code, printed, _) = shell(&format!("{set}; $0 check --wait 1s 2>/dev/full"));
    assert_eq!(code, Some(1), "{printed}");
}
