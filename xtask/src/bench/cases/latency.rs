//! How soon a session reaches the table.
//!
//! Events carry the time at which they were sent. So the event that closes a session, in the
//! slowest partition, is sent once the session's end and the out-of-orderness have passed. A poll
//! every 5 ms notices when a row becomes visible: the transaction that wrote it has moved the
//! progress of a shard.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::bench::Bench;
use crate::bench::backlog::Run;
use crate::bench::measure::{COUNT, MILLIS, PERCENT};
use crate::bench::results::each;
use crate::failure::{Result, fail};
use crate::process::Process;
use crate::screen::say;
use crate::sql::{Canceller, number};

const LIVE_S: u64 = 40;
const RATE: u64 = 10_000;
const GAP_S: u64 = 2;
const DISORDER_S: u64 = 1;
const EPOCHS: [(&str, f64); 2] = [("1s", 1_000.0), ("100ms", 100.0)];

#[derive(Clone, Copy)]
struct Latency {
    rows: f64,
    p50_ms: f64,
    p99_ms: f64,
    most_ms: f64,
    /// CPU time of the job.
    percent_of_a_core: f64,
}

pub fn run(bench: &mut Bench) -> Result<()> {
    let mut live = EPOCHS.map(|_| Vec::new());
    for turn in 1..=bench.runs {
        for ((epoch, _), live) in EPOCHS.iter().zip(&mut live) {
            live.push(measure(bench, epoch, turn)?);
        }
    }
    for ((epoch, epoch_ms), live) in EPOCHS.iter().zip(&live) {
        let results = &mut bench.results;
        let of = |figure: fn(&Latency) -> f64| live.iter().map(figure).collect::<Vec<f64>>();
        results.add(format!("epochs of {epoch}: rows"), COUNT, &of(|at| at.rows));
        results.add("... p50", MILLIS, &of(|at| at.p50_ms));
        results.add("... p99", MILLIS, &of(|at| at.p99_ms));
        let beyond: Vec<f64> = live.iter().map(|at| at.p99_ms - epoch_ms).collect();
        results.add("... p99 beyond the epoch", MILLIS, &beyond);
        results.add("... most", MILLIS, &of(|at| at.most_ms));
        results.add("... CPU, share of a core", PERCENT, &of(|at| at.percent_of_a_core));
    }
    in_a_backlog(bench)
}

/// The cost of shorter epochs.
fn in_a_backlog(bench: &mut Bench) -> Result<()> {
    let topic = bench.backlog()?;
    bench.warm(topic)?;
    let mut runs = EPOCHS.map(|_| Vec::new());
    for turn in 1..=bench.runs {
        for ((epoch, _), runs) in EPOCHS.iter().zip(&mut runs) {
            let label = format!("backlog, epochs of {epoch}, {turn} of {}", bench.runs);
            runs.push(bench.measure(topic, &label, &["-w", "2", "--epoch", epoch])?);
        }
    }
    for ((epoch, _), runs) in EPOCHS.iter().zip(&runs) {
        bench.results.report(format!("backlog, epochs of {epoch}"), runs);
    }
    let [long, short] = &runs;
    let rate = |runs: &[Run]| each(runs, Run::rate);
    bench.results.ratio("throughput, epochs of 100ms / 1s", &rate(short), &rate(long));
    let cpu = |runs: &[Run]| each(runs, |run| run.cpu_s);
    bench.results.ratio("CPU time, epochs of 100ms / 1s", &cpu(short), &cpu(long));
    Ok(())
}

fn measure(bench: &Bench, epoch: &str, turn: usize) -> Result<Latency> {
    let name = format!("live-{epoch}-{turn}");
    let mut command = bench.servers.command(&bench.limits);
    command.env("KAFKA_TOPIC", &name).arg("live");
    command.args(["--rate", &RATE.to_string(), "--seconds", &LIVE_S.to_string()]);
    let log = bench.servers.file("produce.log");
    let mut producer = Process::start("the producer", command, &log)?;
    thread::sleep(Duration::from_secs(1));
    let (gap, disorder) = (format!("{GAP_S}s"), format!("{DISORDER_S}s"));
    let options = ["-w", "2", "--epoch", epoch, "--gap", &gap, "--out-of-orderness", &disorder];
    let mut job = bench.start(&name, &name, &options)?;
    job.wait_for_records(1)?;
    let watch = Watch::begin(bench, &name)?;
    let before = job.process.cpu_seconds();
    producer.finish(Duration::from_secs(10 * LIVE_S))?;
    let used_s = job.process.cpu_seconds() - before;
    thread::sleep(Duration::from_secs(1));
    job.stop()?;
    watch.end()?;
    let [rows, p50, p99, most] = bench.servers.postgres.sql().row(&latency_sql(&name))?;
    if rows == "0" {
        return fail("no session was measured");
    }
    let latency = Latency {
        rows: number(&rows)?,
        p50_ms: number(&p50)?,
        p99_ms: number(&p99)?,
        most_ms: number(&most)?,
        percent_of_a_core: 100.0 * used_s / (LIVE_S - 1) as f64,
    };
    say(format!(
        "epochs of {epoch}, {turn} of {}: {rows} rows, p50 {p50} ms, p99 {p99} ms, most {most} ms; \
         {:.1} % of a core",
        bench.runs, latency.percent_of_a_core,
    ));
    bench.forget(&name)?;
    bench.drop_topic(&name)?;
    Ok(latency)
}

/// Without the first seconds, and without sessions that close only once nothing arrives any more.
fn latency_sql(table: &str) -> String {
    let (low, high) = (LIVE_S - 10, GAP_S + DISORDER_S + 1);
    format!(
        "with closed as (
             select session_end + interval '{DISORDER_S} s' as at, xmin::text as xid
             from \"{table}\"
         ), window_ as (
             select max(session_end) - interval '{low} s' as low,
                    max(session_end) - interval '{high} s' as high
             from \"{table}\"
         ), latency as (
             select extract(epoch from seen.at - closed.at) * 1000 as ms
             from closed join seen using (xid), window_ where closed.at between low and high
         )
         select count(*), round(percentile_cont(0.5) within group (order by ms)),
                round(percentile_cont(0.99) within group (order by ms)), round(max(ms))
         from latency"
    )
}

/// Records when each transaction of the job was first seen. This runs inside the server, so that
/// nothing comes between the poll and the record.
struct Watch {
    canceller: Canceller,
    thread: JoinHandle<()>,
}

impl Watch {
    fn begin(bench: &Bench, job: &str) -> Result<Watch> {
        let mut connection = bench.servers.postgres.sql().connect()?;
        connection.run("drop table if exists seen")?;
        connection.run("create unlogged table seen (xid text primary key, at timestamptz)")?;
        connection.run("set synchronous_commit = off")?;
        let canceller = connection.canceller();
        let sql = format!(
            "do $$ begin
                 loop
                     insert into seen select distinct xmin::text, clock_timestamp()
                         from sessionizer.shard_progress where job = '{job}'
                         on conflict do nothing;
                     commit;
                     perform pg_sleep(0.005);
                 end loop;
             end $$"
        );
        // It ends with an error when it is cancelled.
        let thread = thread::spawn(move || drop(connection.run(&sql)));
        Ok(Watch { canceller, thread })
    }

    fn end(self) -> Result<()> {
        if self.thread.is_finished() {
            return fail("the watch for commits has ended by itself");
        }
        self.canceller.cancel();
        self.thread.join().or_else(|_| fail("the watch for commits has panicked"))
    }
}
