//! What `check` advises: the remedy fits what is wrong, for files that settings name and for
//! connections to Postgres.

use crate::check::{bad, check, flat};
use crate::postgres::jdbc;
use crate::refusal::refused;
use crate::world::{World, finish};

const PATH: &str = "correct the path, or the file's permissions";
const REACH: &str = "that its port is reachable from here";

#[test]
fn what_is_wrong_with_a_hostfile_has_its_own_remedy() {
    let world = World::new("remedy-hosts");
    let file = std::env::temp_dir().join(format!("{}.hosts", world.name));
    let path = file.to_str().expect("UTF-8").to_owned();
    for (text, processes, sign, says) in [
        (
            "127.0.0.1:2101\n127.0.0.1:2101\n",
            "2",
            "FAIL",
            "each process needs an address of its own",
        ),
        ("127.0.0.1:2101\n", "2", "FAIL", "it needs a line host:port for each process"),
        ("127.0.0.1:2101\nx:y\n", "2", "FAIL", "it must be host:port, or [IPv6]:port"),
        ("127.0.0.1:2101\nx:y\n", "1", "FAIL", "give -n, or leave the hostfile out"),
        (
            "127.0.0.1:1\n127.0.0.1:2\n127.0.0.1:3\n",
            "2",
            "warn",
            "names 3 processes, and --processes is 2, so only the first 2 run the job give -n 3 if",
        ),
    ] {
        world.write(&file, text);
        let args = ["--no-connect", "--hostfile", &path, "-n", processes];
        let (code, said) = check(&world, &args, &[]);
        assert_eq!(code, if sign == "warn" { 0 } else { 2 }, "{text}: {said}");
        assert_eq!(bad(&said), [format!("{sign} SZ-S04")], "{text}: {said}");
        assert!(flat(&said).contains(says), "{says:?} is missing:\n{said}");
        assert!(!flat(&said).contains(PATH), "{said}");
    }
    // The last of the files: a start warns as well.
    let mut start = world.command();
    start.args(["--hostfile", &path, "-n", "2", "-p", "1", "--start-timeout", "0s"]);
    let mut start = crate::world::Running::start(start);
    start.wait_for("so only the first 2 run the job: give -n 3 if it is all of them");
    start.kill();
    let (_, said) = check(&world, &["--no-connect", "--hostfile", "/nope", "-n", "2"], &[]);
    assert!(flat(&said).contains(PATH), "{said}");
}

#[test]
fn a_connection_that_fails_for_another_reason_is_not_said_to_be_out_of_reach() {
    let world = World::new("remedy-postgres");
    world.create_topic(1);
    let url = jdbc(&world, "sslmode=verify-full&sslcert=/nope");
    for only in ["settings,postgres", "postgres"] {
        let (code, said) = check(&world, &["--only", only], &[("POSTGRES_URL", &url)]);
        let said = flat(&said);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("FAIL SZ-P01") && said.contains(PATH), "{said}");
        assert!(!said.contains(REACH), "{said}");
    }
    let options = "the parameter options in POSTGRES_URL";
    for value in ["-c%20nonsense", "-c%20no_such_thing=1", "-c%20work_mem=x", "-c%20port=1", "-x"] {
        let url = jdbc(&world, &format!("options={value}"));
        let (code, said) = check(&world, &["--only", "postgres"], &[("POSTGRES_URL", &url)]);
        let said = flat(&said);
        assert_eq!((code, bad_codes(&said)), (2, 1), "{value}: {said}");
        assert!(said.contains(options) && !said.contains(REACH), "{value}: {said}");
        refused(&world, &[], &[("POSTGRES_URL", &url)], 2, &[options]);
    }
    // No room for one more connection of this login.
    let role = world.role();
    world.execute(&format!("create role {role} login connection limit 0"));
    let env = [("POSTGRES_USER", &*role)];
    let (code, said) = check(&world, &["--only", "postgres"], &env);
    let said = flat(&said);
    assert!(code == 1 && said.contains("(53300)") && !said.contains(REACH), "{said}");
    assert!(said.contains("connection limit"), "{said}");
    let mut audit = world.command();
    audit.arg("audit").env("POSTGRES_USER", &role);
    let (_, log) = finish(audit);
    assert!(log.contains("(53300)") && !log.contains("reachable from here"), "{log}");
}

/// How many findings are failures.
fn bad_codes(said: &str) -> usize {
    said.matches("FAIL SZ-").count()
}
