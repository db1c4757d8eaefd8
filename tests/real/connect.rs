//! Connecting to Postgres: TLS, passwords, and a role with few rights.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509NameBuilder};

use crate::oracle::event;
use crate::postgres::{MINUTE, TEN, jdbc, world_with_an_event};
use crate::refusal::{refused, try_run};
use crate::server::Server;
use crate::world::World;

/// Appends to a file of the server, or replaces it, and keeps its owner.
pub fn write(path: &Path, owner: &Path, contents: &[u8], mode: u32) {
    std::fs::write(path, contents).expect("written");
    let owner = std::fs::metadata(owner).expect("there");
    chown(path, Some(owner.uid()), Some(owner.gid())).expect("the server's user owns its files");
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("ours");
}

/// A certificate for `name`, signed by `authority` or by itself.
fn certificate(name: &str, authority: Option<&(X509, PKey<Private>)>) -> (X509, PKey<Private>) {
    let build = || -> Result<(X509, PKey<Private>), openssl::error::ErrorStack> {
        let key = PKey::from_rsa(Rsa::generate(2048)?)?;
        let mut subject = X509NameBuilder::new()?;
        subject.append_entry_by_nid(Nid::COMMONNAME, name)?;
        let subject = subject.build();
        let mut builder = X509Builder::new()?;
        builder.set_version(2)?;
        let serial = BigNum::from_u32(if authority.is_some() { 2 } else { 1 })?;
        builder.set_serial_number(&*serial.to_asn1_integer()?)?;
        builder.set_subject_name(&subject)?;
        builder
            .set_issuer_name(authority.map_or(&*subject, |(issuer, _)| issuer.subject_name()))?;
        builder.set_pubkey(&key)?;
        builder.set_not_before(&*Asn1Time::days_from_now(0)?)?;
        builder.set_not_after(&*Asn1Time::days_from_now(2)?)?;
        match authority {
            None => builder.append_extension(BasicConstraints::new().critical().ca().build()?)?,
            Some((issuer, _)) => {
                let context = builder.x509v3_context(Some(issuer), None);
                let names = SubjectAlternativeName::new().dns(name).build(&context)?;
                builder.append_extension(names)?;
            }
        }
        builder.sign(authority.map_or(&key, |(_, key)| key), MessageDigest::sha256())?;
        Ok((builder.build(), key))
    };
    build().expect("a certificate can be made")
}

/// A server with TLS for `localhost`, and the files of its authority and of another one.
pub fn server_with_tls(test: &str) -> (Server, PathBuf, PathBuf) {
    let server = Server::start(test);
    let data = server.directory.join("data");
    let [ours, other] = ["ours", "other"].map(|name| certificate(name, None));
    let (certificate, key) = certificate("localhost", Some(&ours));
    let pem = certificate.to_pem().expect("PEM");
    write(&data.join("server.crt"), &data, &pem, 0o600);
    write(&data.join("server.key"), &data, &key.private_key_to_pem_pkcs8().expect("PEM"), 0o600);
    let mut settings = std::fs::read(data.join("postgresql.conf")).expect("there");
    settings.extend(b"\nssl = on\n");
    write(&data.join("postgresql.conf"), &data, &settings, 0o600);
    let rules = b"hostssl all careful 127.0.0.1/32 trust\nhost all postgres 127.0.0.1/32 trust\n";
    write(&data.join("pg_hba.conf"), &data, rules, 0o600);
    server.act("restart");
    let files = [("ours", ours), ("other", other)].map(|(name, (authority, _))| {
        let file = server.directory.join(format!("{name}.pem"));
        std::fs::write(&file, authority.to_pem().expect("PEM")).expect("written");
        file
    });
    let [ours, other] = files;
    (server, ours, other)
}

#[test]
fn tls_is_as_strict_as_the_url_asks_for() {
    let (server, ours, other) = server_with_tls("tls");
    let world = World::on(&server, "tls");
    world.create_topic(1);
    world.execute("create role careful login superuser");
    let port = world.server.rsplit_once(':').expect("a port").1;
    let url = |host: &str, parameters: &str| {
        format!("jdbc:postgresql://{host}:{port}/{}?{parameters}", world.database)
    };
    let trust = |file: &Path| format!("sslrootcert={}", file.display());
    let (ours, other) = (trust(&ours), trust(&other));
    for (host, parameters) in [
        ("127.0.0.1", "sslmode=prefer".to_owned()),
        ("127.0.0.1", "sslmode=require".to_owned()),
        ("127.0.0.1", format!("sslmode=verify-ca&{ours}")),
        ("127.0.0.1", format!("sslmode=require&{ours}")),
        ("localhost", format!("sslmode=verify-full&{ours}")),
        ("localhost", format!("ssl=true&{ours}")),
    ] {
        let env = [("POSTGRES_URL", &*url(host, &parameters)), ("POSTGRES_USER", "careful")];
        let (code, log) = try_run(&world, &[], &env);
        assert_eq!(code, 0, "{host} {parameters}:\n{log}");
    }
    let missing = "sslmode=verify-ca&sslrootcert=/nowhere/ca.pem".to_owned();
    for (host, parameters, code, says) in [
        ("127.0.0.1", format!("sslmode=verify-full&{ours}"), 2, ["certificate", "mismatch"]),
        ("localhost", format!("sslmode=verify-full&{other}"), 2, ["certificate", "issuer"]),
        ("127.0.0.1", format!("sslmode=verify-ca&{other}"), 2, ["certificate", "issuer"]),
        ("127.0.0.1", format!("sslmode=require&{other}"), 2, ["certificate", "issuer"]),
        ("localhost", "sslmode=verify-full".to_owned(), 2, ["certificate", "issuer"]),
        ("127.0.0.1", "sslmode=disable".to_owned(), 2, ["no pg_hba.conf entry", "sslmode"]),
        ("127.0.0.1", missing, 2, ["sslrootcert", "/nowhere/ca.pem"]),
    ] {
        let env = [("POSTGRES_URL", &*url(host, &parameters)), ("POSTGRES_USER", "careful")];
        refused(&world, &[], &env, code, &says);
    }
    let env = [("POSTGRES_URL", &*url("127.0.0.1", "sslmode=disable"))];
    assert_eq!(try_run(&world, &[], &env).0, 0, "a user who may come without TLS");
}

#[test]
fn tls_that_the_server_lacks_is_reported() {
    let server = Server::start("plain");
    let world = World::on(&server, "plain");
    world.create_topic(1);
    let url = jdbc(&world, "sslmode=require");
    refused(&world, &[], &[("POSTGRES_URL", &url)], 2, &["server does not support TLS", "sslmode"]);
    // Without a password's exchange over TLS, nothing is bound.
    let url = jdbc(&world, "channelBinding=require");
    refused(&world, &[], &[("POSTGRES_URL", &url)], 2, &["channel binding", "channelBinding"]);
    let (code, log) = try_run(&world, &[], &[("POSTGRES_URL", &jdbc(&world, "sslmode=prefer"))]);
    assert_eq!(code, 0, "{log}");
}

#[test]
fn a_password_is_used_and_never_shown() {
    let server = Server::start("password");
    let world = World::on(&server, "password");
    world.create_topic(1);
    let (right, escaped, wrong) = ("r1ght %@:/ä", "r1ght%20%25%40%3A%2F%C3%A4", "wr0ng-%41");
    world.execute(&format!(
        "set password_encryption to 'scram-sha-256';
         create role alice login superuser password '{right}'"
    ));
    let data = server.directory.join("data");
    let rules = b"host all alice 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n";
    write(&data.join("pg_hba.conf"), &data, rules, 0o600);
    world.execute("select pg_reload_conf()");
    let bare = format!("{}/{}", world.server, world.database);
    let plain = format!("jdbc:postgresql://{bare}");
    let parameter = format!("{plain}?user=alice&password={escaped}");
    let authority = format!("postgres://alice:{escaped}@{bare}");
    let debug = ("RUST_LOG", "debug");
    for env in [
        [("POSTGRES_URL", &*plain), ("POSTGRES_USER", "alice"), ("POSTGRES_PASSWORD", right)],
        [("POSTGRES_URL", &*parameter), ("POSTGRES_USER", "bob"), ("POSTGRES_PASSWORD", wrong)],
        [("POSTGRES_URL", &*authority), ("POSTGRES_USER", ""), ("POSTGRES_PASSWORD", "")],
    ] {
        let (code, log) = try_run(&world, &[], &[&env[..], &[debug]].concat());
        assert_eq!(code, 0, "{log}");
        for secret in [right, escaped, wrong] {
            assert!(!log.contains(secret), "{log}");
        }
    }
    let wrong_url = format!("postgres://alice:{}@{bare}", wrong.replace('%', "%25"));
    for env in [
        [("POSTGRES_URL", &*plain), ("POSTGRES_USER", "alice"), ("POSTGRES_PASSWORD", wrong)],
        [("POSTGRES_URL", &*wrong_url), ("POSTGRES_USER", "alice"), ("POSTGRES_PASSWORD", right)],
    ] {
        let env = [&env[..], &[debug]].concat();
        let log = refused(&world, &[], &env, 2, &["POSTGRES_PASSWORD", "alice"]);
        for secret in [right, wrong, "wr0ng"] {
            assert!(!log.contains(secret), "{log}");
        }
    }
}

#[test]
fn a_role_that_may_create_nothing_needs_a_schema_and_a_table() {
    let world = world_with_an_event("role");
    let role = world.role();
    world.execute(&format!("create role {role} login; revoke create on schema public from public"));
    let env = [("POSTGRES_USER", &*role)];
    let says = ["create schema sessionizer authorization", "select, insert and delete"];
    refused(&world, &[], &env, 2, &says);
    world.execute(&format!(
        "create schema sessionizer authorization {role};
         create table sessionized_events (
             ip text collate \"C\", host text collate \"C\", session_start timestamptz(3),
             session_end timestamptz(3), num_logs bigint not null,
             primary key (ip, host, session_start));"
    ));
    let says = ["lacks the right to select, insert, delete on the table", "grant it: grant select"];
    refused(&world, &[], &env, 2, &says);
    world.execute(&format!("grant select, insert, delete on sessionized_events to {role}"));
    for time in [TEN, TEN - MINUTE] {
        world.send_events(0, &[event("10.0.0.1", "h", time)]);
        let (code, log) = try_run(&world, &[], &env);
        assert_eq!(code, 0, "{log}");
        assert_eq!(world.rows(), world.answer(&world.name));
    }
    assert_eq!(world.imbalance(), "0");
}
