//! Who keeps a session of ours waiting.
//!
//! A session that waits for a lock cannot say so. Another one can: Postgres knows what each session
//! does, and whose lock it waits for.

use std::ops::{Deref, DerefMut};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use postgres::config::TargetSessionAttrs;

use crate::dataflow::ports::LedgerError;
use crate::ledger::LedgerConfig;
use crate::ledger::connect::{configure_session, dial, within};
use crate::ledger::errors::classify;
use crate::ui::text;
use crate::ui::trouble::RepeatedFailure;

/// How often a session is looked at.
const PATIENCE: Duration = Duration::from_secs(10);
/// For how many seconds a statement has to take for somebody to be told.
const LONG_S: f64 = 5.0;
/// How long to wait for a connection that looks.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How `pg_stat_activity` shows the connection that looks. It must not look like an instance.
const APPLICATION: &str = "sessionizer waiting";

/// What a session does. Of the sessions of other logins, Postgres shows little more than the name,
/// and a prepared transaction has no session at all.
const LOOK: &str = "
    select coalesce(a.wait_event_type = 'Lock', false),
           case when a.state = 'active' and a.wait_event_type is distinct from 'Client'
                then extract(epoch from clock_timestamp() - a.query_start)::float8 end,
           (select coalesce(format('%I.%I', n.nspname, c.relname), l.locktype)
            from pg_locks l left join pg_class c on c.oid = l.relation
            left join pg_namespace n on n.oid = c.relnamespace
            where l.pid = a.pid and not l.granted limit 1),
           holder.pid, b.usename::text, b.application_name, b.state,
           extract(epoch from clock_timestamp() - b.xact_start)::float8
    from pg_stat_activity a
    left join lateral unnest(pg_blocking_pids(a.pid)) holder (pid) on true
    left join pg_stat_activity b on b.pid = holder.pid
    where a.pid = $1
    order by b.xact_start nulls last, holder.pid limit 1";

/// What a session does.
enum Activity {
    /// It has ended, or waits for us.
    None,
    /// It works on a statement.
    Works,
    /// It waits for a lock on this, which that session holds.
    Locked(String, Holder),
}

/// A connection that looks at the session of another one.
struct Observer {
    client: Client,
}

impl Observer {
    fn open(config: &LedgerConfig) -> Result<Self, LedgerError> {
        let open = |config: &LedgerConfig| {
            let mut client = dial(config, APPLICATION, TargetSessionAttrs::Any)?;
            configure_session(&mut client, config)?;
            client
                .batch_execute("set statement_timeout = '5s'")
                .map_err(|why| classify(&why, "setting up the connection"))?;
            Ok(client)
        };
        Ok(Observer { client: within(CONNECT_TIMEOUT, config, open)? })
    }

    /// What the session with this process does, and for how many seconds.
    fn look(&mut self, pid: i32) -> Result<(Activity, f64), postgres::Error> {
        let nothing = (Activity::None, 0.0);
        let Some(row) = self.client.query_opt(LOOK, &[&pid])? else { return Ok(nothing) };
        let Some(seconds) = row.get(1) else { return Ok(nothing) };
        if !row.get::<_, bool>(0) {
            return Ok((Activity::Works, seconds));
        }
        let what: Option<String> = row.get(2);
        let holder = Holder {
            pid: row.get(3),
            login: row.get(4),
            application: row.get(5),
            state: row.get(6),
            open_s: row.get(7),
        };
        Ok((Activity::Locked(what.unwrap_or_default(), holder), seconds))
    }
}

/// The session that holds a lock.
struct Holder {
    /// `None` if the lock has been released just now, 0 for a prepared transaction.
    pid: Option<i32>,
    login: Option<String>,
    application: Option<String>,
    state: Option<String>,
    /// For how long its transaction has been open.
    open_s: Option<f64>,
}

/// Says which lock is waited for, who holds it, and how to end that.
fn describe(what: &str, holder: &Holder) -> String {
    let on = if what.is_empty() { "" } else { " on " };
    let pid = match holder.pid {
        None => return format!("a lock{on}{what}"),
        Some(0) => {
            return format!(
                "a lock{on}{what}, which a prepared transaction holds (select * from \
                 pg_prepared_xacts)"
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
        "a lock{on}{what}, which process {pid} of Postgres holds{known}: it has to end, by itself \
         or by `select pg_terminate_backend({pid})`"
    )
}

/// The server process of a connection.
pub fn pid(client: &mut Client) -> Result<i32, LedgerError> {
    let pid = client.query_one("select pg_backend_pid()", &[]);
    Ok(pid.map_err(|why| classify(&why, "setting up the connection"))?.get(0))
}

/// Returns which lock the session with this process waits for, if it waits for one. It asks on a
/// connection of its own, and takes a few seconds at most.
pub fn lock_of(config: &LedgerConfig, pid: i32) -> Option<String> {
    let (reply, answer) = channel();
    let config = config.clone();
    let ask = move || {
        let looked = Observer::open(&config).map(|mut observer| observer.look(pid));
        // If it took too long, nobody receives the answer.
        _ = reply.send(looked);
    };
    let thread = thread::Builder::new().name("postgres-lock".to_owned());
    thread.spawn(ask).expect("a thread can be started");
    match answer.recv_timeout(CONNECT_TIMEOUT) {
        Ok(Ok(Ok((Activity::Locked(what, holder), _)))) => Some(describe(&what, &holder)),
        _ => None,
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
        let pid = pid(&mut client)?;
        let (watch, ended) = channel();
        let mut watched = Watch { config: config.clone(), pid, observer: None, told: None };
        let work = move || {
            while ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                watched.look();
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

/// Watches one session. It connects only when there is something to look at.
struct Watch {
    config: LedgerConfig,
    pid: i32,
    observer: Option<Observer>,
    /// What is told again and again, and since when that is so.
    told: Option<(Told, Instant, RepeatedFailure)>,
}

/// What somebody has been told. The details may change while it lasts.
#[derive(Clone, PartialEq, Eq)]
enum Told {
    Works,
    Locked(String, Option<i32>),
    Unreachable,
}

impl Watch {
    fn look(&mut self) {
        let (told, message, lasts) = match self.activity() {
            Ok((Activity::None, _)) => return self.rest(),
            Ok((_, seconds)) if seconds < LONG_S => return self.rest(),
            Ok((Activity::Works, seconds)) => {
                (Told::Works, "Postgres is working on it".to_owned(), seconds)
            }
            Ok((Activity::Locked(what, holder), seconds)) => {
                let message = format!("waiting for {}", describe(&what, &holder));
                (Told::Locked(what, holder.pid), message, seconds)
            }
            Err(why) => {
                self.observer = None;
                let why = format!("perhaps waiting for Postgres, which cannot be asked: {why}");
                (Told::Unreachable, why, 0.0)
            }
        };
        if self.told.as_ref().is_none_or(|(before, ..)| *before != told) {
            let now = Instant::now();
            let since = now.checked_sub(Duration::from_secs_f64(lasts)).unwrap_or(now);
            self.told = Some((told, since, RepeatedFailure::default()));
        }
        let Some((told, since, repeated)) = &mut self.told else { return };
        let lasts = since.elapsed();
        if repeated.record(lasts).is_none() {
            return;
        }
        let lasts = text::duration(lasts);
        match told {
            Told::Works => log::info!("{message}, for {lasts} so far"),
            Told::Locked(..) => log::warn!("for {lasts} {message}"),
            Told::Unreachable => log::warn!("{message}"),
        }
    }

    /// Nothing takes long any more.
    fn rest(&mut self) {
        if let Some((Told::Locked(..) | Told::Unreachable, since, _)) = self.told.take() {
            let lasted = text::duration(since.elapsed());
            log::info!("Postgres has answered, after {lasted}");
        }
    }

    fn activity(&mut self) -> Result<(Activity, f64), LedgerError> {
        if self.observer.is_none() {
            self.observer = Some(Observer::open(&self.config)?);
        }
        let observer = self.observer.as_mut().expect("just opened");
        observer.look(self.pid).map_err(|why| classify(&why, "looking at the connection"))
    }
}
