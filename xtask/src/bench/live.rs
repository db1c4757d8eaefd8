//! A job that runs until it is stopped, and what it has committed so far.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::Bench;
use super::printed::Loaded;
use crate::failure::{Failure, Result, fail};
use crate::process::{Process, last_lines};
use crate::servers::Servers;
use crate::sql::{Connection, Server};

/// How long to wait for a job.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often to ask PostgreSQL.
const GLANCE: Duration = Duration::from_millis(5);

pub struct Job {
    /// The name of the job, of its consumer group and of its table.
    pub name: String,
    pub process: Process,
    server: Server,
}

impl Bench {
    /// The command that runs a job with a table of the same name.
    pub fn job_command(&self, name: &str, topic: &str) -> Command {
        job_command(&self.servers, &self.program, name, topic)
    }

    /// Starts a job, or starts it again.
    pub fn start(&self, name: &str, topic: &str, options: &[&str]) -> Result<Job> {
        let mut command = self.job_command(name, topic);
        command.args(options);
        let process = Process::start("the job", command, &self.servers.file("job.log"))?;
        Ok(Job { name: name.to_owned(), process, server: self.servers.postgres.sql() })
    }

    /// Starts it and waits for a commit of an epoch after this one.
    pub fn start_after(
        &self,
        epoch: u64,
        name: &str,
        topic: &str,
        options: &[&str],
    ) -> Result<Job> {
        let mut job = self.start(name, topic, options)?;
        job.wait_for_epoch_after(epoch)?;
        Ok(job)
    }

    /// Removes a job that has ended, and its table: many of them would slow the database down.
    pub fn forget(&self, name: &str) -> Result<()> {
        let mut connection = self.servers.postgres.sql().connect()?;
        connection.run(&format!("delete from sessionizer.jobs where job = '{name}'"))?;
        connection.run(&format!("drop table if exists \"{name}\""))
    }
}

fn job_command(servers: &Servers, program: &std::path::Path, name: &str, topic: &str) -> Command {
    let mut command = servers.command(program);
    command.env("KAFKA_TOPIC", topic).env("KAFKA_GROUP", name).args(["--table", name]);
    command
}

impl Job {
    /// Waits until a query returns true.
    fn wait_for(&mut self, what: &str, sql: &str) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        let mut connection: Connection = self.server.connect()?;
        while !connection.holds(sql)? {
            if let Some(ended) = self.process.ended()? {
                return Err(self.process.failed(ended));
            }
            if Instant::now() > until {
                let words = last_lines(self.process.log(), 3);
                return fail(format!("the job {} does not get {what}: {words}", self.name));
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }

    pub fn wait_for_records(&mut self, count: u64) -> Result<()> {
        let name = &self.name;
        let sql =
            format!("select records >= {count} from sessionizer.balance where job = '{name}'");
        self.wait_for(&format!("to {count} records"), &sql)
    }

    pub fn wait_for_epoch_after(&mut self, epoch: u64) -> Result<()> {
        let name = &self.name;
        let sql = format!(
            "select max(epoch) > {epoch} from sessionizer.shard_progress where job = '{name}'"
        );
        self.wait_for("to another commit", &sql)
    }

    /// The number of records committed.
    pub fn records(&self) -> Result<f64> {
        let name = &self.name;
        let records = "select coalesce(max(records), 0) from sessionizer.balance";
        self.server.number(&format!("{records} where job = '{name}'"))
    }

    /// The newest epoch committed.
    pub fn newest_epoch(&self) -> Result<u64> {
        let name = &self.name;
        let epoch = "select coalesce(max(epoch), 0) from sessionizer.shard_progress";
        let epoch = self.server.value(&format!("{epoch} where job = '{name}'"))?;
        epoch.parse().map_err(|_| Failure(format!("not an epoch: {epoch:?}")))
    }

    /// What its last start loaded.
    pub fn loaded(&self) -> Result<Loaded> {
        Loaded::read(self.process.log())
    }

    /// Stops it cleanly.
    pub fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::TERM);
        self.process.finish(PATIENCE).map(|_| ())
    }

    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }
}
