//! A whole backlog: a process reads a topic to its end, and its CPU time and memory are measured.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Bench;
use super::measure::{EVENTS_PER_S, thousands};
use super::printed::Pairs;
use crate::failure::{Result, fail};
use crate::process::{Ended, Process};
use crate::screen::{Ticker, say};
use crate::sql::{Server, number};

/// How often to check whether a process has ended.
const GLANCE: Duration = Duration::from_millis(5);

/// The measurements of one run.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// The name of the job and of its table.
    pub job: String,
    pub records: f64,
    /// The records read within `seconds`.
    pub timed_records: f64,
    /// From the first commit to the last; for bare consumers, from the first record to the last.
    pub seconds: f64,
    /// From the start to the end of the process.
    pub wall_s: f64,
    pub cpu_s: f64,
    pub peak_mb: f64,
    pub postgres_s: f64,
    pub kafka_s: f64,
}

impl Run {
    pub fn rate(&self) -> f64 {
        self.timed_records / self.seconds
    }

    pub fn cpu_us_per_event(&self) -> f64 {
        1e6 * self.cpu_s / self.records
    }

    pub fn events_per_cpu_second(&self) -> f64 {
        self.records / self.cpu_s
    }
}

/// How a job is started.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    pub topic: &'a str,
    /// What is being measured, for the screen.
    pub label: &'a str,
    pub options: &'a [&'a str],
    pub cluster: Option<Cluster<'a>>,
}

/// Several processes on this machine.
#[derive(Clone, Copy)]
pub struct Cluster<'a> {
    pub processes: usize,
    pub hosts: &'a Path,
    pub secret: Option<&'a Path>,
}

/// Processes that have all ended with exit code 0.
pub struct Finished {
    pub wall_s: f64,
    pub cpu_s: f64,
    pub peak_mb: f64,
    /// What the first process has printed.
    pub output: PathBuf,
}

impl Bench {
    /// Measures a new job that reads the topic to its end, and drops its table.
    pub fn measure(&mut self, topic: &str, label: &str, options: &[&str]) -> Result<Run> {
        let run = self.measure_and_keep(Start { topic, label, options, cluster: None })?;
        self.forget(&run.job)?;
        Ok(run)
    }

    /// The same, but keeps the table.
    pub fn measure_and_keep(&mut self, start: Start<'_>) -> Result<Run> {
        self.jobs += 1;
        let job = format!("job-{}", self.jobs);
        let (postgres_s, kafka_s) = self.servers_cpu();
        let first = FirstCommit::watch(self.servers.postgres.sql(), job.clone());
        let finished = self.finish(start.label, self.job_commands(&job, start))?;
        let (postgres_now_s, kafka_now_s) = self.servers_cpu();
        let first = first.end()?;
        let Finished { wall_s, cpu_s, peak_mb, .. } = finished;
        let (records, timed_records, seconds) = self.timing(&job, first, wall_s)?;
        let run = Run {
            job,
            records,
            timed_records,
            seconds,
            wall_s,
            cpu_s,
            peak_mb,
            postgres_s: postgres_now_s - postgres_s,
            kafka_s: kafka_now_s - kafka_s,
        };
        say(format!(
            "{}: {} events/s, {cpu_s:.2} s of CPU ({:.3} µs an event), {peak_mb:.0} MB; \
             {wall_s:.3} s in all, PostgreSQL {:.2} s, Kafka {:.2} s",
            start.label,
            EVENTS_PER_S.show(run.rate()),
            run.cpu_us_per_event(),
            run.postgres_s,
            run.kafka_s,
        ));
        Ok(run)
    }

    fn job_commands(&self, job: &str, start: Start<'_>) -> Vec<Command> {
        let command = || {
            let mut command = self.job_command(job, start.topic);
            command.arg("--until-end").args(start.options);
            command
        };
        let Some(cluster) = start.cluster else { return vec![command()] };
        let processes = 0..cluster.processes;
        let processes = processes.map(|process| {
            let mut command = command();
            command.args(["-n", &cluster.processes.to_string(), "-p", &process.to_string()]);
            command.arg("--hostfile").arg(cluster.hosts);
            if let Some(secret) = cluster.secret {
                command.env("SESSIONIZER_CLUSTER_SECRET_FILE", secret);
            }
            command
        });
        processes.collect()
    }

    /// How many records the job has read, how many of them after the first commit, and in what
    /// time.
    fn timing(&self, job: &str, first: Option<Seen>, wall_s: f64) -> Result<(f64, f64, f64)> {
        let at =
            first.as_ref().map_or("now()".to_owned(), |seen| format!("'{}'::timestamptz", seen.at));
        let [records, seconds] = self.servers.postgres.sql().row(&format!(
            "select b.records, extract(epoch from max(pg_xact_commit_timestamp(p.xmin)) - {at})
             from sessionizer.balance b join sessionizer.shard_progress p using (job)
             where b.job = '{job}' group by 1"
        ))?;
        let (records, seconds) = (number(&records)?, number(&seconds)?);
        Ok(match first {
            Some(seen) if seen.records < records => (records, records - seen.records, seconds),
            // All were there at the first commit: a trial with few events.
            _ => (records, records, wall_s),
        })
    }

    /// Consumers read the topic to its end and throw the records away.
    pub fn measure_raw(&mut self, topic: &str, label: &str, consumers: usize) -> Result<Run> {
        let (_, kafka_s) = self.servers_cpu();
        let mut command = self.servers.command(&self.limits);
        command.env("KAFKA_TOPIC", topic).args(["raw", "--consumers", &consumers.to_string()]);
        let Finished { wall_s, cpu_s, peak_mb, output } = self.finish(label, vec![command])?;
        let printed = Pairs::read(&output)?;
        let records = printed.number("records")?;
        let run = Run {
            job: String::new(),
            records,
            timed_records: records,
            seconds: printed.number("seconds")?,
            wall_s,
            cpu_s,
            peak_mb,
            postgres_s: 0.0,
            kafka_s: self.servers_cpu().1 - kafka_s,
        };
        let (rate, each) = (EVENTS_PER_S.show(run.rate()), run.cpu_us_per_event());
        say(format!("{label}: {rate} events/s, {cpu_s:.2} s of CPU ({each:.3} µs an event)"));
        Ok(run)
    }

    /// Reads a topic into the page cache, so that the first run is not the only one to read it from
    /// disk.
    pub fn warm(&mut self, topic: &str) -> Result<()> {
        self.measure_raw(topic, "raw, to bring the topic into memory", 1).map(|_| ())
    }

    /// Starts processes together and waits until all have ended. It is an error if one does not end
    /// with exit code 0. Their CPU time and memory are added up.
    pub fn finish(&self, label: &str, commands: Vec<Command>) -> Result<Finished> {
        let mut ticker = Ticker::new(label);
        let output = self.servers.file("output-0");
        let began = Instant::now();
        let mut processes = Vec::new();
        for (at, command) in commands.into_iter().enumerate() {
            let log = self.servers.file(&format!("job-{at}.log"));
            let output = self.servers.file(&format!("output-{at}"));
            processes.push(Process::start_with_output(label, command, &log, &output)?);
        }
        loop {
            let ended: Vec<Option<Ended>> =
                processes.iter_mut().map(Process::ended).collect::<Result<_>>()?;
            for (process, ended) in processes.iter().zip(&ended) {
                if let Some(ended) = ended.filter(|ended| ended.status != 0) {
                    return Err(process.failed(ended));
                }
            }
            let wall_s = began.elapsed().as_secs_f64();
            if let Some(ended) = ended.into_iter().collect::<Option<Vec<Ended>>>() {
                let cpu_s = ended.iter().map(|ended| ended.cpu_s).sum();
                let peak_mb = ended.iter().map(|ended| ended.peak_mb).sum();
                return Ok(Finished { wall_s, cpu_s, peak_mb, output });
            }
            let peak_mb = |process: &Process| process.memory_mb("VmHWM").unwrap_or(0.0);
            ticker.tick(|| format!(", {:.0} MB", processes.iter().map(peak_mb).sum::<f64>()));
            thread::sleep(GLANCE);
        }
    }

    /// The CPU time that PostgreSQL and Kafka have used so far.
    pub fn servers_cpu(&self) -> (f64, f64) {
        (self.servers.postgres.cpu_seconds(), self.servers.kafka.cpu_seconds())
    }

    /// The number of rows in a table, for the screen.
    pub fn rows(&self, table: &str) -> Result<String> {
        let count = self.servers.postgres.sql().number(&format!("select count(*) from {table}"))?;
        Ok(thousands(count as u64))
    }
}

/// When the first commit was seen, and how many records it held.
struct Seen {
    at: String,
    records: f64,
}

/// Polls for the first commit of a job, a hundred times a second.
struct FirstCommit {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Result<Option<Seen>>>,
}

impl FirstCommit {
    fn watch(server: Server, job: String) -> FirstCommit {
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let thread = thread::spawn(move || {
            let mut connection = server.connect()?;
            let there = "select to_regclass('sessionizer.balance') is not null";
            while !end.load(Relaxed) && !connection.holds(there)? {
                thread::sleep(Duration::from_millis(10));
            }
            while !end.load(Relaxed) {
                let seen = connection.row::<2>(&format!(
                    "select clock_timestamp(), records from sessionizer.balance
                     where records > 0 and job = '{job}'"
                ))?;
                if let Some([at, records]) = seen {
                    return Ok(Some(Seen { at, records: number(&records)? }));
                }
                thread::sleep(Duration::from_millis(10));
            }
            Ok(None)
        });
        FirstCommit { ended, thread }
    }

    fn end(self) -> Result<Option<Seen>> {
        self.ended.store(true, Relaxed);
        self.thread.join().unwrap_or_else(|_| fail("the watch for the first commit has panicked"))
    }
}
