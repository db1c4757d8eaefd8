//! Parses the address of Postgres: a JDBC URL as the Flink job used it, or `postgres://`. It is
//! pure.
//!
//! A password that is not escaped splits a URL in other places than its writer meant. So no message
//! repeats any part of a URL, and anything that looks like part of a login is not accepted as a
//! host or a database.

mod parameters;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use parameters::parameter;
use percent_encoding::percent_decode_str;
use sessionizer_core::secret::Secret;

/// How much TLS to require; the names are those of libpq and the JDBC driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsMode {
    Disable,
    /// TLS if the server offers it, without checking its certificate (also for `allow`).
    Prefer,
    /// TLS, without checking the certificate.
    Require,
    /// TLS, with a certificate signed by a known authority.
    VerifyCa,
    /// The same, with a certificate issued for this host.
    VerifyFull,
}

/// Everything that a connection needs. `Debug` and `Display` never show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    /// Host and port, tried in order.
    pub hosts: Vec<(String, u16)>,
    pub database: String,
    pub user: Option<String>,
    pub password: Option<String>,
    pub tls: TlsMode,
    /// Whether to bind the password exchange to the TLS connection, which detects a server in
    /// between.
    pub channel_binding: Option<ChannelBinding>,
    pub root_cert: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    /// The password of the client's encrypted key.
    pub client_key_password: Option<Secret>,
    /// Schemas for the search path; new tables go into the first.
    pub schemas: Vec<String>,
    pub connect_timeout: Duration,
    pub options: Option<String>,
    /// Parameters that have no effect here, to be mentioned once.
    pub ignored: Vec<String>,
}

/// Whether the password exchange must be bound to the TLS connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

impl PostgresUrl {
    /// Whether a connection needs certificates or keys: those of files that the URL names, or those
    /// that this system trusts.
    pub fn needs_certificates(&self) -> bool {
        let files = [&self.root_cert, &self.client_cert, &self.client_key];
        matches!(self.tls, TlsMode::VerifyCa | TlsMode::VerifyFull)
            || files.iter().any(|file| file.is_some())
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> =
            self.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        write!(f, "{}/{}", hosts.join(","), self.database)
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

const DEFAULT_PORT: u16 = 5432;

const FORM: &str = "jdbc:postgresql://host:5432/database or postgres://host:5432/database";

/// The most common reason why a URL cannot be parsed.
const ESCAPE: &str = "; if a user or password holds one of / @ : ? # & %, write it as %2F %40 %3A \
                      %3F %23 %26 %25, or set POSTGRES_USER and POSTGRES_PASSWORD instead";

/// Parses `jdbc:postgresql://host:port/database?…`, its short forms, or `postgres://…`. The error
/// says what is wrong and never repeats any part of the URL, which may hold a password.
pub fn parse(url: &str) -> Result<PostgresUrl, String> {
    let rest = ["jdbc:postgresql:", "postgresql:", "postgres:"]
        .iter()
        .find_map(|scheme| url.trim().strip_prefix(scheme))
        .ok_or_else(|| format!("must be of the form {FORM}"))?;
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut parsed = PostgresUrl {
        hosts: Vec::new(),
        database: String::new(),
        user: None,
        password: None,
        tls: TlsMode::Prefer,
        channel_binding: None,
        root_cert: None,
        client_cert: None,
        client_key: None,
        client_key_password: None,
        schemas: Vec::new(),
        connect_timeout: Duration::from_secs(10),
        options: None,
        ignored: Vec::new(),
    };
    let name = match place.strip_prefix("//") {
        Some(place) => {
            let (authority, database) = place.split_once('/').unwrap_or((place, ""));
            let hosts = login(&mut parsed, authority)?;
            parsed.hosts = hosts.split(',').map(host_and_port).collect::<Result<_, String>>()?;
            database
        }
        None => {
            // `jdbc:postgresql:database` and `jdbc:postgresql:/database` mean this machine.
            parsed.hosts = vec![("localhost".to_owned(), DEFAULT_PORT)];
            place.strip_prefix('/').unwrap_or(place)
        }
    };
    parsed.database = database(name)?;
    let mut known = BTreeSet::new();
    for (at, pair) in (1..).zip(query.split('&').filter(|pair| !pair.is_empty())) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name)?;
        parameter(&mut parsed, at, &name, decode(value)?)?;
        // Some have a name in JDBC and another in libpq.
        if !known.insert(name.to_ascii_lowercase().replace('_', "")) {
            return Err(format!("has the parameter {name} twice: only one of them can count"));
        }
    }
    if known.contains("ssl") && known.contains("sslmode") {
        return Err("has ssl and sslmode: leave out ssl, which stands for a mode".to_owned());
    }
    // As in libpq: whoever names an authority wants the certificate to be checked.
    if parsed.tls == TlsMode::Require && parsed.root_cert.is_some() {
        parsed.tls = TlsMode::VerifyCa;
    }
    Ok(parsed)
}

/// Parses `user:password@` and returns what follows.
fn login<'a>(parsed: &mut PostgresUrl, authority: &'a str) -> Result<&'a str, String> {
    let Some((login, hosts)) = authority.rsplit_once('@') else { return Ok(authority) };
    let (user, password) = match login.split_once(':') {
        Some((user, password)) => (user, Some(decode(password)?)),
        None => (login, None),
    };
    parsed.user = Some(decode(user)?).filter(|user| !user.is_empty());
    parsed.password = password;
    Ok(hosts)
}

fn database(text: &str) -> Result<String, String> {
    if text.len() > 1 && text.find('/') == Some(text.len() - 1) {
        return Err("has a / after the name of the database: remove it".to_owned());
    }
    // Not repeated: what looks like a parameter may be a password.
    if text.contains(['&', ';', '=']) {
        return Err(
            "has a &, ; or = in the name of the database: the first parameter begins with \
                    ?, the next with &"
                .to_owned(),
        );
    }
    if text.contains(['/', '@', ':', '#', '"', '\'', '\\']) || text.contains(char::is_whitespace) {
        return Err(format!(
            "has a character in the name of the database that must be escaped: \
                            write {FORM}{ESCAPE}"
        ));
    }
    match decode(text)? {
        name if name.is_empty() => {
            Err(format!("names no database: write {FORM}, with the name of yours"))
        }
        name => Ok(name),
    }
}

fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let text = if text.is_empty() { "localhost" } else { text };
    let (host, port) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => (host, Some(rest.strip_prefix(':').unwrap_or("?"))),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        None | Some("") => DEFAULT_PORT,
        Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
            format!("has a port that is not a number from 1 to 65535: write {FORM}{ESCAPE}")
        })?,
    };
    let legal = |c: char| c.is_alphanumeric() || "._-".contains(c);
    let is_address = text.starts_with('[') && host.parse::<std::net::Ipv6Addr>().is_ok();
    let host = decode(host)?;
    let is_host = !text.starts_with('[')
        && !host.is_empty()
        && (host.starts_with('/') || host.chars().all(legal));
    if !is_address && !is_host {
        return Err(format!(
            "has a host that is neither a name nor an address: write {FORM}{ESCAPE}"
        ));
    }
    Ok((host, port))
}

/// Decodes `%41` and the like. A `+` stays a `+`, as in the JDBC driver.
fn decode(text: &str) -> Result<String, String> {
    let mut escapes = text.split('%').skip(1);
    let is_escape =
        |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    if !escapes.all(is_escape) {
        return Err(format!("has a % that is not followed by two hexadecimal digits{ESCAPE}"));
    }
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| "has an escaped part that is not UTF-8".to_owned())?;
    if decoded.contains('\0') {
        return Err("has an escaped NUL in it".to_owned());
    }
    Ok(decoded.into_owned())
}
