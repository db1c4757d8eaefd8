//! What surrounds the table: row security, publications, code of others, and the settings of the
//! login.

use crate::oracle::event;
use crate::postgres::{MINUTE, TEN, world_with_an_event};
use crate::refusal::refused;
use crate::user_table::{COLUMNS, audit};
use crate::world::{Running, finish};
use std::time::Duration;

#[test]
fn row_security_is_refused_at_the_start() {
    let mut world = world_with_an_event("security");
    let role = world.role();
    world.execute(&format!(
        "create role {role} login; grant create on database {} to {role};
         create table sessionized_events ({COLUMNS});
         grant select, insert, delete on sessionized_events to {role};
         alter table sessionized_events enable row level security;",
        world.database
    ));
    world.login = Some(role.clone());
    let remedy = format!("alter role \"{role}\" bypassrls;");
    for policy in [
        "create policy p on sessionized_events using (true)",
        "create policy q on sessionized_events as restrictive using (host <> 'x')",
        &format!(
            "alter table sessionized_events owner to {role};
                  alter table sessionized_events force row level security"
        ),
    ] {
        world.execute(policy);
        let disable = "alter table public.sessionized_events disable row level security;";
        refused(&world, &[], &[], 2, &["row level security", &remedy, disable]);
    }
    world.execute("alter table sessionized_events no force row level security");
    world.run_to_end(&[]);
    assert_eq!(world.rows().len(), 1, "it does not count for the owner");
}

#[test]
fn what_a_publication_needs_is_refused_at_the_start() {
    let world = world_with_an_event("publication");
    world.execute(&format!("create table sessionized_events ({COLUMNS})"));
    let remedy = "alter table public.sessionized_events replica identity full;";
    for publication in [
        "create publication p for all tables",
        "create publication p for tables in schema public",
        "create publication p for table sessionized_events with (publish = 'insert, delete')",
    ] {
        world.execute(publication);
        refused(&world, &[], &[], 2, &["a late event deletes", "replica identity", remedy]);
        world.execute("drop publication p");
    }
    world.execute("create publication p for table sessionized_events with (publish = 'insert')");
    world.run_to_end(&[]);
    world.execute("drop publication p; create publication p for all tables");
    world.execute(remedy);
    world.send_events(0, &[event("10.0.0.1", "h", TEN - MINUTE)]);
    world.run_to_end(&[]);
    assert_eq!(world.rows(), world.answer(&world.name));
    let mut reset = world.command();
    reset.args(["reset", "--yes"]);
    let (status, log) = finish(reset);
    assert!(status.success(), "dead letters and losses can be deleted, too:\n{log}");
}

/// Functions of other roles that would be found before those of Postgres.
#[test]
fn nobody_elses_code_is_found_by_the_search_path() {
    let mut world = world_with_an_event("path");
    world.execute(
        "create table caught (what text); grant insert on caught to public;
         create function public.format(text, text, text) returns text language plpgsql as
             'begin insert into public.caught values (''format''); return $2 || ''.'' || $3; end';
         create function public.array_remove(text[], text) returns text[] language plpgsql as
             'begin insert into public.caught values (''array_remove''); return $1; end';
         create function public.current_setting(text) returns text language plpgsql as
             'begin insert into public.caught values (''setting''); return ''0''; end';
         create function public.same(text, text) returns boolean language plpgsql as
             'begin insert into public.caught values (''=''); return true; end';
         create operator public.= (leftarg = text, rightarg = text, function = public.same);",
    );
    world.execute(&format!(
        "alter database {} set search_path = public, pg_catalog",
        world.database
    ));
    for time in [TEN, TEN - MINUTE] {
        world.send_events(0, &[event("10.0.0.1", "h", time)]);
        world.run_to_end(&[]);
    }
    assert_eq!(world.value("select to_regclass('public.sessionized_events') is not null"), "t");
    audit(&world, &world.name);
    assert_eq!(world.query("select * from caught"), Vec::<Vec<String>>::new());
    // A schema that another role has made before.
    let role = world.role();
    world.execute(&format!(
        "create role {role} login; alter view sessionizer.balance owner to {role}"
    ));
    let says = ["view sessionizer.balance belongs to the role", &*role, "alter view"];
    refused(&world, &[], &[], 2, &says);
    world.execute(&format!(
        "alter view sessionizer.balance owner to {}; alter schema sessionizer owner to {role}",
        world.user
    ));
    let says = ["schema sessionizer belongs to the role", &*role, "alter schema sessionizer owner"];
    refused(&world, &[], &[], 2, &says);
    // Whose the table is.
    world.execute(&format!(
        "alter schema sessionizer owner to {}; alter table sessionized_events owner to {role}",
        world.user
    ));
    let log = world.run_to_end(&[]);
    for part in [&format!("belongs to the role {role}"), "superuser", "deploy/postgres/role.sql"] {
        assert!(log.contains(part), "{part:?} is missing in\n{log}");
    }
    world.execute(&format!("alter table sessionized_events owner to {}", world.user));
    world.login = None;
}

/// Settings of the login or the database that would end commits, or change what is read.
#[test]
fn limits_and_formats_of_the_login_do_not_matter() {
    let mut world = world_with_an_event("limits");
    let role = world.role();
    world.execute(&format!(
        "create role {role} login superuser;
         alter role {role} set statement_timeout = '500ms'; alter role {role} set lock_timeout = '500ms';
         alter role {role} set datestyle = 'SQL, DMY'; alter role {role} set timezone = 'Asia/Tokyo';
         alter role {role} set client_encoding = 'LATIN1';
         alter role {role} set standard_conforming_strings = off;
         alter role {role} set session_replication_role = replica;
         alter role {role} set idle_in_transaction_session_timeout = '30s';"
    ));
    world.login = Some(role);
    world.run_to_end(&[]);
    world.send_events(0, &[event("10.0.0.1", "Käfer.example", TEN)]);
    // A lock on the table lasts for longer than the limits.
    let mut client = world.client();
    let mut held = client.transaction().expect("begun");
    held.batch_execute("lock table sessionizer.bindings").expect("locked");
    let mut command = world.command();
    command.arg("--until-end");
    let job = Running::start(command);
    std::thread::sleep(Duration::from_secs(3));
    held.commit().expect("unlocked");
    let (status, log) = job.wait();
    assert!(status.success() && !log.contains("timeout"), "{log}");
    assert_eq!(world.rows(), world.answer(&world.name));
    audit(&world, &world.name);
}
