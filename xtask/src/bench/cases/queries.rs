//! The queries of `queries/` over a large table: how long each takes, and how PostgreSQL reads the
//! table for it.

use std::time::Instant;

use crate::bench::Bench;
use crate::bench::measure::{COUNT, SECONDS, thousands};
use crate::failure::{Result, While};
use crate::root;
use crate::screen::say;
use crate::sql::Connection;

/// The sessions of half a million visitors on twelve hosts in 90 days. The columns, the key and the
/// index are those of the job's table, and rows come in about the order of session_end.
const TABLE: &str = "
    create table sessionized_events (
        ip text collate \"C\" not null, host text collate \"C\" not null,
        session_start timestamptz(3) not null, session_end timestamptz(3) not null,
        num_logs bigint not null);
    select setseed(0.5);
    insert into sessionized_events
    select format('10.%s.%s.%s', visitor / 65536, visitor / 256 % 256, visitor % 256),
           format('host-%s.example', floor(12 * power(random(), 2))),
           start,
           start + interval '1 s' * (300 + case events when 1 then 0
                                           else least(events * 40 * random(), 40000) end),
           events
    from (select floor(500000 * power(random(), 2))::int as visitor,
                 timestamptz '2026-08-01 00:00Z'
                     + (n + 4000 * random()) * interval '90 days' / :rows as start,
                 case when random() < 0.45 then 1
                      else least(1000, ceil(power(random(), -0.6)))::bigint end as events
          from generate_series(1, :rows) n) made;
    alter table sessionized_events add primary key (ip, host, session_start);
    create index on sessionized_events using brin (session_end) with (autosummarize = on);
    vacuum analyze sessionized_events;";

/// What the queries ask besides the table.
const JOB: &str = "
    insert into sessionizer.jobs (job, table_schema, table_name, shards, gap_ms, session_end,
                                  found_rows, started_by)
    values ('queries', 'public', 'sessionized_events', 128, 300000, 'window', false, 'xtask');";

/// What the report gives a query for sorting and hashing, and what PostgreSQL gives by default.
const MEMORY: [&str; 2] = ["64MB", "4MB"];

pub fn run(bench: &mut Bench) -> Result<()> {
    let rows = 2 * bench.events;
    let server = bench.servers.postgres.sql();
    let mut connection = server.connect()?;
    say(format!("making a table of {} rows", thousands(rows)));
    connection.run(include_str!("../../../../src/ledger/migrations/001_tables.sql"))?;
    for statement in TABLE.replace(":rows", &rows.to_string()).split_inclusive(';') {
        connection.run(statement)?; // `vacuum` has to be alone.
    }
    connection.run(JOB)?;
    bench.results.add("rows of the table", COUNT, &[rows as f64]);
    for (name, sql) in queries()? {
        for memory in MEMORY {
            connection.run(&format!("set work_mem = '{memory}'"))?;
            let mut seconds = Vec::new();
            for turn in 1..=bench.runs {
                let began = Instant::now();
                connection.run(&sql).during(&name)?;
                seconds.push(began.elapsed().as_secs_f64());
                say(format!("{name}, {memory}, {turn} of {}: {:.1} s", bench.runs, seconds[0]));
            }
            let how = plan(&mut connection, &sql)?;
            bench.results.add(format!("{name}, {memory}: {how}"), SECONDS, &seconds);
        }
    }
    connection.run("drop table sessionized_events; drop schema sessionizer cascade")
}

/// The queries of the table, by name, without what is for psql alone.
fn queries() -> Result<Vec<(String, String)>> {
    let directory = root().join("queries");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&directory).during(directory.display())? {
        let path = entry.during(directory.display())?.path();
        let text = std::fs::read_to_string(&path).during(path.display())?;
        let Some((_, sql)) = text.split_once("\\endif\n") else { continue };
        if let (true, Some(name)) = (sql.contains(":sessions"), path.file_stem()) {
            let sql = sql.replace(":'sessions'", "'sessionized_events'");
            let sql = sql.replace(":sessions", "sessionized_events");
            found.push((name.to_string_lossy().into_owned(), sql));
        }
    }
    found.sort();
    Ok(found)
}

/// How the table is read, from the plan: each kind of scan once.
fn plan(connection: &mut Connection, sql: &str) -> Result<String> {
    let plan = connection.rows(&format!("explain (costs off) {sql}"))?;
    let mut scans: Vec<String> = Vec::new();
    for line in plan.iter().filter(|line| line.contains(" sessionized_events")) {
        let scan = line.trim().trim_start_matches("-> ").trim();
        let scan = scan.split(" on ").next().unwrap_or(scan);
        let scan = scan.split(" using ").next().unwrap_or(scan).to_lowercase();
        if !scans.contains(&scan) {
            scans.push(scan);
        }
    }
    Ok(scans.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queries_of_the_table_are_found_and_leave_nothing_to_psql() {
        let queries = queries().expect("queries/ is there");
        assert!(queries.len() >= 15, "{}", queries.len());
        for (name, sql) in queries {
            assert!(![":s", ":'", "\\"].iter().any(|rest| sql.contains(rest)), "{name}: {sql}");
        }
    }
}
