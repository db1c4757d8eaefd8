//! The user's table may be anything: what cannot work is refused at the start, and a row that
//! cannot be stored becomes a dead letter, while the others are stored.
//!
//! Each kind of table is one line; all of them are filled from the same topic.

use std::collections::BTreeSet;

use crate::kafka::at_once;
use crate::oracle::{Event, Row, event};
use crate::postgres::{MINUTE, TEN};
use crate::refusal::refused;
use crate::world::{World, eventually, finish};

pub const COLUMNS: &str = "ip text, host text, session_start timestamptz(3), \
                       session_end timestamptz(3), num_logs bigint";
pub const DAY: i64 = 86_400_000;
const SIX: &str = "2001:0db8:0000:0000:0000:ffff:0000:0001";
const BAD: &str = "bad.example";

/// 2,500 characters that do not compress.
fn big() -> String {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'a' + ((state >> 33) % 26) as u8)
    };
    (0..2_500).map(|_| next()).collect()
}

/// What each session is, by its key.
fn events() -> Vec<Event> {
    vec![
        event("10.0.0.1", "h", TEN),
        event("10.0.0.1", "h", TEN + MINUTE),
        event("10.0.0.2", "h", TEN - 400 * DAY),
        event("10.0.0.3", &big(), TEN),
        event("10.0.0.9", BAD, TEN),
        event(SIX, "h", TEN),
    ]
}

/// Both belong to sessions that have closed.
fn late() -> Vec<Event> {
    vec![event("10.0.0.1", "h", TEN + 2 * MINUTE), event("10.0.0.9", BAD, TEN + MINUTE)]
}

/// What becomes of a job with a table.
enum Becomes {
    /// The start ends with 2 and says this.
    Refused(&'static [&'static str]),
    /// Sessions of these addresses are dead letters, all others rows; the first run says this.
    Stores(&'static [&'static str], &'static [&'static str]),
    /// Rows that come first keep others out.
    StoresSome,
}
use Becomes::{Refused, Stores, StoresSome};

/// A name, the definition (`$t` is the table, `$c` the usual columns), what is done between the
/// runs, and what becomes of it.
type Case = (&'static str, &'static str, &'static str, Becomes);

fn cases() -> Vec<Case> {
    vec![
        ("plain", "create table $t ($c, primary key (ip, host, session_start))", "", Stores(&[], &[])),
        (
            "narrow",
            "create table $t ($c); alter table $t alter ip type varchar(15)",
            "",
            Stores(&[SIX], &["alter table public.narrow alter column ip type text;", "(22001)"]),
        ),
        (
            "checked",
            "create table $t ($c, check (host <> 'bad.example'))",
            "",
            Stores(&["10.0.0.9"], &["(23514)", "10.0.0.9", "bad.example", "row_refused"]),
        ),
        (
            "referring",
            "create table $t_hosts (name text primary key);
             insert into $t_hosts values ('h');
             create table $t ($c, foreign key (host) references $t_hosts)",
            "",
            Stores(&["10.0.0.9", "10.0.0.3"], &["(23503)"]),
        ),
        (
            "deferred",
            "create table $t_hosts (name text primary key);
             insert into $t_hosts values ('h');
             create table $t ($c, foreign key (host) references $t_hosts
                              deferrable initially deferred)",
            "",
            Stores(&["10.0.0.9", "10.0.0.3"], &["(23503)"]),
        ),
        (
            "deferred_trigger",
            "create table $t ($c); create function $t_f() returns trigger language plpgsql as
             'begin if new.host like ''bad%'' then raise ''not this one''; end if; return null; end';
             create constraint trigger c after insert on $t deferrable initially deferred
             for each row execute function $t_f()",
            "",
            Stores(&["10.0.0.9"], &["not this one (P0001)"]),
        ),
        (
            "raising",
            "create table $t ($c); create function $t_f() returns trigger language plpgsql as
             'begin if new.host like ''bad%'' then raise ''not this one''; end if; return new; end';
             create trigger r before insert on $t for each row execute function $t_f()",
            "",
            Stores(&["10.0.0.9"], &["not this one (P0001)"]),
        ),
        (
            "filtering",
            "create table $t ($c); create function $t_f() returns trigger language plpgsql as
             'begin if new.host like ''bad%'' then return null; end if; return new; end';
             create trigger r before insert on $t for each row execute function $t_f()",
            "",
            Stores(&["10.0.0.9"], &["a trigger of public.filtering keeps rows out"]),
        ),
        (
            "changing",
            "create table $t ($c); create function $t_f() returns trigger language plpgsql as
             'begin if new.host like ''bad%'' then new.num_logs = 0; end if; return new; end';
             create trigger r before insert on $t for each row execute function $t_f()",
            "",
            Stores(&["10.0.0.9"], &["a trigger of public.changing has changed the row"]),
        ),
        (
            "wide_index",
            "create table $t ($c); create index on $t ((host || reverse(host)))",
            "",
            Stores(&["10.0.0.3"], &["(54000)", "drop the index"]),
        ),
        ("unique_host", "create table $t ($c, unique (host))", "", StoresSome),
        (
            "excluding",
            "create table $t ($c, exclude using gist (tstzrange(session_start, session_end)
                                                      with &&))",
            "",
            StoresSome,
        ),
        (
            "by_range",
            "create table $t ($c) partition by range (session_start);
             create table $t_p partition of $t for values from ('2024-01-01') to ('2025-01-01')",
            "",
            Stores(&["10.0.0.2"], &["no partition of relation", "default;"]),
        ),
        (
            "by_list",
            "create table $t ($c) partition by list (host);
             create table $t_p partition of $t for values in ('h', 'other')",
            "",
            Stores(&["10.0.0.9", "10.0.0.3"], &["no partition of relation"]),
        ),
        (
            "by_hash",
            "create table $t ($c, primary key (ip, host, session_start)) partition by hash (ip);
             create table $t_0 partition of $t for values with (modulus 2, remainder 0);
             create table $t_1 partition of $t for values with (modulus 2, remainder 1)",
            "",
            Stores(&[], &[]),
        ),
        (
            "inherited",
            "create table $t ($c); create table $t_child () inherits ($t)",
            "",
            Stores(&[], &[]),
        ),
        (
            "more_columns",
            "create table $t ($c, id bigint generated always as identity, note text default 'x',
                              day date generated always as ((session_start at time zone 'UTC')::date)
                              stored)",
            "",
            Stores(&[], &[]),
        ),
        (
            "sorted_otherwise",
            "create table $t ($c); alter table $t alter host type text collate \"en-x-icu\";
             alter table $t add primary key (ip, host, session_start)",
            "",
            Stores(&[], &[]),
        ),
        ("unlogged", "create unlogged table $t ($c)", "", Stores(&[], &["unlogged", "set logged;"])),
        (
            "insert_rule",
            "create table $t ($c); create rule r as on insert to $t do instead nothing",
            "",
            Stores(&[], &[]),
        ),
        (
            // Somebody else refers to a row that a late event would replace.
            "referred",
            "create table $t ($c, primary key (ip, host, session_start));
             create table $t_notes (ip text, host text, session_start timestamptz(3),
                                    foreign key (ip, host, session_start) references $t)",
            "insert into $t_notes select ip, host, session_start from $t where ip = '10.0.0.9'",
            Stores(&["10.0.0.9"], &[]),
        ),
        (
            "swallowing",
            "create table $t ($c);
             create function $t_f() returns trigger language plpgsql as 'begin return null; end';
             create trigger swallow before insert on $t for each row execute function $t_f()",
            "",
            Refused(&["a trigger of public.swallowing keeps rows out", "swallow (public."]),
        ),
        (
            "lowering",
            "create table $t ($c); create function $t_f() returns trigger language plpgsql as
             'begin new.host = lower(new.host); return new; end';
             create trigger low before insert on $t for each row execute function $t_f()",
            "",
            Refused(&["has changed the row", "low (public.lowering_f)", "disable trigger"]),
        ),
        (
            "statement",
            "create table $t ($c);
             create function $t_f() returns trigger language plpgsql as 'begin raise ''closed''; end';
             create trigger s before insert on $t execute function $t_f()",
            "",
            Refused(&["closed (P0001)", "s (public.statement_f)"]),
        ),
        (
            "keeping",
            "create table $t ($c);
             create function $t_f() returns trigger language plpgsql as 'begin return null; end';
             create trigger keep before delete on $t for each row execute function $t_f()",
            "",
            Refused(&["a late event deletes", "keeps the others", "keep (public.keeping_f)"]),
        ),
        (
            "append_only",
            "create table $t ($c);
             create function $t_f() returns trigger language plpgsql as 'begin raise ''no''; end';
             create trigger a before delete on $t execute function $t_f()",
            "",
            Refused(&["a late event deletes", "no (P0001)"]),
        ),
        (
            "delete_rule",
            "create table $t ($c); create rule r as on delete to $t do instead nothing",
            "",
            Refused(&["a late event deletes", "a rule"]),
        ),
        (
            "by_path",
            "create table $t ($c); create table $t_log (host text);
             create function $t_f() returns trigger language plpgsql as
             'begin insert into by_path_log values (new.host); return new; end';
             create trigger l before insert on $t for each row execute function $t_f()",
            "",
            Refused(&["(42P01)", "by_path_log", "alter function ... set search_path"]),
        ),
        (
            "case_blind",
            "create collation $t_c (provider = icu, locale = 'und-u-ks-level2',
                                    deterministic = false);
             create table $t ($c); alter table $t alter host type text collate $t_c",
            "",
            Refused(&["collation case_blind_c", "alter column host type text collate \"C\";"]),
        ),
        (
            "generated",
            "create table $t (ip text, host text, session_start timestamp(3), num_logs bigint,
                 session_end timestamp(3) generated always as (session_start + '5 min') stored)",
            "",
            Refused(&["column session_end is generated"]),
        ),
        (
            "domains",
            "create domain $t_d as text check (value <> ''); create table $t ($c);
             alter table $t alter host type $t_d",
            "",
            Refused(&["column host is of type", "domains_d", "text"]),
        ),
        ("materialized", "create materialized view $t as select 1 as ip", "", Refused(&["materialized"])),
        ("sequence", "create sequence $t", "", Refused(&["a sequence"])),
    ]
}

/// Without the sessions of some addresses.
fn without(rows: &BTreeSet<Row>, ips: &[&str]) -> BTreeSet<Row> {
    rows.iter().filter(|row| !ips.contains(&&*row.0)).cloned().collect()
}

pub fn audit(world: &World, job: &str) -> String {
    let mut audit = world.command();
    audit.args(["audit", "--job", job]);
    let (status, log) = finish(audit);
    assert!(status.success(), "{job}: {log}");
    log
}

#[test]
fn what_cannot_work_is_refused_and_what_cannot_be_stored_is_a_dead_letter() {
    let world = World::new("tables");
    world.create_topic(1);
    world.send_events(0, &events());
    let first = world.answer(&world.name);
    let run = |case: &Case| {
        let mut command = world.command();
        command.args(["--until-end", "--job", case.0, "--table", case.0, "-w", "1"]);
        let (status, log) = finish(command);
        (status.code(), log)
    };
    let cases = cases();
    let few_at_once = |act: &(dyn Fn(&Case) + Sync)| {
        cases.chunks(4).for_each(|few| at_once(few, act));
    };
    few_at_once(&|case| {
        let (name, ddl, ..) = case;
        let ddl = ddl.replace("$t", name).replace("$c", COLUMNS);
        world.execute(&ddl);
        let (code, log) = run(case);
        let says: &[&str] = match &case.3 {
            Refused(says) | Stores(_, says) => says,
            StoresSome => &[],
        };
        for part in says {
            assert!(log.contains(part), "{name} does not say {part:?}:\n{log}");
        }
        assert!(!log.contains("panicked"), "{name}:\n{log}");
        match &case.3 {
            Refused(_) => {
                assert_eq!(code, Some(2), "{name}:\n{log}");
                assert_eq!(log.matches("ERROR]").count(), 1, "{name}:\n{log}");
                let job = format!("select count(*) from sessionizer.jobs where job = '{name}'");
                let made = world.value("select to_regclass('sessionizer.jobs') is not null") == "t";
                assert!(!made || world.value(&job) == "0", "{name} leaves nothing behind");
            }
            Stores(ips, _) => {
                assert_eq!(code, Some(0), "{name}:\n{log}");
                let ips: &[&str] = if *name == "referred" { &[] } else { ips };
                assert_eq!(world.rows_of(name), without(&first, ips), "{name}:\n{log}");
            }
            StoresSome => assert_eq!(code, Some(0), "{name}:\n{log}"),
        }
    });
    world.send_events(0, &late());
    let (first, second) = (first, world.answer(&world.name));
    few_at_once(&|case| {
        let name = case.0;
        if matches!(case.3, Refused(_)) {
            return;
        }
        world.execute(&case.2.replace("$t", name));
        let (code, log) = run(case);
        assert_eq!(code, Some(0), "{name}:\n{log}");
        if let Stores(ips, _) = case.3 {
            let mut want = without(&second, ips);
            if name == "referred" {
                want.extend(first.iter().filter(|row| ips.contains(&&*row.0)).cloned());
            }
            assert_eq!(world.rows_of(name), want, "{name}:\n{log}");
            let letters = format!(
                "select distinct convert_from(payload, 'UTF8')::json ->> 'ip'
                 from sessionizer.dead_letters where job = '{name}' order by 1"
            );
            let letters: Vec<String> =
                world.query(&letters).into_iter().map(|row| row[0].clone()).collect();
            let mut ips: Vec<&str> = ips.to_vec();
            ips.sort_unstable();
            assert_eq!(letters, ips, "{name}");
        }
        let balance = format!(
            "select b.difference, b.dead = (select coalesce(sum(records), 0)
                 from sessionizer.dead_letters d where d.job = b.job),
                 b.closed = (select sum(num_logs) from {name}), b.records
             from sessionizer.balance b where job = '{name}'"
        );
        assert_eq!(world.query(&balance), [["0", "t", "t", "8"]], "{name}:\n{log}");
        let said = audit(&world, name);
        assert!(!said.contains("wrong:"), "{name}: {said}");
    });
}

/// The decision is made in the transaction that makes it durable: a crash neither repeats nor
/// forgets it.
#[test]
fn refused_rows_are_counted_once_whatever_crashes() {
    let world = World::new("refused-crash");
    world.create_topic(2);
    world.execute(&format!("create table sessionized_events ({COLUMNS}, check (ip <> 'bad'))"));
    let args = ["--epoch", "50ms", "--out-of-orderness", "0s", "--idle-timeout", "1h"];
    let mut sent = Vec::new();
    for round in 0..6 {
        let at = TEN + round * 20 * MINUTE;
        // Every second round brings late events as well.
        let times = if round % 2 == 0 { [at, at + MINUTE] } else { [at, at - 50 * MINUTE] };
        for partition in 0..2 {
            let events: Vec<Event> = times
                .iter()
                .flat_map(|time| ["bad", "good", "better"].map(|ip| event(ip, "h", *time)))
                .collect();
            world.send_events(partition, &events);
            sent.extend(events);
        }
        let job = world.start(&[&args[..], &["-w", &format!("{}", round % 3 + 1)]].concat());
        let read = format!(
            "select coalesce((select max(records) from sessionizer.balance), 0) >= {}",
            sent.len()
        );
        eventually("the events are durable", || {
            world.value("select to_regclass('sessionizer.balance') is not null") == "t"
                && world.value(&read) == "t"
        });
        job.kill();
    }
    world.run_to_end(&["-w", "2"]);
    assert_eq!(world.rows(), without(&world.answer(&world.name), &["bad"]));
    let bad = sent.iter().filter(|event| event.ip == "bad").count().to_string();
    let letters = "select sum(records), bool_and(reason = 'row_refused' and topic is null)
                   from sessionizer.dead_letters";
    assert_eq!(world.query(letters), [[&*bad, "t"]]);
    let balance = "select dead, difference from sessionizer.balance";
    assert_eq!(world.query(balance), [[&*bad, "0"]]);
    audit(&world, &world.name);
}

#[test]
fn a_table_that_refuses_everything_stops_the_job_and_one_that_refuses_much_does_not() {
    let world = World::new("refuses");
    world.create_topic(1);
    let events: Vec<Event> = (0..1_500)
        .map(|n| event(&format!("{}-{n}", if n < 1_200 { 1 } else { 9 }), "h", TEN))
        .collect();
    world.send_events(0, &events);
    world.execute(&format!(
        "create table sessionized_events ({COLUMNS}, constraint c check (false))"
    ));
    let says = ["has refused the first 1000 rows of this run and stored none", "(23514)"];
    refused(&world, &["-w", "1"], &[], 2, &says);
    let state = "select coalesce(sum(records), 0) from sessionizer.dead_letters";
    assert_eq!(world.value(state), "0", "nothing was decided");
    // The rows that it refuses are the first in the order of the key.
    world.execute(
        "alter table sessionized_events drop constraint c, add check (ip collate \"C\" > '5')",
    );
    world.run_to_end(&["-w", "1"]);
    assert_eq!((world.rows().len(), &*world.value(state)), (300, "1200"));
    assert_eq!(world.imbalance(), "0");
}
