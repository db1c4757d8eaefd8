//! What the login may do: the rights that the job needs, those that it should not have, and what
//! row security hides from it. Checked at each start, before the trial of [`super::probe`].

use postgres::Transaction;
use sessionizer_core::fault::{Fault, Message};

use crate::dataflow::ports::LedgerError;
use crate::ledger::connect::quote;
use crate::ledger::errors::classify;
use crate::ledger::table::Table;

/// Returns advice if the table belongs to another role, or if the login has too many rights.
pub fn advise_on_owners(
    tx: &mut Transaction<'_>,
    table: &Table,
    first_start: bool,
) -> Result<Vec<Message>, LedgerError> {
    let row = tx
        .query_one(
            "select me.rolname::text, me.rolsuper, owner.rolname::text,
                    owner.oid <> me.oid and not owner.rolsuper
                    and (me.rolsuper or not pg_has_role(me.oid, owner.oid, 'usage')),
                    exists (select from pg_roles other
                            where other.rolcanlogin and not other.rolsuper
                                  and (has_database_privilege(other.oid, current_database(),
                                                              'create')
                                       or has_schema_privilege(other.oid, c.relnamespace,
                                                               'create')))
             from pg_class c join pg_roles owner on owner.oid = c.relowner
             join pg_roles me on me.rolname = current_user
             where c.oid = to_regclass($1)",
            &[&table.quoted()],
        )
        .map_err(|why| classify(&why, "asking for the owner of the table"))?;
    let (login, superuser): (&str, bool) = (row.get(0), row.get(1));
    let (owner, foreign): (&str, bool) = (row.get(2), row.get(3));
    let others: bool = row.get(4);
    let mut advice = Vec::new();
    if foreign {
        let which = if superuser { ", which is a superuser" } else { "" };
        advice.push(Message::new(format!(
            "the table {} belongs to the role {owner}: its triggers run with the rights of the \
             job's login, {login}{which}",
            table.shown
        )));
    }
    if superuser {
        let what = format!("the job logs in as {login}, a superuser, and needs no such rights");
        let remedy = "deploy/postgres/role.sql makes a role that may do just what the job does";
        if foreign || others {
            let problem = format!(
                "{what}. Other logins may create functions and tables here, which must not come to \
                 run as a superuser"
            );
            advice.push(Message::new(problem).remedy(": ", remedy));
        } else if first_start {
            log::info!("{what}: {remedy}");
        }
    }
    Ok(advice)
}

/// The rights that the job needs on its own tables, from its first start to a reset.
const RIGHTS: [(&str, &str); 38] = [
    ("schema_version", "select"),
    ("jobs", "select"),
    ("jobs", "insert"),
    ("jobs", "update"),
    ("shard_progress", "select"),
    ("shard_progress", "insert"),
    ("shard_progress", "update"),
    ("epochs", "select"),
    ("epochs", "insert"),
    ("epochs", "update"),
    ("epochs", "delete"),
    ("bindings", "select"),
    ("bindings", "insert"),
    ("bindings", "update"),
    ("bindings", "delete"),
    ("snapshots", "select"),
    ("snapshots", "insert"),
    ("snapshots", "update"),
    ("dead_letters", "select"),
    ("dead_letters", "insert"),
    ("dead_letters", "update"),
    ("dead_letters", "delete"),
    ("losses", "select"),
    ("losses", "insert"),
    ("losses", "delete"),
    ("replay_differences", "select"),
    ("replay_differences", "insert"),
    ("anomalies", "select"),
    ("anomalies", "insert"),
    ("anomalies", "update"),
    ("anomalies", "delete"),
    ("forgotten", "select"),
    ("forgotten", "insert"),
    ("forgotten", "update"),
    ("forgotten", "delete"),
    ("audit_state", "select"),
    ("audit_state", "delete"),
    ("balance", "select"),
];

/// Fails if the login lacks a right on any existing object in the schema `sessionizer`.
pub fn check_rights(tx: &mut impl postgres::GenericClient) -> Result<(), LedgerError> {
    let (tables, rights): (Vec<&str>, Vec<&str>) = RIGHTS.into_iter().unzip();
    let missing = tx
        .query(
            "select format('grant usage on schema sessionizer to %I;', current_user),
                    current_user::text
             from pg_namespace n
             where n.nspname = 'sessionizer' and not has_schema_privilege(n.oid, 'usage')
             union all
             (select format('grant %s on sessionizer.%I to %I;', string_agg(r, ', ' order by at), t,
                            current_user), current_user::text
              from unnest($1::text[], $2::text[]) with ordinality needed(t, r, at)
              join pg_class c on c.relname = t
              join pg_namespace n on n.oid = c.relnamespace and n.nspname = 'sessionizer'
              where not has_table_privilege(c.oid, r) group by t order by min(at))",
            &[&tables, &rights],
        )
        .map_err(|why| classify(&why, "asking for the rights in the schema sessionizer"))?;
    let Some(first) = missing.first() else { return Ok(()) };
    let login: String = first.get(1);
    let grants: Vec<&str> = missing.iter().map(|row| row.get(0)).collect();
    let problem = format!(
        "Postgres refuses: the login {login} lacks rights in the schema sessionizer, all of which \
         the job needs sooner or later"
    );
    let message = Message::new(problem).remedy(". Grant them: ", grants.join(" "));
    Err(LedgerError::Fatal(Fault::config(message)))
}

/// Refuses row security: policies hide rows, and COPY does not work with them.
pub fn refuse_row_security(tx: &mut Transaction<'_>, table: &Table) -> Result<(), LedgerError> {
    let row = tx
        .query_one(
            "select row_security_active(to_regclass($1)::oid), current_user::text",
            &[&table.quoted()],
        )
        .map_err(|why| classify(&why, "asking for row security"))?;
    if !row.get::<_, bool>(0) {
        return Ok(());
    }
    let (shown, login) = (&table.shown, row.get::<_, &str>(1));
    let problem = format!(
        "the table {shown} has row level security that applies to the login {login}: it can hide \
         rows that late events touch, and COPY does not work with it"
    );
    let remedy = format!(
        "Either alter role {} bypassrls; or alter table {shown} disable row level security;",
        quote(login)
    );
    Err(LedgerError::Fatal(Fault::config(Message::new(problem).remedy(". ", remedy))))
}
