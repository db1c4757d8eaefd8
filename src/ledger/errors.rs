//! Errors of Postgres: which of them are worth a retry, and what to do about the others.

use std::error::Error as _;

use postgres::Error;
use postgres::error::{DbError, SqlState};
use sessionizer_core::fault::Fault;

use crate::dataflow::ports::LedgerError;
use crate::ledger::connect::CONNECTING;
use crate::ledger::pooler;
use crate::ui::trouble;

/// The errors of prepared statements when clients share a session.
const SHARED_SESSION: [SqlState; 2] =
    [SqlState::INVALID_SQL_STATEMENT_NAME, SqlState::DUPLICATE_PSTATEMENT];

/// What the client library reports for a server that does not accept writes.
pub const NO_WRITES: &str = "database does not allow writes";

/// The errors with which a server refuses `options`, which it applies while it connects.
const OF_OPTIONS: [SqlState; 4] = [
    SqlState::SYNTAX_ERROR,
    SqlState::UNDEFINED_OBJECT,
    SqlState::INVALID_PARAMETER_VALUE,
    SqlState::CANT_CHANGE_RUNTIME_PARAM,
];

/// The remedy for a login that lacks a right.
const GRANT: &str = "; grant it: the job needs a schema sessionizer of its own (`create \
                         schema sessionizer authorization ...`) and select, insert and delete on \
                         its table (deploy/postgres/role.sql grants all of it)";

/// Decides whether an error is worth a retry or is fatal. `doing` names the step, for the message.
pub fn classify(error: &Error, doing: &str) -> LedgerError {
    let classified = judge(error, doing);
    if matches!(classified, LedgerError::Retry(_)) {
        trouble::count("postgres", cause(error));
    }
    classified
}

/// The likely cause of a transient failure, by the class of its code.
fn cause(error: &Error) -> &'static str {
    let Some(code) = error.code() else {
        // The client library finds that out by itself while it connects.
        let source = error.source().map(ToString::to_string).unwrap_or_default();
        return if source.ends_with(NO_WRITES) { "read_only" } else { "connection" };
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

fn judge(error: &Error, doing: &str) -> LedgerError {
    match error.as_db_error() {
        Some(refusal) => judge_refusal(refusal, doing),
        None => judge_failure(error, doing),
    }
}

/// Judges an error that is not an answer of the server: the connection or TLS has failed.
fn judge_failure(error: &Error, doing: &str) -> LedgerError {
    let what = error.to_string();
    let why = match error.source() {
        // "connecting" says the same, and the reason should not come last in a long line.
        Some(source) if what == "error connecting to server" => format!("{doing}: {source}"),
        Some(source) => format!("{doing}: {what}: {source}"),
        None => format!("{doing}: {what}"),
    };
    if fails_verification(error) {
        log::debug!("{why}");
        let why = verification_failure(&why);
        return LedgerError::Fatal(Fault::Config(format!(
            "the certificate of Postgres does not verify: {why}; check sslmode and sslrootcert in \
             POSTGRES_URL, and with verify-full the name of the host"
        )));
    }
    if is_mismatch(&why) {
        return LedgerError::Fatal(Fault::Config(format!(
            "Postgres and POSTGRES_URL do not agree: {why}; check sslmode and channelBinding, and \
             how the server lets this user log in"
        )));
    }
    if why.ends_with(NO_WRITES) {
        return LedgerError::Retry(format!(
            "{why}: it is a standby, or default_transaction_read_only is on; the job writes"
        ));
    }
    LedgerError::Retry(why)
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
fn judge_refusal(refusal: &DbError, doing: &str) -> LedgerError {
    let code = refusal.code();
    let mut why = format!("{doing}: {} ({})", refusal.message(), code.code());
    for more in [refusal.detail(), refusal.hint()].into_iter().flatten() {
        why = format!("{why}; {more}");
    }
    if refusal.message().contains("unsupported startup parameter") {
        return LedgerError::Fatal(Fault::Config(format!(
            "a pooler between the job and Postgres refuses a parameter of the connection: {why}; \
             remove it from POSTGRES_URL (`options`: set it for the login with `alter role ... \
             set ...`), or have the pooler ignore it (pgbouncer: ignore_startup_parameters)"
        )));
    }
    if SHARED_SESSION.contains(code) {
        return LedgerError::Fatal(Fault::Config(format!(
            "{why}: a pooler in transaction or statement mode stands between the job and Postgres; \
             {}",
            pooler::REMEDY
        )));
    }
    if is_transient(code) {
        return LedgerError::Retry(why);
    }
    let remedy = match doing == CONNECTING {
        true => remedy_of_connecting(refusal),
        false => remedy(code),
    };
    let why = format!("Postgres refuses: {why}{remedy}");
    // An internal error of the server may be gone after its restart; no other fatal error will.
    LedgerError::Fatal(if code.code().starts_with("XX") {
        Fault::Environment(why)
    } else {
        Fault::Config(why)
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

/// What to do if a server refuses a connection.
fn remedy_of_connecting(refusal: &DbError) -> &'static str {
    let code = refusal.code();
    let is_right = *code == SqlState::INSUFFICIENT_PRIVILEGE;
    if OF_OPTIONS.contains(code) || (is_right && refusal.message().contains("set parameter")) {
        return "; check the parameter options in POSTGRES_URL, of the form -c name=value";
    }
    match is_right {
        true => "; grant it to this login: `grant connect on database ... to ...`",
        false => remedy(code),
    }
}

/// Whether a message holds what a server has answered, and so the code of its error: `(57P03)`.
pub fn is_answer(message: &str) -> bool {
    let codes = message.match_indices('(').filter_map(|(at, _)| message.get(at + 1..at + 7));
    let is_code = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_uppercase();
    codes.into_iter().any(|code| code.ends_with(')') && code.bytes().take(5).all(is_code))
}

/// What to look at if a connection keeps failing, to be appended to the reason.
pub fn what_to_check(why: &str) -> &'static str {
    match is_answer(why) {
        true => "; the server has answered this: its log may say more",
        false => "; check POSTGRES_URL, and that the server is up and reachable from here",
    }
}

/// What to do about an error that will not go away, to be appended to it; empty if unknown.
fn remedy(code: &SqlState) -> &'static str {
    match *code {
        SqlState::INVALID_PASSWORD => "; check POSTGRES_USER and POSTGRES_PASSWORD",
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            "; check POSTGRES_USER, and sslmode in POSTGRES_URL"
        }
        SqlState::INVALID_SCHEMA_NAME => "; create the schema, or correct --table or currentSchema",
        SqlState::INVALID_CATALOG_NAME => "; create the database, or correct POSTGRES_URL",
        SqlState::INSUFFICIENT_PRIVILEGE => GRANT,
        SqlState::UNDEFINED_TABLE => "; was it dropped while the job ran?",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_a_server_has_a_code() {
        for answer in ["connecting: sorry, too many clients already (53300)", "a (57P03); more"] {
            assert!(is_answer(answer), "{answer}");
        }
        for failure in ["Connection refused (os error 111)", "(ab)", "ä (é", "(57p03)", "(12345"]
        {
            assert!(!is_answer(failure), "{failure}");
        }
    }
}
