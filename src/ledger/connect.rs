//! Connections: TLS as the URL requires, keepalives and the search path.

use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use openssl::pkey::PKey;
use openssl::ssl::{SslConnector, SslConnectorBuilder, SslMethod, SslVerifyMode};
use postgres::config::{ChannelBinding, SslMode, TargetSessionAttrs};
use postgres::{Client, Config};
use postgres_openssl::MakeTlsConnector;
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::secret::Secret;

use crate::config::{is_pipe, read_file};
use crate::dataflow::ports::{Cause, Failure, LedgerError};
use crate::ledger::blocked::WatchedClient;
use crate::ledger::errors::{classify, classify_connecting};
use crate::ledger::unverified::Unverified;
use crate::ledger::url;
use crate::ledger::url::{PostgresUrl, TlsMode};
use crate::ledger::{LedgerConfig, trust};
use crate::ui::text;
use crate::ui::tls::{CORRECT_PATH, meaning};

/// Types are told apart by their names, which this setting would quote.
const PLAIN_NAMES: &str = "set quote_all_identifiers = off;";

/// Limits idle transactions, unless the server does so already. Ours are never idle for long. The
/// transaction of a client that was frozen or cut off would keep its locks, and so keep every later
/// instance waiting, until somebody ended it by hand.
const END_IDLE_TRANSACTIONS: &str =
    "select set_config('idle_in_transaction_session_timeout', '60000', false)
     where current_setting('idle_in_transaction_session_timeout') = '0'";

/// How long a server that has accepted a connection may take to answer a command.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The first step, as errors name it.
pub(super) const CONNECTING: &str = "connecting";

/// What to look at if a connection keeps failing.
pub fn to_check(cause: Cause) -> &'static str {
    match cause {
        Cause::ReadOnly => "check POSTGRES_URL",
        Cause::Timeout | Cause::Answered => "the server has answered this: its log may say more",
        Cause::Other => "check POSTGRES_URL, and that the server is up and reachable from here",
    }
}

/// A way to open a connection.
pub type Open = fn(&LedgerConfig) -> Result<Client, LedgerError>;

/// Opens a connection to a server that takes writes.
pub fn connect(config: &LedgerConfig) -> Result<Client, LedgerError> {
    // After a failover, the old primary is a standby, which refuses the job's writes.
    open(config, TargetSessionAttrs::ReadWrite)
}

/// Opens a connection for somebody who only reads: to a standby as well.
pub fn connect_any(config: &LedgerConfig) -> Result<Client, LedgerError> {
    open(config, TargetSessionAttrs::Any)
}

/// Opens a connection for somebody who only reads: to a server that takes writes, or else to any.
pub fn connect_preferring_primary(config: &LedgerConfig) -> Result<Client, LedgerError> {
    connect(config).or_else(|why| match &why {
        LedgerError::Retry(failure) if failure.cause == Cause::ReadOnly => connect_any(config),
        _ => Err(why),
    })
}

/// Opens a connection for a command. A server that accepts the connection and says nothing ends it,
/// and whoever waits for a statement is told why.
pub fn for_command(config: &LedgerConfig, open: Open) -> Result<WatchedClient, LedgerError> {
    within(command_timeout(config), config, open)
        .and_then(|client| WatchedClient::new(client, config))
        .map_err(|error| with_server(error, config))
}

/// Names the server that a command could not connect to, and what to look at.
fn with_server(error: LedgerError, config: &LedgerConfig) -> LedgerError {
    match error {
        LedgerError::Retry(Failure { doing, why, cause }) if doing == CONNECTING => {
            let doing = format!("{CONNECTING} to {}", config.url);
            LedgerError::Retry(Failure { doing, why: why.or_remedy("; ", to_check(cause)), cause })
        }
        other => other,
    }
}

/// How long a command waits for a connection.
fn command_timeout(config: &LedgerConfig) -> Duration {
    let hosts = u32::try_from(config.url.hosts.len()).unwrap_or(1);
    ANSWER_TIMEOUT + config.url.connect_timeout.saturating_mul(hosts)
}

/// Opens a connection within `timeout`: whatever accepts it may never answer.
pub fn within(
    timeout: Duration,
    config: &LedgerConfig,
    open: impl FnOnce(&LedgerConfig) -> Result<Client, LedgerError> + Send + 'static,
) -> Result<Client, LedgerError> {
    let (reply, answer) = channel();
    let config = config.clone();
    // After too long a silence, nobody receives this any more.
    let work = move || drop(reply.send(open(&config)));
    let thread = thread::Builder::new().name("postgres-connect".to_owned());
    thread.spawn(work).expect("a thread can be started");
    answer.recv_timeout(timeout).unwrap_or_else(|_| {
        let waited = text::duration(timeout);
        let (doing, why) = (CONNECTING.to_owned(), format!("no answer for {waited}").into());
        Err(LedgerError::Retry(Failure { doing, why, cause: Cause::Other }))
    })
}

fn open(config: &LedgerConfig, servers: TargetSessionAttrs) -> Result<Client, LedgerError> {
    let mut client = dial(config, &application_name(&config.job), servers)?;
    configure_session(&mut client, config)?;
    trust::refuse_foreign(&mut client)?;
    Ok(client)
}

/// Opens a connection and leaves the session as the server has made it.
pub fn dial(
    config: &LedgerConfig,
    application: &str,
    servers: TargetSessionAttrs,
) -> Result<Client, LedgerError> {
    let url = &config.url;
    let mut settings = Config::new();
    for (host, port) in &url.hosts {
        settings.host(host).port(*port);
    }
    settings
        .user(&config.user)
        .password(config.password.reveal())
        .dbname(&url.database)
        .application_name(application)
        .connect_timeout(url.connect_timeout)
        // Notice a peer that vanished within about half a minute: everything waits for commits, so
        // the kernel's default of two hours would stall the job.
        .keepalives_idle(Duration::from_secs(10))
        .keepalives_interval(Duration::from_secs(5))
        .keepalives_retries(3)
        .tcp_user_timeout(Duration::from_secs(30))
        // Anything in a notice that matters to us arrives as an error, too.
        .notice_callback(|notice| log::debug!("{}: {}", notice.severity(), notice.message()))
        .ssl_mode(match url.tls {
            TlsMode::Disable => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
        });
    if let Some(options) = &url.options {
        settings.options(options);
    }
    settings.target_session_attrs(servers);
    settings.channel_binding(match url.channel_binding {
        Some(url::ChannelBinding::Disable) => ChannelBinding::Disable,
        Some(url::ChannelBinding::Require) => ChannelBinding::Require,
        Some(url::ChannelBinding::Prefer) | None => ChannelBinding::Prefer,
    });
    let client = if url.needs_certificates() {
        let tls = tls(url).map_err(|why| LedgerError::Fatal(Fault::config(why)))?;
        settings.connect(tls)
    } else {
        settings.connect(Unverified)
    };
    client.map_err(|why| classify_connecting(&why, url.options.is_some()))
}

/// Gives the session the settings that the job depends on.
pub fn configure_session(client: &mut Client, config: &LedgerConfig) -> Result<(), LedgerError> {
    let url = &config.url;
    let mut settings = String::new();
    if !url.schemas.is_empty() {
        let path: Vec<String> = url.schemas.iter().map(|schema| quote(schema)).collect();
        settings.push_str(&format!("set search_path to {};", path.join(", ")));
    }
    settings.extend([trust::CLOSE_PATH, trust::LIFT_LIMITS, PLAIN_NAMES, END_IDLE_TRANSACTIONS]);
    client.batch_execute(&settings).map_err(|why| classify(&why, "setting up the connection"))
}

/// The name shown in `pg_stat_activity`, which truncates it to 63 bytes.
fn application_name(job: &str) -> String {
    format!("sessionizer/{job}")
}

/// Quotes an identifier.
pub fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// Prepares TLS; reads the certificates and keys that the URL names.
pub fn tls(url: &PostgresUrl) -> Result<MakeTlsConnector, Message> {
    let mut builder = SslConnector::builder(SslMethod::tls_client())
        .map_err(|why| meaning(&why).after("POSTGRES_URL: TLS "))?;
    let files = [
        ("sslrootcert", &url.root_cert),
        ("sslcert", &url.client_cert),
        ("sslkey", &url.client_key),
    ];
    for (parameter, file) in files {
        // OpenSSL would wait for somebody to write into it.
        if let Some(file) = file.as_deref().filter(|file| is_pipe(file)) {
            let file = file.display();
            let problem = format!("POSTGRES_URL: {parameter}: {file} is a pipe, not a file");
            return Err(Message::new(problem).remedy("; ", "name a file"));
        }
    }
    let verify = matches!(url.tls, TlsMode::VerifyCa | TlsMode::VerifyFull);
    builder.set_verify(if verify { SslVerifyMode::PEER } else { SslVerifyMode::NONE });
    if verify {
        let place = url.root_cert.as_deref().unwrap_or(Path::new("(of this system)"));
        trust(&mut builder, url).map_err(|why| failed("sslrootcert", place, &why))?;
    }
    if let Some(cert) = &url.client_cert {
        builder.set_certificate_chain_file(cert).map_err(|why| failed("sslcert", cert, &why))?;
    }
    if let Some(key_file) = &url.client_key {
        // Never prompt on the terminal: without sslpassword, an encrypted key is refused.
        let nothing = openssl::error::ErrorStack::get();
        let pem = read_file(key_file).map_err(|_| failed("sslkey", key_file, &nothing))?;
        let password = url.client_key_password.as_ref().map_or("", Secret::reveal);
        let key = PKey::private_key_from_pem_passphrase(&pem, password.as_bytes());
        let key = key.map_err(|why| failed("sslkey (and sslpassword)", key_file, &why))?;
        builder.set_private_key(&key).map_err(|why| failed("sslkey", key_file, &why))?;
    }
    let mut tls = MakeTlsConnector::new(builder.build());
    let check_host = url.tls == TlsMode::VerifyFull;
    tls.set_callback(move |connection, _| {
        connection.set_verify_hostname(check_host);
        Ok(())
    });
    Ok(tls)
}

/// Describes why a file that a parameter of the URL names cannot be used.
fn failed(parameter: &str, file: &Path, why: &openssl::error::ErrorStack) -> Message {
    log::debug!("{parameter}: {why}");
    // OpenSSL may only report that the file holds nothing.
    let meaning = match std::fs::File::open(file) {
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => {
            Message::new("cannot be read: no such file").remedy("; ", CORRECT_PATH)
        }
        Err(why) => Message::new(format!("cannot be read: {why}")).remedy("; ", CORRECT_PATH),
        Ok(_) => meaning(why),
    };
    meaning.after(&format!("POSTGRES_URL: {parameter}: {} ", file.display()))
}

fn trust(
    builder: &mut SslConnectorBuilder,
    url: &PostgresUrl,
) -> Result<(), openssl::error::ErrorStack> {
    if let Some(file) = &url.root_cert {
        return builder.set_ca_file(file);
    }
    // Our OpenSSL is linked statically and does not know where this system keeps certificates:
    // search for them.
    let found = openssl_probe::probe();
    if let Some(file) = &found.cert_file {
        builder.set_ca_file(file)?;
    }
    Ok(())
}
