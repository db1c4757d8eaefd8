//! The same job on Apache Flink, in turn with this one. See bench/flink.

use std::process::Command;
use std::time::Instant;

use crate::bench::Bench;
use crate::bench::backlog::{Run, Start};
use crate::bench::measure::{COUNT, EVENTS_PER_S, SECONDS};
use crate::failure::{Result, While, fail};
use crate::process::last_lines;
use crate::screen::say;
use crate::sql::number;
use crate::{leftovers, root};

/// The heap has its full size from the start, as Flink's own scripts set it. The other fair way is
/// a heap that grows as needed.
const WAYS: [Way; 4] = [
    Way { key: "sql", name: "Flink, Table API", class: "sql", heap: "-Xms4g" },
    Way {
        key: "sql-grows",
        name: "Flink, Table API, a heap that grows",
        class: "sql",
        heap: "-Xms64m",
    },
    Way { key: "stream", name: "Flink, DataStream API", class: "stream", heap: "-Xms4g" },
    Way {
        key: "stream-grows",
        name: "Flink, DataStream API, a heap that grows",
        class: "stream",
        heap: "-Xms64m",
    },
];

struct Way {
    /// Its name in the ratios.
    key: &'static str,
    name: &'static str,
    /// Which of the two jobs.
    class: &'static str,
    heap: &'static str,
}

/// A run, and the figures by which all three are compared.
struct Compared {
    run: Run,
    /// From the start to the first row.
    first_row_s: f64,
    /// All events over the seconds from the first row to the last.
    row_rate: f64,
}

pub fn run(bench: &mut Bench) -> Result<()> {
    let java = peer_command()?;
    let topic = bench.backlog()?;
    bench.warm(topic)?;
    let (mut ours, mut theirs) = (Vec::new(), WAYS.map(|_| Vec::new()));
    for turn in 1..=bench.runs {
        for (way, runs) in WAYS.iter().zip(&mut theirs) {
            runs.push(measure_peer(bench, &java, topic, way, turn)?);
        }
        let label = format!("sessionizer, {turn} of {}", bench.runs);
        let start = Start { topic, label: &label, options: &["-w", "2"], cluster: None };
        let run = bench.measure_and_keep(start)?;
        let first_row_s = seconds_to_the_first_row(bench, &run.job, run.wall_s)?;
        let row_rate = rate_of_rows(bench, &run.job)?;
        if turn == 1 {
            compare_tables(bench, &run.job)?;
        }
        bench.servers.postgres.sql().run("drop table peer_sql, peer_stream")?;
        bench.forget(&run.job)?;
        ours.push(Compared { run, first_row_s, row_rate });
    }
    for at in [0, 2, 1, 3] {
        report(bench, WAYS[at].name, &theirs[at]);
    }
    report(bench, "sessionizer -w 2", &ours);
    for (way, theirs) in WAYS.iter().zip(&theirs) {
        compare(bench, way.key, &ours, theirs);
    }
    Ok(())
}

/// Builds bench/flink. Returns the command that runs it, without the size of the heap.
fn peer_command() -> Result<Vec<String>> {
    let script = root().join("scripts/lib/peer");
    let built = leftovers::run_in_foreground(&mut Command::new(&script));
    let (status, words) = built.during(script.display())?;
    if !status.success() {
        return fail("bench/flink cannot be built");
    }
    Ok(words.lines().map(str::to_owned).collect())
}

fn measure_peer(
    bench: &mut Bench,
    java: &[String],
    topic: &str,
    way: &Way,
    turn: usize,
) -> Result<Compared> {
    let table = format!("peer_{}", way.class);
    create_table(bench, &table)?;
    let command = command(bench, java, topic, way, &table)?;
    let (postgres_s, kafka_s) = bench.servers_cpu();
    let label = format!("{}, {turn} of {}", way.name, bench.runs);
    let began = Instant::now();
    let finished = bench.finish(&label, vec![command])?;
    let wall_s = began.elapsed().as_secs_f64();
    let first_row_s = seconds_to_the_first_row(bench, &table, wall_s)?;
    let (postgres_now_s, kafka_now_s) = bench.servers_cpu();
    // All of its events count: nobody knows how many it read before the first row. It favours
    // Flink.
    let [events, seconds] = bench.servers.postgres.sql().row(&format!(
        "select coalesce(sum(num_logs), 0), coalesce(extract(epoch from
             max(pg_xact_commit_timestamp(xmin)) - min(pg_xact_commit_timestamp(xmin))), 0)
         from {table}"
    ))?;
    let (events, seconds) = (number(&events)?, number(&seconds)?);
    if events == 0.0 {
        let words = last_lines(&bench.servers.file("job-0.log"), 3);
        return fail(format!("{label}: no session came: {words}"));
    }
    let run = Run {
        job: table,
        records: events,
        timed_records: events,
        seconds: if seconds > 0.0 { seconds } else { wall_s },
        wall_s,
        cpu_s: finished.cpu_s,
        peak_mb: finished.peak_mb,
        postgres_s: postgres_now_s - postgres_s,
        kafka_s: kafka_now_s - kafka_s,
    };
    say(format!(
        "{label}: {} events/s, {:.2} s of CPU ({:.3} µs an event), {:.0} MB; {wall_s:.3} s in all, \
         {first_row_s:.2} s to the first row",
        EVENTS_PER_S.show(run.rate()),
        run.cpu_s,
        run.cpu_us_per_event(),
        run.peak_mb,
    ));
    Ok(Compared { row_rate: run.rate(), run, first_row_s })
}

/// Like the table that the job creates, but without a time zone: Flink's sink cannot write one.
fn create_table(bench: &Bench, table: &str) -> Result<()> {
    let sql = bench.servers.postgres.sql();
    sql.run(&format!("drop table if exists {table}"))?;
    sql.run(&format!(
        "create table {table} (ip text collate \"C\", host text collate \"C\",
             session_start timestamp(3), session_end timestamp(3), num_logs bigint,
             primary key (ip, host, session_start))"
    ))
}

/// The command that runs the job into this table, from no checkpoint.
fn command(bench: &Bench, java: &[String], topic: &str, way: &Way, table: &str) -> Result<Command> {
    let checkpoints = bench.servers.file("checkpoints");
    let _ = std::fs::remove_dir_all(&checkpoints);
    let [program, arguments @ ..] = java else { return fail("scripts/lib/peer prints nothing") };
    let mut command = bench.servers.command(program.as_ref());
    command.env("KAFKA_TOPIC", topic);
    command.env("PEER_TABLE", table).env("PEER_CHECKPOINTS", &checkpoints);
    command.args([way.heap, "-Xmx4g"]).args(arguments).arg(way.class);
    Ok(command)
}

/// The seconds from the start of a run to its first row, just after the run has ended.
fn seconds_to_the_first_row(bench: &Bench, table: &str, wall_s: f64) -> Result<f64> {
    bench.servers.postgres.sql().number(&format!(
        "select coalesce(round(extract(epoch from min(pg_xact_commit_timestamp(xmin))
             - (clock_timestamp() - interval '{wall_s} s'))::numeric, 2), 0) from \"{table}\""
    ))
}

/// All events over the seconds from the first row to the last.
fn rate_of_rows(bench: &Bench, table: &str) -> Result<f64> {
    bench.servers.postgres.sql().number(&format!(
        "select sum(num_logs) / greatest(0.001, extract(epoch from
             max(pg_xact_commit_timestamp(xmin)) - min(pg_xact_commit_timestamp(xmin))))
         from \"{table}\""
    ))
}

/// All three must have found the same sessions, or nothing is comparable.
fn compare_tables(bench: &mut Bench, job: &str) -> Result<()> {
    let ours = format!(
        "select ip, host, session_start at time zone 'UTC' as session_start,
             session_end at time zone 'UTC' as session_end, num_logs from \"{job}\""
    );
    for other in ["peer_sql", "peer_stream"] {
        let differing = bench.servers.postgres.sql().number(&format!(
            "with ours as ({ours})
             select (select count(*) from (table ours except all table {other}) a)
                  + (select count(*) from (table {other} except all table ours) b)"
        ))?;
        let rows = bench.rows(other)?;
        say(format!("{other}: {differing} of {rows} rows differ from ours"));
        bench.results.add(format!("{other}: rows that differ from ours"), COUNT, &[differing]);
        if differing > 0.0 {
            return fail(format!("{differing} rows of {other} differ: nothing is comparable"));
        }
    }
    Ok(())
}

fn report(bench: &mut Bench, name: &str, all: &[Compared]) {
    let runs: Vec<Run> = all.iter().map(|compared| compared.run.clone()).collect();
    bench.results.report(name, &runs);
    let first: Vec<f64> = all.iter().map(|compared| compared.first_row_s).collect();
    bench.results.add(format!("{name}: from start to the first row"), SECONDS, &first);
}

fn compare(bench: &mut Bench, way: &str, ours: &[Compared], theirs: &[Compared]) {
    let of = |all: &[Compared], figure: fn(&Run) -> f64| -> Vec<f64> {
        all.iter().map(|compared| figure(&compared.run)).collect()
    };
    let row_rate = |all: &[Compared]| all.iter().map(|at| at.row_rate).collect::<Vec<_>>();
    let results = &mut bench.results;
    // From the first row to the last, counting all events: the one rule that both can follow.
    let what = format!("sessionizer / {way}: throughput");
    results.ratio(what, &row_rate(ours), &row_rate(theirs));
    let what = "... less what ours read before its first commit";
    results.ratio(what, &of(ours, Run::rate), &of(theirs, Run::rate));
    let wall = |run: &Run| run.wall_s;
    results.ratio("... from start to end", &of(theirs, wall), &of(ours, wall));
    let per_second = Run::events_per_cpu_second;
    results.ratio("... events per CPU-second", &of(ours, per_second), &of(theirs, per_second));
    let peak = |run: &Run| run.peak_mb;
    results.ratio("... peak memory", &of(ours, peak), &of(theirs, peak));
}
