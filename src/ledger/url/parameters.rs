//! The parameters of a URL: those that take effect, those that have none here, and those that are
//! refused.

use std::path::PathBuf;
use std::time::Duration;

use sessionizer_core::secret::Secret;

use super::{ChannelBinding, ESCAPE, PostgresUrl, TlsMode};

/// Parameters of the JDBC driver and libpq that affect neither the data nor the security of the
/// connection.
const HARMLESS: [&str; 52] = [
    "ApplicationName",
    "adaptiveFetch",
    "adaptiveFetchMaximum",
    "adaptiveFetchMinimum",
    "allowEncodingChanges",
    "application_name",
    "assumeMinServerVersion",
    "autosave",
    "binaryTransfer",
    "binaryTransferDisable",
    "binaryTransferEnable",
    "cancelSignalTimeout",
    "cleanupSavepoints",
    "client_encoding",
    "convertBooleanToNumeric",
    "databaseMetadataCacheFields",
    "databaseMetadataCacheFieldsMiB",
    "defaultRowFetchSize",
    "disableColumnSanitiser",
    "escapeSyntaxCallMode",
    "fallback_application_name",
    "groupStartupParameters",
    "hostRecheckSeconds",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "loadBalanceHosts",
    "load_balance_hosts",
    "logServerErrorDetail",
    "logUnclosedConnections",
    "loggerFile",
    "loggerLevel",
    "maxResultBuffer",
    "maxSendBufferSize",
    "preferQueryMode",
    "prepareThreshold",
    "preparedStatementCacheQueries",
    "preparedStatementCacheSizeMiB",
    "queryTimeout",
    "quoteReturningIdentifiers",
    "reWriteBatchedInserts",
    "receiveBufferSize",
    "sendBufferSize",
    "socketTimeout",
    "sslResponseTimeout",
    "stringtype",
    "tcpKeepAlive",
    "tcpNoDelay",
    "tcp_user_timeout",
    "unknownLength",
    "xmlFactoryFactory",
];

/// Parameters that affect security and are not supported. Ignoring one could make a connection less
/// secure than its writer thinks.
const NOT_SUPPORTED: [(&str, &str); 27] = [
    ("authenticationPluginClassName", "set POSTGRES_PASSWORD instead"),
    ("gsslib", "Kerberos is not available"),
    ("gssdelegation", "Kerberos is not available"),
    ("gssUseDefaultCreds", "Kerberos is not available"),
    ("jaasApplicationName", "Kerberos is not available"),
    ("jaasLogin", "Kerberos is not available"),
    ("kerberosServerName", "Kerberos is not available"),
    ("krbsrvname", "Kerberos is not available"),
    ("localSocketAddress", "the system chooses the local address"),
    ("passfile", "set POSTGRES_PASSWORD instead"),
    ("replication", "the job needs a connection for SQL"),
    ("requireAuth", "channelBinding=require protects the password from a false server"),
    ("require_auth", "channelBinding=require protects the password from a false server"),
    ("requirepeer", "use sslmode=verify-full"),
    ("service", "write the host and the database into the URL"),
    ("socketFactory", "write the host and the port into the URL"),
    ("socketFactoryArg", "write the host and the port into the URL"),
    ("sslcertmode", "name a certificate by sslcert, or none"),
    ("sslcrl", "certificate revocation lists are not read"),
    ("sslcrldir", "certificate revocation lists are not read"),
    ("sslfactory", "use sslmode, sslrootcert, sslcert and sslkey"),
    ("sslfactoryarg", "use sslmode, sslrootcert, sslcert and sslkey"),
    ("sslhostnameverifier", "use sslmode=verify-full"),
    ("sslpasswordcallback", "use sslpassword"),
    ("ssl_max_protocol_version", "OpenSSL's own limits apply"),
    ("ssl_min_protocol_version", "OpenSSL's own limits apply"),
    ("sspiServiceClass", "SSPI is not available"),
];

/// Applies the parameter at position `at`, counted from 1.
pub(super) fn parameter(
    url: &mut PostgresUrl,
    at: u32,
    name: &str,
    value: String,
) -> Result<(), String> {
    match name {
        "user" => url.user = Some(value),
        "password" => url.password = Some(value),
        "sslmode" => url.tls = tls_mode(&value)?,
        // As in the JDBC driver: `ssl=true` without a mode asks for full verification.
        "ssl" => match value.as_str() {
            "" | "true" => url.tls = TlsMode::VerifyFull,
            "false" => {}
            _ => return Err("has an ssl that is not true or false".to_owned()),
        },
        "sslrootcert" => url.root_cert = file(value),
        "sslcert" => url.client_cert = file(value),
        "sslkey" => url.client_key = file(value),
        "sslpassword" => url.client_key_password = Some(Secret::new(value)),
        "channelBinding" | "channel_binding" => {
            url.channel_binding = Some(match value.as_str() {
                "disable" => ChannelBinding::Disable,
                "prefer" => ChannelBinding::Prefer,
                "require" => ChannelBinding::Require,
                _ => return Err(format!("has a {name} that is not disable, prefer or require")),
            });
        }
        "currentSchema" => url.schemas = schemas(&value)?,
        "options" => url.options = Some(value),
        "connectTimeout" | "connect_timeout" | "loginTimeout" => {
            let seconds = value.parse().ok().filter(|seconds| (1..=3_600).contains(seconds));
            let seconds = seconds.ok_or_else(|| {
                format!("has a {name} that is not a number of seconds, 1 to 3600")
            })?;
            url.connect_timeout = Duration::from_secs(seconds);
        }
        "host" | "port" | "dbname" | "hostaddr" => {
            return Err(format!("has the parameter {name}: it belongs before the question mark"));
        }
        _ => return only_if_harmless(url, at, name, &value),
    }
    Ok(())
}

/// The schemas of a search path as Postgres reads it, which is what the JDBC driver passes on: names
/// without quotes are in lower case, and a quote within quotes is written twice.
fn schemas(path: &str) -> Result<Vec<String>, String> {
    let mut schemas = Vec::new();
    let mut rest = path.trim();
    loop {
        let (schema, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_name(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].trim_end().to_ascii_lowercase(), &rest[end..])
            }
        };
        if schema.is_empty() {
            return Err("has a currentSchema without a name: write one, or leave it out".to_owned());
        }
        if !after.is_empty() && !after.starts_with(',') || schema.contains(char::is_whitespace) {
            return Err("has a currentSchema that is not names with commas in between".to_owned());
        }
        schemas.push(schema);
        match after.strip_prefix(',') {
            Some(more) => rest = more.trim_start(),
            None => return Ok(schemas),
        }
    }
}

/// A name up to its closing quote, and what follows.
fn quoted_name(text: &str) -> Result<(String, &str), String> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let Some((part, after)) = rest.split_once('"') else {
            return Err("has a currentSchema with a quote that is not closed".to_owned());
        };
        name.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return Ok((name, after.trim_start())),
        }
    }
}

/// Returns the path; `None` for an empty value.
fn file(value: String) -> Option<PathBuf> {
    Some(value).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Accepts a parameter that has no effect, or that asks for what holds anyway.
fn only_if_harmless(url: &mut PostgresUrl, at: u32, name: &str, value: &str) -> Result<(), String> {
    let allowed: &[&str] = match name {
        "gssEncMode" | "gssencmode" => &["disable", "allow", "prefer"],
        "sslNegotiation" | "sslnegotiation" => &["postgres"],
        "sslsni" => &["1"],
        "sslcompression" => &["0"],
        "readOnly" => &["false"],
        // Every session is on a server that accepts writes.
        "targetServerType" => &["any", "primary", "master", "preferPrimary"],
        "target_session_attrs" => &["any", "read-write", "primary"],
        _ => {
            if HARMLESS.contains(&name) {
                url.ignored.push(name.to_owned());
                return Ok(());
            }
            if let Some((name, why)) = NOT_SUPPORTED.iter().find(|(known, _)| *known == name) {
                return Err(format!("has the parameter {name}, which is not supported: {why}"));
            }
            return Err(format!(
                "has an unknown parameter, number {at} after the question mark{ESCAPE}"
            ));
        }
    };
    // Only the names listed above get here, so the message repeats nothing else.
    if allowed.contains(&value) {
        return Ok(());
    }
    let why = match name {
        "targetServerType" | "target_session_attrs" | "readOnly" => {
            ": the job writes, it needs the primary server"
        }
        _ => "",
    };
    Err(format!("has a {name} that is not supported; it can be {}{why}", allowed.join(" or ")))
}

fn tls_mode(value: &str) -> Result<TlsMode, String> {
    match value {
        "disable" => Ok(TlsMode::Disable),
        "allow" | "prefer" => Ok(TlsMode::Prefer),
        "require" => Ok(TlsMode::Require),
        "verify-ca" => Ok(TlsMode::VerifyCa),
        "verify-full" => Ok(TlsMode::VerifyFull),
        _ => Err("has an sslmode that is not known; it can be disable, allow, prefer, require, \
                  verify-ca or verify-full"
            .to_owned()),
    }
}
