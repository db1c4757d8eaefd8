//! Errors of Postgres: which of them are worth a retry, and what to do about the others.

use std::error::Error as _;

use postgres::Error;
use postgres::error::{DbError, SqlState};
use sessionizer_core::fault::{Fault, Message};

use crate::dataflow::ports::{Cause, Failure, LedgerError};
use crate::ledger::connect::CONNECTING;
use crate::ledger::pooler;
use crate::ui::trouble;

/// The errors of prepared statements when clients share a session.
const SHARED_SESSION: [SqlState; 2] =
    [SqlState::INVALID_SQL_STATEMENT_NAME, SqlState::DUPLICATE_PSTATEMENT];

/// What the client library reports for a server that does not accept writes. It has no type for it.
const NO_WRITES: &str = "database does not allow writes";

/// The errors with which a server refuses `options`, which it applies while it connects.
const OF_OPTIONS: [SqlState; 4] = [
    SqlState::SYNTAX_ERROR,
    SqlState::UNDEFINED_OBJECT,
    SqlState::INVALID_PARAMETER_VALUE,
    SqlState::CANT_CHANGE_RUNTIME_PARAM,
];

/// The remedy for a login that lacks a right.
const GRANT: &str = "the job needs a schema sessionizer of its own (`create schema sessionizer \
                     authorization ...`) and select, insert and delete on its table \
                     (deploy/postgres/role.sql grants all of it)";

/// What to do if a server has no connection left.
const MAKE_ROOM: &str = "end connections that nobody needs, or raise max_connections of the server, \
                         or the limit of the login (alter role ... connection limit ...)";

/// The SQL that lists who may hold a lock. The server names the holder only while somebody waits.
const HOLDERS: &str = "select * from pg_stat_activity where state <> 'idle' order by xact_start;";

/// Decides whether an error is worth a retry or is fatal. `doing` names the step, for the message.
pub fn classify(error: &Error, doing: &str) -> LedgerError {
    count(error, judge(error, doing, false))
}

/// The same for an error while connecting, with or without `options` in the URL.
pub fn classify_connecting(error: &Error, has_options: bool) -> LedgerError {
    count(error, judge(error, CONNECTING, has_options))
}

/// Counts a failure that may pass by itself.
fn count(error: &Error, classified: LedgerError) -> LedgerError {
    if matches!(classified, LedgerError::Retry(_)) {
        trouble::count("postgres", cause(error));
    }
    classified
}

/// The likely cause of a transient failure, by the class of its code.
fn cause(error: &Error) -> &'static str {
    let Some(code) = error.code() else {
        return if refuses_writes(error) { "read_only" } else { "connection" };
    };
    match &code.code()[..2] {
        "08" => "connection",
        "40" => "conflict",
        "53" => "resources",
        "55" => "lock",
        "57" => "shutdown",
        "25" => "read_only",
        _ => "other",
    }
}

/// Whether the client library has found out while it connected that the server takes no writes.
fn refuses_writes(error: &Error) -> bool {
    error.source().is_some_and(|source| source.to_string().ends_with(NO_WRITES))
}

fn judge(error: &Error, doing: &str, has_options: bool) -> LedgerError {
    match error.as_db_error() {
        Some(refusal) => judge_refusal(refusal, doing, has_options),
        None => judge_failure(error, doing),
    }
}

/// Judges an error that is not an answer of the server: the connection or TLS has failed.
fn judge_failure(error: &Error, doing: &str) -> LedgerError {
    let what = error.to_string();
    let why = match error.source() {
        // "connecting" says the same, and the reason should not come last in a long line.
        Some(source) if what == "error connecting to server" => source.to_string(),
        Some(source) => format!("{what}: {source}"),
        None => what,
    };
    if fails_verification(error) {
        log::debug!("{doing}: {why}");
        let why = verification_failure(&why);
        let problem = format!("the certificate of Postgres does not verify: {why}");
        let remedy = "check sslmode and sslrootcert in POSTGRES_URL, and with verify-full the name \
                      of the host";
        return LedgerError::Fatal(Fault::config(Message::new(problem).remedy("; ", remedy)));
    }
    if is_mismatch(&why) {
        let problem = format!("Postgres and POSTGRES_URL do not agree: {doing}: {why}");
        let remedy = "check sslmode and channelBinding, and how the server lets this user log in";
        return LedgerError::Fatal(Fault::config(Message::new(problem).remedy("; ", remedy)));
    }
    let (why, cause) = match refuses_writes(error) {
        true => {
            let what = "it is a standby, or default_transaction_read_only is on; the job writes";
            (format!("{why}: {what}"), Cause::ReadOnly)
        }
        false => (why, Cause::Other),
    };
    LedgerError::Retry(Failure { doing: doing.to_owned(), why: why.into(), cause })
}

/// Whether the server's certificate fails to verify: trying again will not help.
fn fails_verification(error: &Error) -> bool {
    // postgres-openssl wraps the error of the handshake.
    let handshake = error.source().and_then(|source| source.source());
    let handshake = handshake.and_then(|source| source.downcast_ref::<openssl::ssl::Error>());
    let stack = handshake.and_then(|error| error.ssl_error());
    stack.is_some_and(|stack| {
        stack.errors().iter().any(|error| error.reason() == Some("certificate verify failed"))
    })
}

/// Whether this side rejects what the server offers. The client library has no names for these
/// errors.
fn is_mismatch(why: &str) -> bool {
    ["server does not support TLS", "authentication error", "invalid configuration"]
        .iter()
        .any(|known| why.contains(known))
}

/// Extracts the reason, which is the last part of an error such as `error performing TLS handshake:
/// error:0A000086:...: self-signed certificate`.
fn verification_failure(error: &str) -> &str {
    let (_, reason) = error.rsplit_once(": ").unwrap_or(("", error));
    reason.trim()
}

/// Judges an error that the server, or a pooler in its place, has answered with.
fn judge_refusal(refusal: &DbError, doing: &str, has_options: bool) -> LedgerError {
    let code = refusal.code();
    let mut why = format!("{} ({})", refusal.message(), code.code());
    for more in [refusal.detail(), refusal.hint()].into_iter().flatten() {
        why = format!("{why}; {more}");
    }
    if refusal.message().contains("unsupported startup parameter") {
        let what = "a pooler between the job and Postgres refuses a parameter of the connection";
        let remedy = "remove it from POSTGRES_URL (`options`: set it for the login with `alter role \
                      ... set ...`), or have the pooler ignore it (pgbouncer: \
                      ignore_startup_parameters)";
        let message = Message::new(format!("{what}: {doing}: {why}")).remedy("; ", remedy);
        return LedgerError::Fatal(Fault::config(message));
    }
    if SHARED_SESSION.contains(code) {
        let what = "a pooler in transaction or statement mode stands between the job and Postgres";
        let message = Message::new(format!("{doing}: {why}: {what}"));
        let message = message.remedy("; the job needs sessions of its own: ", pooler::REMEDY);
        return LedgerError::Fatal(Fault::config(message));
    }
    if is_transient(code) {
        let (why, cause) = match *code {
            SqlState::LOCK_NOT_AVAILABLE => {
                (Message::new(why).remedy("; see who holds it: ", HOLDERS), Cause::Timeout)
            }
            SqlState::QUERY_CANCELED => (why.into(), Cause::Timeout),
            SqlState::TOO_MANY_CONNECTIONS => {
                (Message::new(why).remedy("; ", MAKE_ROOM), Cause::Answered)
            }
            SqlState::CANNOT_CONNECT_NOW => {
                (Message::new(why).remedy("; ", "wait until it has started"), Cause::Answered)
            }
            _ => (why.into(), Cause::Answered),
        };
        return LedgerError::Retry(Failure { doing: doing.to_owned(), why, cause });
    }
    let dropped = match *code {
        SqlState::UNDEFINED_TABLE => "; was it dropped while the job ran?",
        _ => "",
    };
    let message = Message::new(format!("Postgres refuses: {doing}: {why}{dropped}"));
    let message = match doing == CONNECTING {
        true => with_remedy_of_connecting(message, refusal, has_options),
        false => with_remedy(message, code),
    };
    // An internal error of the server may be gone after its restart; no other fatal error will.
    LedgerError::Fatal(match code.code().starts_with("XX") {
        true => Fault::environment(message),
        false => Fault::config(message),
    })
}

/// Whether the same statement may succeed later.
fn is_transient(code: &SqlState) -> bool {
    match &code.code()[..2] {
        // Connection, resources (disk full, memory, too many connections), operator
        // intervention (shutdown, restart), system error, conflict with another transaction.
        "08" | "53" | "57" | "58" | "40" => *code != SqlState::DATABASE_DROPPED,
        _ => [
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::READ_ONLY_SQL_TRANSACTION,
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        ]
        .contains(code),
    }
}

/// Adds what to do if a server refuses a connection.
fn with_remedy_of_connecting(message: Message, refusal: &DbError, has_options: bool) -> Message {
    let code = refusal.code();
    let is_right = *code == SqlState::INSUFFICIENT_PRIVILEGE;
    let of_options =
        OF_OPTIONS.contains(code) || (is_right && refusal.message().contains("set parameter"));
    if has_options && of_options {
        let remedy = "check the parameter options in POSTGRES_URL, of the form -c name=value";
        return message.remedy("; ", remedy);
    }
    match is_right {
        true => {
            message.remedy("; ", "grant it to this login: `grant connect on database ... to ...`")
        }
        false => with_remedy(message, code),
    }
}

/// Adds what to do about an error that will not go away, if that is known.
fn with_remedy(message: Message, code: &SqlState) -> Message {
    let remedy = match *code {
        SqlState::INVALID_PASSWORD => "check POSTGRES_USER and POSTGRES_PASSWORD",
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            "check POSTGRES_USER, and sslmode in POSTGRES_URL"
        }
        SqlState::INVALID_SCHEMA_NAME => "create the schema, or correct --table or currentSchema",
        SqlState::INVALID_CATALOG_NAME => "create the database, or correct POSTGRES_URL",
        SqlState::INSUFFICIENT_PRIVILEGE => return message.remedy("; grant it: ", GRANT),
        // The second: an operator for a column of another type.
        SqlState::UNDEFINED_COLUMN | SqlState::UNDEFINED_FUNCTION => {
            "the table, or the schema sessionizer, is not as this program has made it: \
             `sessionizer check` says more"
        }
        _ => return message,
    };
    message.remedy("; ", remedy)
}
