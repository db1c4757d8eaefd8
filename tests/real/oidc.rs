//! OAUTHBEARER: a server issues tokens, and Kafka accepts them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::brokers::Broker;
use crate::kafka::visits;
use crate::kafka_rights::{CHECKS_RIGHTS, append, grant_least};
use crate::oracle::sessions;
use crate::skipped::skipped;
use crate::world::{World, finish};

const CLIENT: &str = "sessionizer-client";
const SECRET: &str = "wonder-4711";

fn base64(bytes: &[u8]) -> String {
    openssl::base64::encode_block(bytes)
}

/// An unsigned token, which the broker of this test accepts.
fn token() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = format!(r#"{{"sub":"alice","iat":{now},"exp":{}}}"#, now + 3_600);
    let part = |json: &str| {
        base64(json.as_bytes()).replace('+', "-").replace('/', "_").trim_end_matches('=').to_owned()
    };
    format!("{}.{}.", part(r#"{"alg":"none"}"#), part(&claims))
}

/// Answers one request as a token server does. Returns whether it came from the right client.
fn answer(stream: TcpStream) -> std::io::Result<bool> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length, mut known) = (String::new(), 0, false);
    let identity = format!("Basic {}", base64(format!("{CLIENT}:{SECRET}").as_bytes()));
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else {
            if line.trim().is_empty() {
                break;
            }
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap_or(0),
            "authorization" => known = value == identity,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (status, json) = match known {
        true => (
            "200 OK",
            format!(r#"{{"access_token":"{}","token_type":"Bearer","expires_in":3600}}"#, token()),
        ),
        false => ("401 Unauthorized", r#"{"error":"invalid_client"}"#.to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        json.len()
    );
    reader.into_inner().write_all(format!("{head}{json}").as_bytes())?;
    Ok(known)
}

/// Whether this build can fetch tokens.
fn has_oidc() -> bool {
    let program = Command::new(env!("CARGO_BIN_EXE_sessionizer")).arg("--version").output();
    let said = program.expect("the program was built").stdout;
    String::from_utf8_lossy(&said).contains(", oidc")
}

#[test]
fn a_token_of_an_oidc_server_logs_in() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A client that hangs up does not matter.
            let _ = answer(stream);
        }
    });
    let mut world = World::new("oidc");
    let job = |world: &World, url: &str, secret: &str, trust: &str| {
        let settings = format!(
            "security.protocol=SASL_SSL; sasl.mechanism=OAUTHBEARER; sasl.oauthbearer.method=oidc; \
             sasl.oauthbearer.client.id={CLIENT}; sasl.oauthbearer.client.secret={secret}; \
             sasl.oauthbearer.token.endpoint.url=http://{server}/token; {trust}"
        );
        let mut job = world.command();
        job.env("KAFKA_URL", url).env("SESSIONIZER_KAFKA_CONFIG", settings);
        job.args(["--until-end", "--start-timeout", "20s"]);
        let (status, log) = finish(job);
        assert!(!log.contains(secret), "{log}");
        (status.code(), log)
    };
    if !has_oidc() {
        let (code, log) = job(&world, &world.kafka, SECRET, "");
        assert_eq!(code, Some(2), "{log}");
        assert!(log.contains("has no OIDC") && log.contains("--features oidc"), "{log}");
        return skipped("a login by OIDC", "this build has no OIDC");
    }
    let mut broker = Broker::new("oidc");
    let address = broker.services(&format!("secure nobody {SECRET}"));
    append(
        &broker,
        "\nsasl.enabled.mechanisms=OAUTHBEARER\n\
         listener.name.secure.oauthbearer.sasl.jaas.config=\
         org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required \
         unsecuredLoginStringClaim_sub=\"broker\";\n",
    );
    append(&broker, CHECKS_RIGHTS);
    broker.address = broker.services("start");
    world.kafka.clone_from(&broker.address);
    world.create_topic(1);
    let events = visits("a", 20);
    world.send_events(0, &events);
    let trust = format!("ssl.ca.location={}", broker.directory.join("ca.pem").display());
    // The token names alice, who has no rights yet.
    let (code, log) = job(&world, &address, SECRET, &trust);
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("grant it READ and DESCRIBE"), "{log}");
    grant_least(&broker, "alice", &world);
    let (code, log) = job(&world, &address, SECRET, &trust);
    assert_eq!((code, log.contains("WARN")), (Some(0), false), "{log}");
    assert_eq!(world.rows(), sessions(&events));
    let (code, log) = job(&world, &address, "mistaken-0815", &trust);
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("invalid_client") && log.contains("sasl.* and ssl.*"), "{log}");
}
