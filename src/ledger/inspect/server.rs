//! The server: its version, whether it takes writes, its clock, and the connections that are left.

use std::time::SystemTime;

use postgres::{Client, Transaction};

use crate::dataflow::ports::LedgerError;
use crate::ledger::LedgerConfig;
use crate::ledger::connect::quote;
use crate::ledger::errors::classify;
use crate::ledger::peek::Database;

/// What the server reports about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    pub version: String,
    pub database: Database,
    /// The version of TLS; `None`: the connection is not encrypted.
    pub tls: Option<String>,
    /// By how many milliseconds its clock is ahead of this machine's, within `clock_error_ms`.
    pub clock_ahead_ms: i64,
    pub clock_error_ms: i64,
    pub connections: Connections,
}

/// How many more connections this login may open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connections {
    pub left: i64,
    /// What the limit comes from, and how to raise it.
    pub limit: String,
    pub remedy: String,
}

/// A server that does not allow writes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadOnly {
    pub why: String,
    pub remedy: String,
}

/// Returns why a session cannot write.
pub fn read_only(client: &mut Client) -> Result<ReadOnly, LedgerError> {
    let row = client.query_one(
        "select pg_is_in_recovery(), current_database()::text, current_user::text,
                (select sender_host || ':' || sender_port from pg_stat_wal_receiver),
                (select source from pg_settings where name = 'default_transaction_read_only')",
        &[],
    );
    let row = row.map_err(|why| classify(&why, "asking why the server does not allow writes"))?;
    if row.get(0) {
        let primary: Option<String> = row.get(3);
        let primary = primary.map_or(String::new(), |primary| format!(", {primary}"));
        return Ok(ReadOnly {
            why: "the server is a standby: the job writes, and only a primary lets it".to_owned(),
            remedy: format!(
                "let POSTGRES_URL lead to the primary{primary}; several hosts are possible: \
                 host1:5432,host2:5432"
            ),
        });
    }
    let (database, user): (String, String) = (row.get(1), row.get(2));
    let (database, user) = (quote(&database), quote(&user));
    let remedy = match row.get::<_, Option<&str>>(4) {
        Some("database") => {
            format!("alter database {database} reset default_transaction_read_only;")
        }
        Some("user") => format!("alter role {user} reset default_transaction_read_only;"),
        Some("database user") => {
            format!("alter role {user} in database {database} reset default_transaction_read_only;")
        }
        Some("client") => "take default_transaction_read_only out of POSTGRES_URL".to_owned(),
        _ => {
            "alter system reset default_transaction_read_only; select pg_reload_conf();".to_owned()
        }
    };
    let why = "default_transaction_read_only is on: the job could write nothing".to_owned();
    Ok(ReadOnly { why, remedy })
}

/// Asks the server about itself.
pub fn server(tx: &mut Transaction<'_>, config: &LedgerConfig) -> Result<Server, LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "asking the server about itself");
    let database = Database::of(tx, config).map_err(failed)?;
    let row = tx
        .query_one(
            "select current_setting('server_version'),
                    (select version from pg_stat_ssl where pid = pg_backend_pid() and ssl)",
            &[],
        )
        .map_err(failed)?;
    let before = now_ms();
    let clock = "select floor(extract(epoch from clock_timestamp()) * 1000)::int8";
    let theirs: i64 = tx.query_one(clock, &[]).map_err(failed)?.get(0);
    let after = now_ms();
    Ok(Server {
        version: row.get(0),
        database,
        tls: row.get(1),
        clock_ahead_ms: theirs - (before + after) / 2,
        clock_error_ms: (after - before) / 2 + 1,
        connections: connections(tx).map_err(failed)?,
    })
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as i64
}

/// The tightest of the limits of server, database and role. The connection that asks counts as
/// free, because it ends before a start.
fn connections(tx: &mut Transaction<'_>) -> Result<Connections, postgres::Error> {
    let row = tx.query_one(
        "select current_setting('max_connections')::int8
                    - case when me.rolsuper then 0 else
                        current_setting('superuser_reserved_connections')::int8
                        + coalesce(current_setting('reserved_connections', true), '0')::int8 end
                    - (select count(*) from pg_stat_activity where datid is not null) + 1,
                case when d.datconnlimit >= 0 and not me.rolsuper then d.datconnlimit
                    - (select count(*) from pg_stat_activity a where a.datid = d.oid) + 1 end,
                case when me.rolconnlimit >= 0 and not me.rolsuper then me.rolconnlimit
                    - (select count(*) from pg_stat_activity a where a.usesysid = me.oid) + 1 end,
                d.datname::text, me.rolname::text
         from pg_roles me, pg_database d
         where me.rolname = current_user and d.datname = current_database()",
        &[],
    )?;
    let (database, login): (String, String) = (quote(row.get(3)), quote(row.get(4)));
    let limits = [
        (
            row.get::<_, Option<i64>>(0),
            "max_connections of the server".to_owned(),
            "raise max_connections (it takes a restart), or close other connections".to_owned(),
        ),
        (
            row.get(1),
            format!("the limit of the database {database}"),
            format!("alter database {database} connection limit -1;"),
        ),
        (
            row.get(2),
            format!("the limit of the login {login}"),
            format!("alter role {login} connection limit -1;"),
        ),
    ];
    let known = limits
        .into_iter()
        .filter_map(|(left, limit, remedy)| left.map(|left| Connections { left, limit, remedy }));
    Ok(known.min_by_key(|known| known.left).expect("the first limit is always known"))
}
