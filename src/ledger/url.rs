//! Where Postgres is: a JDBC URL as the Flink job had it, or `postgres://`. Pure.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How much TLS is asked for; the names are those of libpq and of the JDBC driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsMode {
    Disable,
    /// TLS if the server offers it, without a look at its certificate (also for `allow`).
    Prefer,
    /// TLS, without a look at the certificate.
    Require,
    /// TLS, and the certificate is signed by a known authority.
    VerifyCa,
    /// The same, and it is made out for this host.
    VerifyFull,
}

/// All that a connection needs. Its `Debug` and `Display` never show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    /// Host and port, tried in order.
    pub hosts: Vec<(String, u16)>,
    /// `None`: the name of the user.
    pub database: Option<String>,
    pub user: Option<String>,
    pub password: Option<String>,
    pub tls: TlsMode,
    pub root_cert: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    /// Schemas for the search path, the first takes new tables.
    pub schemas: Vec<String>,
    pub connect_timeout: Duration,
    pub options: Option<String>,
    /// Parameters that mean nothing here, to be mentioned once.
    pub ignored: Vec<String>,
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> =
            self.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        write!(f, "{}/{}", hosts.join(","), self.database.as_deref().unwrap_or(""))
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

const DEFAULT_PORT: u16 = 5432;

/// Reads `jdbc:postgresql://host:port/database?…`, its short forms, or `postgres://…`. The error
/// says what is wrong and never repeats the URL, which may hold a password.
pub fn parse(url: &str) -> Result<PostgresUrl, String> {
    let rest = ["jdbc:postgresql:", "postgresql:", "postgres:"]
        .iter()
        .find_map(|scheme| url.trim().strip_prefix(scheme))
        .ok_or("it must begin with jdbc:postgresql:// or postgres://")?;
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut parsed = PostgresUrl {
        hosts: Vec::new(),
        database: None,
        user: None,
        password: None,
        tls: TlsMode::Prefer,
        root_cert: None,
        client_cert: None,
        client_key: None,
        schemas: Vec::new(),
        connect_timeout: Duration::from_secs(10),
        options: None,
        ignored: Vec::new(),
    };
    match place.strip_prefix("//") {
        Some(place) => {
            let (authority, database) = place.split_once('/').unwrap_or((place, ""));
            let hosts = match authority.rsplit_once('@') {
                Some((login, hosts)) => {
                    let (user, password) = match login.split_once(':') {
                        Some((user, password)) => (user, Some(decode(password)?)),
                        None => (login, None),
                    };
                    parsed.user = Some(decode(user)?).filter(|user| !user.is_empty());
                    parsed.password = password;
                    hosts
                }
                None => authority,
            };
            parsed.hosts = hosts.split(',').map(host_and_port).collect::<Result<_, String>>()?;
            parsed.database = Some(decode(database)?).filter(|name| !name.is_empty());
        }
        None => {
            // `jdbc:postgresql:database` and `jdbc:postgresql:/`: on this machine.
            parsed.hosts = vec![("localhost".to_owned(), DEFAULT_PORT)];
            let database = decode(place.trim_start_matches('/'))?;
            parsed.database = Some(database).filter(|name| !name.is_empty());
        }
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        parameter(&mut parsed, &decode(name)?, decode(value)?)?;
    }
    Ok(parsed)
}

fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let text = if text.is_empty() { "localhost" } else { text };
    let (host, port) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':').unwrap_or("")),
        None => text.split_once(':').unwrap_or((text, "")),
    };
    let port = match port {
        "" => DEFAULT_PORT,
        port => {
            port.parse().map_err(|_| format!("the port {port:?} is not a number up to 65535"))?
        }
    };
    Ok((decode(host)?, port))
}

fn parameter(url: &mut PostgresUrl, name: &str, value: String) -> Result<(), String> {
    match name {
        "user" => url.user = Some(value),
        "password" => url.password = Some(value),
        "sslmode" => url.tls = tls_mode(&value)?,
        // As the JDBC driver has it: `ssl=true` without a mode asks for everything.
        "ssl" if value.is_empty() || value == "true" => url.tls = TlsMode::VerifyFull,
        "ssl" => {}
        "sslrootcert" => url.root_cert = Some(value.into()),
        "sslcert" => url.client_cert = Some(value.into()),
        "sslkey" => url.client_key = Some(value.into()),
        "currentSchema" => {
            let schemas = value.split(',').map(|schema| schema.trim().to_owned());
            url.schemas = schemas.filter(|schema| !schema.is_empty()).collect();
        }
        "options" => url.options = Some(value),
        "connectTimeout" | "connect_timeout" => {
            let seconds =
                value.parse().map_err(|_| format!("{name} is not a number of seconds"))?;
            url.connect_timeout = Duration::from_secs(seconds);
        }
        "host" | "port" | "dbname" => {
            return Err(format!("{name} belongs before the question mark"));
        }
        _ => url.ignored.push(name.to_owned()),
    }
    Ok(())
}

fn tls_mode(value: &str) -> Result<TlsMode, String> {
    match value {
        "disable" => Ok(TlsMode::Disable),
        "allow" | "prefer" => Ok(TlsMode::Prefer),
        "require" => Ok(TlsMode::Require),
        "verify-ca" => Ok(TlsMode::VerifyCa),
        "verify-full" => Ok(TlsMode::VerifyFull),
        _ => Err(format!(
            "sslmode is {value:?}; it can be disable, allow, prefer, require, verify-ca or \
             verify-full"
        )),
    }
}

/// Resolves `%41` and the like; a `+` stays one, as the JDBC driver keeps it in a path.
fn decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let value = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(value.ok_or("a % is not followed by two hexadecimal digits")?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| "an escaped part is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str) -> (String, u16, Option<String>) {
        let parsed = parse(url).unwrap_or_else(|why| panic!("{url}: {why}"));
        let (host, port) = parsed.hosts[0].clone();
        (host, port, parsed.database)
    }

    #[test]
    fn every_form_of_the_url_names_a_place() {
        let at = |host: &str, port, database: &str| {
            (host.to_owned(), port, Some(database.to_owned()).filter(|name| !name.is_empty()))
        };
        let cases = [
            ("jdbc:postgresql://db.example:6432/web", at("db.example", 6432, "web")),
            ("jdbc:postgresql://db.example/web", at("db.example", 5432, "web")),
            ("jdbc:postgresql://db.example", at("db.example", 5432, "")),
            ("jdbc:postgresql://db.example/", at("db.example", 5432, "")),
            ("jdbc:postgresql:web", at("localhost", 5432, "web")),
            ("jdbc:postgresql:/", at("localhost", 5432, "")),
            ("jdbc:postgresql:///web", at("localhost", 5432, "web")),
            ("jdbc:postgresql://[::1]:5433/web", at("::1", 5433, "web")),
            ("postgres://db.example/web", at("db.example", 5432, "web")),
            ("postgresql://u:p@db.example:1/a%20b", at("db.example", 1, "a b")),
        ];
        for (url, want) in cases {
            assert_eq!(place(url), want, "{url}");
        }
        let hosts = parse("jdbc:postgresql://a:1,b/web").expect("valid").hosts;
        assert_eq!(hosts, [("a".to_owned(), 1), ("b".to_owned(), 5432)]);
    }

    #[test]
    fn parameters_are_those_of_the_jdbc_driver() {
        let url = parse(
            "jdbc:postgresql://h/d?user=me&password=s%26cret&sslmode=verify-ca&sslrootcert=/ca.pem\
             &currentSchema=app,public&connectTimeout=3&reWriteBatchedInserts=true",
        )
        .expect("valid");
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("me"), Some("s&cret")));
        assert_eq!((url.tls, url.connect_timeout.as_secs()), (TlsMode::VerifyCa, 3));
        assert_eq!(url.schemas, ["app", "public"]);
        assert_eq!(url.ignored, ["reWriteBatchedInserts"]);
        assert_eq!(parse("jdbc:postgresql://h/d?ssl=true").expect("ok").tls, TlsMode::VerifyFull);
        assert_eq!(parse("jdbc:postgresql://h/d").expect("ok").tls, TlsMode::Prefer);
        let login = parse("postgres://me:p%40ss@h/d").expect("valid");
        assert_eq!(login.password.as_deref(), Some("p@ss"));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        let cases = [
            ("http://h/d", "must begin with"),
            ("", "must begin with"),
            ("postgres://u:secret@h:port/d", "the port"),
            ("jdbc:postgresql://h/d?password=secret&sslmode=maybe", "sslmode is \"maybe\""),
            ("jdbc:postgresql://h/d?password=secret%4", "two hexadecimal digits"),
            ("jdbc:postgresql://h/d?connectTimeout=soon", "number of seconds"),
        ];
        for (url, want) in cases {
            let why = parse(url).expect_err(url);
            assert!(why.contains(want) && !why.contains("secret"), "{url}: {why}");
        }
        let shown = format!("{0} {0:?}", parse("postgres://u:secret@h/d").expect("valid"));
        assert_eq!(shown, "h:5432/d h:5432/d");
    }
}
