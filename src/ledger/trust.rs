//! Decides whose code a session of the job may run.
//!
//! Whoever may create objects in a schema of the search path can shadow a function or an operator
//! of Postgres, and whoever owns a view or a table can have code run when it is read or written,
//! with the rights of the job's login. So every session uses the user's search path only to find
//! the table of sessions, all other names are those of Postgres or qualified, and objects in the
//! schema `sessionizer` must belong to a role that the login trusts anyway.

use postgres::GenericClient;
use sessionizer_core::fault::{Fault, Message};

use crate::dataflow::ports::LedgerError;
use crate::ledger::connect::quote;
use crate::ledger::errors::classify;

/// Saves the user's search path in a setting of its own, and reduces the path to Postgres's own
/// schema. Every name is qualified and there is no operator, because the user's path is still in
/// force here.
pub const CLOSE_PATH: &str = "
    select pg_catalog.set_config('sessionizer.path',
                                 pg_catalog.current_setting('search_path'), false);
    set search_path = pg_catalog, pg_temp;";

/// Lifts limits on statements and locks. One that is set for the login or the database as a whole
/// would cancel the same commit again and again. One in POSTGRES_URL is meant for the job and
/// stays.
pub const LIFT_LIMITS: &str = "
    select set_config(name, '0', false) from pg_settings
    where name in ('statement_timeout', 'lock_timeout', 'transaction_timeout')
          and setting <> '0' and source <> 'client';";

/// Refuses objects in the schema `sessionizer` that belong to a role the login does not trust.
///
/// A login trusts itself, the roles it is a member of, superusers, and the owner of the database. A
/// superuser is a member of every role, so it trusts only superusers.
pub fn refuse_foreign(client: &mut impl GenericClient) -> Result<(), LedgerError> {
    let foreign = client
        .query_opt(
            "select o.what, owner.rolname::text, me.rolname::text, me.rolsuper
             from (select 0 as at, 'schema sessionizer' as what, nspowner as owner
                   from pg_namespace where nspname = 'sessionizer'
                   union all
                   select 1, format('%s sessionizer.%I',
                                    case relkind when 'v' then 'view' else 'table' end, relname),
                          relowner
                   from pg_class
                   where relnamespace = to_regnamespace('sessionizer')
                         and relkind in ('r', 'p', 'v', 'm', 'f')) o
             join pg_roles owner on owner.oid = o.owner
             join pg_roles me on me.rolname = current_user
             join pg_database d on d.datname = current_database()
             where not owner.rolsuper
                   and (me.rolsuper or not (pg_has_role(me.oid, owner.oid, 'usage')
                                            or owner.oid = d.datdba))
             order by o.at, o.what limit 1",
            &[],
        )
        .map_err(|why| classify(&why, "looking at the owners in the schema sessionizer"))?;
    let Some(foreign) = foreign else { return Ok(()) };
    let [what, owner, login]: [String; 3] = [0, 1, 2].map(|column| foreign.get(column));
    let superuser = if foreign.get(3) { ", a superuser" } else { "" };
    let kind = what.split(' ').next().unwrap_or("table").to_owned();
    let name = what[kind.len() + 1..].to_owned();
    let problem = format!(
        "the {what} belongs to the role {owner}, and the job logs in as {login}{superuser}: \
         whoever owns it can have any code run as {login}"
    );
    let remedy = format!(
        "Log in as {owner}, or if you trust what is in it: alter {kind} {name} owner to {};",
        quote(&login)
    );
    Err(LedgerError::Fatal(Fault::config(Message::new(problem).remedy(". ", remedy))))
}
