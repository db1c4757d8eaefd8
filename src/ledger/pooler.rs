//! Detects a pooler that gives each transaction another session.
//!
//! The job needs one session per connection, because prepared statements and settings belong to the
//! session. Poolers differ in what they pass on, so this module does not ask for a name but tests
//! the behaviour: two simultaneous connections must have two sessions, and each connection must
//! keep its own. It uses only simple queries, which every mode of every pooler accepts.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use postgres::{Client, SimpleQueryMessage};
use sessionizer_core::fault::{Fault, Message};

use crate::dataflow::ports::LedgerError;
use crate::ledger::LedgerConfig;
use crate::ledger::blocked::WatchedClient;
use crate::ledger::connect::{Open, for_command};
use crate::ledger::errors::classify;

/// What to do about such a pooler.
pub const REMEDY: &str = "let POSTGRES_URL lead to a pool in session mode (pgbouncer: pool_mode = \
                          session), or to the server itself";

/// Whether an error is about such a pooler.
pub fn is_in_between(error: &LedgerError) -> bool {
    error.message().remedies() == [REMEDY]
}

/// How long to wait for a second connection. A pool in session mode may have no room for one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens a connection of a command with a session of its own; refuses one that shares its session.
pub fn connect_directly(config: &LedgerConfig, open: Open) -> Result<WatchedClient, LedgerError> {
    let mut client = for_command(config, open)?;
    refuse_shared(&mut client, config, open)?;
    Ok(client)
}

/// Refuses a connection that shares its session with other clients. `open` opens another one.
pub fn refuse_shared(
    client: &mut Client,
    config: &LedgerConfig,
    open: Open,
) -> Result<(), LedgerError> {
    let own = session(client)?;
    let mut same = keeps(client, &own)?;
    if let Some((mut other, others)) = second(config, open)? {
        same &= own != others && keeps(client, &own)? && keeps(&mut other, &others)?;
        if same {
            same = holds_its_own(client, &mut other, (&own, &others))?;
        }
    } else {
        same &= keeps(client, &own)?;
    }
    if same { Ok(()) } else { Err(shares(config)) }
}

/// Whether both connections keep their sessions while one is in a transaction. A pooler that shares
/// sessions would have to serve the other connection from another session.
fn holds_its_own(
    client: &mut Client,
    other: &mut Client,
    (own, others): (&str, &str),
) -> Result<bool, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "looking for a pooler");
    // On a busy machine, a server that allows short transactions only might end this one.
    match client.batch_execute("begin; set local idle_in_transaction_session_timeout = 0") {
        Ok(()) => {}
        // A pool in statement mode refuses transactions.
        Err(why) if why.as_db_error().is_some_and(|db| db.message().contains("statement")) => {
            return Ok(false);
        }
        Err(why) => return Err(failed(why)),
    }
    let same = own == session(client)? && others == session(other)?;
    client.batch_execute("rollback").map_err(failed)?;
    Ok(same && others == session(other)? && own == session(client)?)
}

/// Opens a second connection and finds its session. `None` if there is no room for one: then the
/// check has less evidence.
///
/// If the second connection fails for a reason that waiting does not solve, although the first has
/// succeeded, that is evidence, too: a prepared statement is not found if the pooler has changed
/// the session in between.
fn second(config: &LedgerConfig, open: Open) -> Result<Option<(Client, String)>, LedgerError> {
    let (reply, answer) = channel();
    let config = config.clone();
    let open = move || {
        let mut client = open(&config)?;
        let session = session(&mut client)?;
        Ok::<_, LedgerError>((client, session))
    };
    // If it took too long, nobody receives the answer.
    let work = move || drop(reply.send(open()));
    let thread = thread::Builder::new().name("postgres-second".to_owned());
    thread.spawn(work).expect("a thread can be started");
    match answer.recv_timeout(CONNECT_TIMEOUT) {
        Ok(Ok(found)) => Ok(Some(found)),
        Ok(Err(why @ LedgerError::Fatal(Fault::Config(_)))) => Err(why),
        Ok(Err(why)) => {
            log::debug!("no second connection to look for a pooler: {why}");
            Ok(None)
        }
        Err(_) => {
            log::debug!("no second connection to look for a pooler within {CONNECT_TIMEOUT:?}");
            Ok(None)
        }
    }
}

/// Whether the connection gets the same session twice in a row. Once is not enough: a pool that
/// alternates between two sessions serves each of two alternating connections always from the same
/// one.
fn keeps(client: &mut Client, own: &str) -> Result<bool, LedgerError> {
    Ok(own == session(client)? && own == session(client)?)
}

/// Returns which session answers, in a transaction of its own.
fn session(client: &mut Client) -> Result<String, LedgerError> {
    let answer = client.simple_query("select pg_backend_pid()");
    let answer = answer.map_err(|why| classify(&why, "looking for a pooler"))?;
    let pid = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(pid.unwrap_or_default().to_owned())
}

fn shares(config: &LedgerConfig) -> LedgerError {
    let problem = format!(
        "between the job and Postgres at {} stands a pooler in transaction or statement mode",
        config.url
    );
    let message = Message::new(problem).remedy(": the job needs sessions of its own: ", REMEDY);
    LedgerError::Fatal(Fault::config(message))
}
