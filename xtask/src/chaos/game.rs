//! What lasts from round to round: the servers, the clocks, the producer and the counts.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::Args;
use super::card::{Card, Deck};
use super::instance::{Instance, Member};
use crate::failure::{Result, While, fail};
use crate::process::{Process, last_lines};
use crate::rng::Rng;
use crate::screen::say;
use crate::servers::{Servers, Service};
use crate::{ports, root};

/// The `--peer-timeout`: a process that hangs is lost after this time, one that dies at once.
pub const PEER_TIMEOUT_S: u64 = 2;
pub const LAST_WORDS_S: u64 = 3;

const TOPIC: &str = "chaos";

pub struct Game {
    pub seed: u64,
    pub began: Instant,
    pub servers: Servers,
    program: PathBuf,
    /// The library that gives a process its own clock.
    shifted_clock: PathBuf,
    pub processes_most: usize,
    pub deck: Deck,
    /// How often each card was played.
    pub tally: BTreeMap<Card, u64>,
    /// Of the previous start.
    workers: u64,
    starts: u64,
    /// Separate from the rounds' generator, so that taken ports do not change what happens.
    ports: Rng,
    /// A standby whose address the job of this round has, too.
    pub standby: Option<Service>,
    /// Whether any start has committed something to audit.
    pub has_begun: bool,
    pub producer: Option<Process>,
}

impl Game {
    /// Starts the servers and the producer.
    pub fn start(args: &Args, seed: u64, program: PathBuf) -> Result<Game> {
        let servers = Servers::start("chaos")?;
        let processes_most = args.processes as usize;
        say(format!(
            "seed {seed}, {} rounds, -n {processes_most}: Kafka on {}, PostgreSQL on {}",
            args.rounds, servers.kafka.address, servers.postgres.address,
        ));
        let shifted_clock = compile_clock(&servers.directory)?;
        let mut game = Game {
            seed,
            began: Instant::now(),
            servers,
            program,
            shifted_clock,
            processes_most,
            deck: Deck::new(processes_most > 1, seed),
            tally: BTreeMap::new(),
            workers: 1,
            starts: 0,
            ports: Rng::new(u64::from(std::process::id())),
            standby: None,
            has_begun: false,
            producer: None,
        };
        for index in 0..processes_most {
            game.set_clock(index, 0)?;
        }
        game.producer = Some(game.produce(args.rate)?);
        Ok(game)
    }

    fn produce(&self, rate: u64) -> Result<Process> {
        let mut command = self.command();
        command.args(["produce", "--rate", &rate.to_string(), "--seed", &self.seed.to_string()]);
        command.args(["--disorder", "5s", "--late", "0.01", "--late-by", "10m", "--bad", "0.005"]);
        command.args(["--visitors", "2000", "--partitions", "5"]);
        let log = self.servers.file("produce.log");
        let mut producer = Process::start("the producer", command, &log)?;
        // Wait until the producer has created the topic.
        let until = Instant::now() + Duration::from_secs(30);
        while !last_lines(&log, 100).contains("created the topic") {
            if let Some(ended) = producer.ended()? {
                return Err(producer.failed(ended));
            }
            if Instant::now() > until {
                let words = last_lines(&log, 3);
                return fail(format!("the producer has not created the topic: {words}"));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(producer)
    }

    /// The program, with the environment of the job.
    pub fn command(&self) -> Command {
        let mut command = self.servers.command(&self.program);
        command.env("KAFKA_TOPIC", TOPIC).env("KAFKA_GROUP", TOPIC);
        if let Some(standby) = &self.standby {
            let both = format!("{},{}", self.servers.postgres.address, standby.address);
            command.env("POSTGRES_URL", format!("jdbc:postgresql://{both}/postgres"));
        }
        command
    }

    /// Sets the clock of a process this far ahead of the real time. The file is mapped into memory,
    /// so it is written in place.
    pub fn set_clock(&self, index: usize, ms: i64) -> Result<()> {
        let path = self.clock(index);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(&path);
        let written = file.and_then(|mut file| file.write_all(&ms.to_ne_bytes()));
        written.during(path.display())
    }

    fn clock(&self, index: usize) -> PathBuf {
        self.servers.file(&format!("clock.{index}"))
    }

    // ---- starts ----------------------------------------------------------------------------

    /// Starts the job with settings that close sessions and take snapshots within a round, and
    /// never with as many workers as before. A cluster has at least `fewest` processes.
    pub fn start_job(&mut self, least: usize, rng: &mut Rng) -> Result<(Instance, Vec<String>)> {
        self.workers = other_workers(self.workers, rng.below(3));
        let mut pick = |choices: [&'static str; 3]| choices[rng.below(3) as usize];
        let (epoch, snapshots) = (pick(["100ms", "200ms", "500ms"]), pick(["1s", "3s", "1h"]));
        let connections = rng.between(1, 4).to_string();
        let settings = [
            ["--sink-connections", &connections],
            ["--gap", "3s"],
            ["--out-of-orderness", "1s"],
            ["--idle-timeout", "2s"],
            ["--max-future", "25h"],
            ["--epoch", epoch],
            ["--snapshot-interval", snapshots],
        ];
        let settings: Vec<String> = settings.concat().into_iter().map(str::to_owned).collect();
        let processes = rng.between(least as u64, self.processes_most as u64) as usize;
        Ok((self.start_processes(processes, &settings)?, settings))
    }

    /// Starts this many processes, with as many workers as before and on new ports.
    pub fn start_processes(&mut self, processes: usize, settings: &[String]) -> Result<Instance> {
        let hosts = self.servers.file(&format!("hosts.{}", self.starts));
        let mut instance = Instance { processes, hosts, ..Instance::default() };
        instance.shape = format!("-w {}", self.workers);
        if self.processes_most > 1 {
            instance.shape = format!("-n {processes} {}", instance.shape);
            ports::write_hosts(&instance.hosts, processes, &mut self.ports)?;
        }
        for index in 0..processes {
            let member = self.start_process(&instance, index, settings)?;
            instance.members.insert(index, member);
        }
        Ok(instance)
    }

    /// Starts or restarts a process of an instance. Each start has its own log.
    pub fn start_process(
        &mut self,
        instance: &Instance,
        index: usize,
        settings: &[String],
    ) -> Result<Member> {
        self.starts += 1;
        let mut command = self.command();
        command.env("LD_PRELOAD", &self.shifted_clock).env("TEST_CLOCK", self.clock(index));
        command.args(["-w", &self.workers.to_string()]).args(settings);
        let mut name = "the job".to_owned();
        if self.processes_most > 1 {
            command.args(["-n", &instance.processes.to_string(), "-p", &index.to_string()]);
            command.arg("--hostfile").arg(&instance.hosts);
            command.args(["--peer-timeout", &format!("{PEER_TIMEOUT_S}s")]);
            name = format!("process {index}");
        }
        let log = self.servers.file(&format!("job-{:04}-{index}.log", self.starts));
        Process::start(name, command, &log).map(Member::new)
    }

    /// The last run has two workers.
    pub fn set_workers(&mut self, workers: u64) {
        self.workers = workers;
    }

    /// The logs of the job, oldest first.
    pub fn logs(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(&self.servers.directory).into_iter().flatten().flatten();
        let is_log = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("job-") && name.ends_with(".log")
        };
        let mut logs: Vec<PathBuf> = files.map(|file| file.path()).filter(is_log).collect();
        logs.sort();
        logs
    }
}

/// One to four workers, but never as many as before.
fn other_workers(before: u64, step: u64) -> u64 {
    (before + step) % 4 + 1
}

fn compile_clock(directory: &Path) -> Result<PathBuf> {
    let library = directory.join("shifted-clock.so");
    let source = root().join("tests/real/shifted_clock.c");
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl");
    let status = command.status().during("cannot run cc")?;
    if status.success() {
        Ok(library)
    } else {
        fail(format!("{} cannot be built", source.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_never_has_as_many_workers_as_the_one_before() {
        for before in 1..=4 {
            let mut next: Vec<u64> = (0..3).map(|step| other_workers(before, step)).collect();
            next.sort_unstable();
            let others: Vec<u64> = (1..=4).filter(|workers| *workers != before).collect();
            assert_eq!(next, others);
        }
    }
}
