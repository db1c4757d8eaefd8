//! The upper bound: bare consumers, and one COPY of the same sessions.

use std::fs::File;
use std::time::Instant;

use crate::bench::Bench;
use crate::bench::backlog::Start;
use crate::bench::measure::{COUNT, CPU_SECONDS, ROWS_PER_S, thousands};
use crate::failure::{Result, While};
use crate::screen::say;

pub fn run(bench: &mut Bench) -> Result<()> {
    let topic = bench.backlog()?;
    bench.warm(topic)?;
    let mut runs = [Vec::new(), Vec::new()];
    for turn in 1..=bench.runs {
        for (consumers, runs) in (1..).zip(&mut runs) {
            let label = format!("raw, consumers: {consumers}, {turn} of {}", bench.runs);
            runs.push(bench.measure_raw(topic, &label, consumers)?);
        }
    }
    for (consumers, runs) in (1..).zip(&runs) {
        bench.results.report_raw(consumers, runs);
    }
    copy(bench, topic)
}

/// Copies the sessions of the backlog from a file into a table like the job's.
fn copy(bench: &mut Bench, topic: &str) -> Result<()> {
    let start =
        Start { topic, label: "the job, for its table", options: &["-w", "2"], cluster: None };
    let job = bench.measure_and_keep(start)?.job;
    let path = bench.servers.file("rows");
    let mut connection = bench.servers.postgres.sql().connect()?;
    let mut file = File::create(&path).during(path.display())?;
    let rows = format!("copy (select * from \"{job}\" order by session_end) to stdout binary");
    connection.copy_out(&rows, &mut file)?;
    let (mut rates, mut cpu_s, mut copied) = (Vec::new(), Vec::new(), 0);
    for turn in 1..=bench.runs {
        connection.run(&format!("create table copied (like \"{job}\" including all)"))?;
        let mut file = File::open(&path).during(path.display())?;
        let before = bench.servers.postgres.cpu_seconds();
        let began = Instant::now();
        copied = connection.copy_in("copy copied from stdin binary", &mut file)?;
        let seconds = began.elapsed().as_secs_f64();
        rates.push(copied as f64 / seconds);
        cpu_s.push(bench.servers.postgres.cpu_seconds() - before);
        let (count, runs) = (thousands(copied), bench.runs);
        say(format!("COPY of {count} sessions, {turn} of {runs}: {seconds:.3} s"));
        connection.run("drop table copied")?;
        connection.run("checkpoint")?;
    }
    std::fs::remove_file(&path).during(path.display())?;
    bench.forget(&job)?;
    bench.results.add("COPY of the sessions, in one go", ROWS_PER_S, &rates);
    bench.results.add("... rows", COUNT, &[copied as f64]);
    bench.results.add("... CPU time of PostgreSQL", CPU_SECONDS, &cpu_s);
    Ok(())
}
