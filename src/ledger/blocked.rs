//! Who keeps a session of ours waiting.
//!
//! A session that waits for a lock cannot say so. Another one can: Postgres knows what each session
//! does, and whose lock it waits for.
//!
//! Whatever asks must not wait itself: a server may accept a connection and then say nothing. So each
//! look has a thread of its own, and there is at most one of them for each session that is watched.

use std::ops::{Deref, DerefMut};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use postgres::config::TargetSessionAttrs;

use crate::dataflow::ports::{Cause, LedgerError};
use crate::ledger::LedgerConfig;
use crate::ledger::connect::{configure_session, dial};
use crate::ledger::errors::classify;
use crate::ui::text;
use crate::ui::trouble::RepeatedFailure;

/// How often the session of a command is looked at: after this time, and while nothing is found
/// less and less often.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(60);
/// For how many seconds a statement has to take for somebody to be told.
const LONG_S: f64 = 5.0;
/// How long a look may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// How `pg_stat_activity` shows the connection that looks. It must not look like an instance.
const APPLICATION: &str = "sessionizer waiting";

/// Identifies a session: a process number alone is used again, and on another server by somebody
/// else.
const IDENTIFY: &str = "
    select pid, (extract(epoch from backend_start) * 1000000)::int8
    from pg_stat_activity where pid = pg_backend_pid()";

/// What a session does, and whose transaction has to end if it waits for a lock. Those that wait for
/// a lock themselves hold nobody up for long, so this follows the queue to its end. The row of a
/// table that is waited for shows as a lock of a tuple that we have. Of the sessions of other logins,
/// Postgres shows little more than the name, and a prepared transaction has no session at all.
const LOOK: &str = "
    with recursive ahead (pid, step) as (
        select unnest(pg_blocking_pids($1)), 1
        union
        select unnest(pg_blocking_pids(a.pid)), a.step + 1 from ahead a where a.step < 10
    )
    select coalesce(a.wait_event_type = 'Lock', false),
           case when a.state = 'active' and a.wait_event_type is distinct from 'Client'
                then extract(epoch from clock_timestamp() - a.query_start)::float8 end,
           (select quote_ident(n.nspname) || '.' || quote_ident(c.relname)
            from pg_locks l join pg_class c on c.oid = l.relation
            join pg_namespace n on n.oid = c.relnamespace
            where l.pid = a.pid and (not l.granted or l.locktype = 'tuple') limit 1),
           holder.pid, b.usename::text, b.application_name, b.state,
           extract(epoch from clock_timestamp() - b.xact_start)::float8
    from pg_stat_activity a
    left join (select pid from ahead where cardinality(pg_blocking_pids(pid)) = 0) holder on true
    left join pg_stat_activity b on b.pid = holder.pid
    where a.pid = $1 and (extract(epoch from a.backend_start) * 1000000)::int8 = $2
    order by b.xact_start nulls last, holder.pid limit 1";

/// What a session does.
enum Activity {
    /// It has ended, or waits for us.
    None,
    /// It works on a statement.
    Works,
    /// It waits for a lock on this table (empty if the lock is on something else), until that
    /// transaction ends.
    Locked(String, Holder),
}

/// The session whose transaction has to end.
struct Holder {
    /// `None` if the lock has been released just now, 0 for a prepared transaction.
    pid: Option<i32>,
    login: Option<String>,
    application: Option<String>,
    state: Option<String>,
    /// For how long its transaction has been open.
    open_s: Option<f64>,
}

/// Says which lock is waited for, and what has to end.
fn describe(table: &str, holder: &Holder) -> String {
    let lock = match table {
        "" => "a lock".to_owned(),
        table => format!("a lock on {table}"),
    };
    let pid = match holder.pid {
        None => return lock,
        Some(0) => {
            return format!(
                "{lock} until a prepared transaction ends (select * from pg_prepared_xacts)"
            );
        }
        Some(pid) => pid,
    };
    let login = holder.login.as_ref().map(|login| format!("login {login}"));
    let open = holder.open_s.map(|seconds| {
        let open = text::duration(Duration::from_secs(seconds.max(0.0) as u64));
        format!("in a transaction for {open}")
    });
    let known = [login, holder.application.clone(), holder.state.clone(), open];
    let known: Vec<String> = known.into_iter().flatten().filter(|text| !text.is_empty()).collect();
    let known = match known.as_slice() {
        [] => String::new(),
        known => format!(" ({})", known.join(", ")),
    };
    format!(
        "{lock} until process {pid} of Postgres{known} ends its transaction; that login or a \
         superuser can end it with `select pg_terminate_backend({pid})`"
    )
}

/// A session that can be looked at from another one.
#[derive(Clone)]
pub struct Session {
    config: LedgerConfig,
    pid: i32,
    /// When it began, in microseconds since 1970.
    began: i64,
}

impl Session {
    /// The session of a connection.
    pub fn of(client: &mut Client, config: &LedgerConfig) -> Result<Self, LedgerError> {
        let row = client.query_one(IDENTIFY, &[]);
        let row = row.map_err(|why| classify(&why, "setting up the connection"))?;
        Ok(Session { config: config.clone(), pid: row.get(0), began: row.get(1) })
    }

    /// What the session does, and for how many seconds.
    fn look(&self) -> Result<(Activity, f64), LedgerError> {
        // Of several servers, those that take no writes are asked last.
        let mut last = self.look_at(TargetSessionAttrs::ReadWrite);
        if !matches!(last, Ok(Some(_))) && self.config.url.hosts.len() > 1 {
            last = self.look_at(TargetSessionAttrs::Any);
        }
        Ok(last?.unwrap_or((Activity::None, 0.0)))
    }

    /// The same on one server; `None` if it does not have the session, or the session is idle.
    fn look_at(&self, servers: TargetSessionAttrs) -> Result<Option<(Activity, f64)>, LedgerError> {
        let failed = |why: postgres::Error| classify(&why, "looking at a session");
        let mut client = dial(&self.config, APPLICATION, servers)?;
        configure_session(&mut client, &self.config)?;
        client.batch_execute("set statement_timeout = '5s'").map_err(failed)?;
        let row = client.query_opt(LOOK, &[&self.pid, &self.began]).map_err(failed)?;
        let Some((row, seconds)) =
            row.and_then(|row| row.get::<_, Option<f64>>(1).map(|s| (row, s)))
        else {
            return Ok(None);
        };
        if !row.get::<_, bool>(0) {
            return Ok(Some((Activity::Works, seconds)));
        }
        let table: Option<String> = row.get(2);
        let holder = Holder {
            pid: row.get(3),
            login: row.get(4),
            application: row.get(5),
            state: row.get(6),
            open_s: row.get(7),
        };
        Ok(Some((Activity::Locked(table.unwrap_or_default(), holder), seconds)))
    }
}

/// Looks at one session again and again.
pub struct Observer {
    session: Session,
    /// The answer to a look that has taken too long.
    pending: Option<Receiver<Looked>>,
}

type Looked = Result<(Activity, f64), LedgerError>;

impl Observer {
    pub fn new(session: Session) -> Self {
        Observer { session, pending: None }
    }

    /// Which lock the session waits for, if it waits for one and that can be found out soon.
    pub fn lock(&mut self) -> Option<String> {
        match self.look()? {
            Ok((Activity::Locked(table, holder), _)) => Some(describe(&table, &holder)),
            _ => None,
        }
    }

    /// Looks at the session; `None` if there is no answer yet.
    fn look(&mut self) -> Option<Looked> {
        let answer = match self.pending.take() {
            Some(answer) => answer,
            None => {
                let (reply, answer) = channel();
                let session = self.session.clone();
                // If it took too long, nobody receives the answer.
                let look = move || drop(reply.send(session.look()));
                // Without a thread there is no answer either.
                thread::Builder::new().name("postgres-look".to_owned()).spawn(look).ok()?;
                answer
            }
        };
        match answer.recv_timeout(LOOK_TIMEOUT) {
            Ok(looked) => Some(looked),
            Err(RecvTimeoutError::Timeout) => {
                self.pending = Some(answer);
                None
            }
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }
}

/// A connection of a command. Whoever has started the command is told when a statement takes long,
/// and why.
pub struct WatchedClient {
    client: Client,
    /// Ends the watch when it is dropped.
    _watch: Sender<()>,
}

impl WatchedClient {
    pub fn new(mut client: Client, config: &LedgerConfig) -> Result<Self, LedgerError> {
        let observer = Observer::new(Session::of(&mut client, config)?);
        let (watch, ended) = channel();
        let mut watched = Watch { observer, told: None };
        let work = move || {
            let mut pause = LOOK_EVERY;
            while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let found = watched.look();
                pause = if found { LOOK_EVERY } else { (pause * 2).min(LOOK_AT_LEAST_EVERY) };
            }
        };
        let thread = thread::Builder::new().name("postgres-watch".to_owned());
        thread.spawn(work).expect("a thread can be started");
        Ok(WatchedClient { client, _watch: watch })
    }
}

impl Deref for WatchedClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for WatchedClient {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// Watches the session of a command.
struct Watch {
    observer: Observer,
    /// What is told again and again, and since when that is so.
    told: Option<(Told, Instant, RepeatedFailure)>,
}

/// What somebody has been told. The details may change while it lasts.
#[derive(Clone, PartialEq, Eq)]
enum Told {
    Works,
    Locked(String, Option<i32>),
    Silent,
}

impl Watch {
    /// Returns whether there is anything to tell.
    fn look(&mut self) -> bool {
        let (told, message, lasts) = match self.observer.look() {
            Some(Ok((Activity::None, _))) => return self.rest(),
            Some(Ok((_, seconds))) if seconds < LONG_S => return self.rest(),
            Some(Ok((Activity::Works, seconds))) => {
                (Told::Works, "Postgres is working on it".to_owned(), seconds)
            }
            Some(Ok((Activity::Locked(table, holder), seconds))) => {
                let message = format!("waiting for {}", describe(&table, &holder));
                (Told::Locked(table, holder.pid), message, seconds)
            }
            // There may be no room for one more connection. That says nothing about this one.
            Some(Err(LedgerError::Retry(failure))) if failure.cause != Cause::Other => {
                log::debug!("what this waits for cannot be found out: {failure}");
                return false;
            }
            Some(Err(why)) => {
                let message = format!("this may be waiting for Postgres: {why}");
                (Told::Silent, message, 0.0)
            }
            None => {
                let message = "this may be waiting for Postgres, which does not answer".to_owned();
                (Told::Silent, message, 0.0)
            }
        };
        if self.told.as_ref().is_none_or(|(before, ..)| *before != told) {
            let now = Instant::now();
            let since = now.checked_sub(Duration::from_secs_f64(lasts)).unwrap_or(now);
            self.told = Some((told, since, RepeatedFailure::default()));
        }
        let Some((told, since, repeated)) = &mut self.told else { return true };
        let lasts = since.elapsed();
        if repeated.record(lasts).is_none() {
            return true;
        }
        let lasts = text::duration(lasts);
        match told {
            Told::Works => log::info!("{message}, for {lasts} so far"),
            Told::Locked(..) => log::warn!("for {lasts} {message}"),
            Told::Silent => log::warn!("{message}"),
        }
        true
    }

    /// Nothing takes long any more.
    fn rest(&mut self) -> bool {
        if let Some((Told::Locked(..), since, _)) = self.told.take() {
            let lasted = text::duration(since.elapsed());
            log::info!("Postgres has answered, after {lasted}");
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_to_end_is_described_by_what_is_known() {
        let mut holder = Holder {
            pid: Some(7),
            login: Some("etl".to_owned()),
            application: Some(String::new()),
            state: None,
            open_s: Some(90.4),
        };
        let want = "a lock on public.s until process 7 of Postgres (login etl, in a transaction for \
                    1 min 30 s) ends its transaction; that login or a superuser can end it with \
                    `select pg_terminate_backend(7)`";
        assert_eq!(describe("public.s", &holder), want);
        holder.pid = Some(0);
        let want = "a lock until a prepared transaction ends (select * from pg_prepared_xacts)";
        assert_eq!(describe("", &holder), want);
        holder.pid = None;
        assert_eq!(describe("public.s", &holder), "a lock on public.s");
    }
}
