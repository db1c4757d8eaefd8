//! A private Kafka and a private PostgreSQL, in a directory that is removed when this program ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Result, While, fail};
use crate::sql::Server;
use crate::{leftovers, proc, root, screen};

pub struct Servers {
    /// Holds the servers, the logs and temporary files.
    pub directory: PathBuf,
    pub kafka: Service,
    pub postgres: Service,
}

/// A server of `scripts/services`.
#[derive(Clone)]
pub struct Service {
    kind: &'static str,
    directory: PathBuf,
    /// `host:port`
    pub address: String,
}

impl Servers {
    /// Starts both. `name` becomes part of the directory's name.
    pub fn start(name: &str) -> Result<Servers> {
        screen::show("starting Kafka and PostgreSQL");
        let directory = leftovers::make_directory(name)?;
        let kafka = Service::start("kafka", &directory.join("kafka"))?;
        let postgres = Service::start("postgres", &directory.join("postgres"))?;
        Ok(Servers { directory, kafka, postgres })
    }

    /// A file in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A command in an environment that names these servers, without any settings from the caller's
    /// environment. Each job sets its own consumer group.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["KAFKA_", "POSTGRES_", "SESSIONIZER_"].iter().any(|own| text.starts_with(own)) {
                command.env_remove(&name);
            }
        }
        command
            .env("KAFKA_URL", &self.kafka.address)
            .env("KAFKA_GROUP", "xtask")
            .env("POSTGRES_URL", format!("jdbc:postgresql://{}/postgres", self.postgres.address));
        command
    }
}

impl Service {
    fn start(kind: &'static str, directory: &Path) -> Result<Service> {
        let address = services(&[kind, "start", path(directory)])?;
        Ok(Service { kind, directory: directory.to_owned(), address })
    }

    /// Starts a standby of this PostgreSQL.
    pub fn standby(&self, directory: &Path) -> Result<Service> {
        let address = services(&[self.kind, "standby", path(directory), path(&self.directory)])?;
        Ok(Service { kind: self.kind, directory: directory.to_owned(), address })
    }

    pub fn start_again(&self) -> Result<()> {
        services(&[self.kind, "start", path(&self.directory)]).map(|_| ())
    }

    /// Stops it cleanly.
    pub fn stop(&self) -> Result<()> {
        services(&[self.kind, "stop", path(&self.directory)]).map(|_| ())
    }

    pub fn restart(&self) -> Result<()> {
        services(&[self.kind, "restart", path(&self.directory)]).map(|_| ())
    }

    /// Kills it.
    pub fn kill(&self) -> Result<()> {
        services(&[self.kind, "kill", path(&self.directory)]).map(|_| ())
    }

    /// Removes its directory, as if its disk were lost.
    pub fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.directory).during(self.directory.display())
    }

    /// Runs one of Kafka's command line tools against it.
    pub fn tool(&self, class: &str, arguments: &[&str]) -> Result<()> {
        let class = format!("org.apache.kafka.tools.{class}");
        let words = [&[self.kind, "tool", path(&self.directory), &class], arguments].concat();
        services(&words).map(|_| ())
    }

    /// SQL access, for a PostgreSQL.
    pub fn sql(&self) -> Server {
        Server { address: self.address.clone() }
    }

    /// The CPU time of all its processes so far.
    pub fn cpu_seconds(&self) -> f64 {
        let file = if self.kind == "kafka" { "pid" } else { "data/postmaster.pid" };
        let text = fs::read_to_string(self.directory.join(file)).unwrap_or_default();
        match text.lines().next().and_then(|pid| pid.trim().parse().ok()) {
            Some(pid) if self.kind == "kafka" => proc::cpu_seconds(pid),
            Some(pid) => proc::cpu_seconds_with_children(pid),
            None => 0.0,
        }
    }
}

/// Runs `scripts/services` and returns the line it prints.
fn services(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(root().join("scripts/services"));
    command.args(arguments);
    let (status, output) = leftovers::run_script(&mut command).during("scripts/services")?;
    if status.success() {
        Ok(output.trim().to_owned())
    } else {
        fail(format!("`scripts/services {}` failed, {status}", arguments.join(" ")))
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in TMPDIR is text")
}
