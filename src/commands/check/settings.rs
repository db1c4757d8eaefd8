//! The settings: exactly those that the job reads, and what they name on this machine.

use sessionizer_core::fault::Fault;

use super::codes::Code;
use super::report::Finding;
use crate::cli::RunArgs;
use crate::config;
use crate::config::{Config, Environment, Problems};
use crate::job;
use crate::job::system;
use crate::kafka::KafkaConfig;
use crate::ledger;
use crate::ledger::LedgerConfig;
use crate::ui::tls::CORRECT_PATH;

/// The flags that the check of Postgres depends on.
const LEDGER_FLAGS: [&str; 5] = ["--table", "--job", "--gap", "--shards", "--session-end"];

/// The settings as far as they are valid: a mistake in one part does not keep the others from being
/// checked.
#[derive(Clone, Default)]
pub struct Settings {
    /// `None` if anything is wrong.
    pub config: Option<Config>,
    pub kafka: Option<KafkaConfig>,
    pub ledger: Option<LedgerConfig>,
}

/// Reads the settings, and reports what is wrong with them.
pub fn check(args: &RunArgs, env: &Environment) -> (Settings, Vec<Finding>) {
    let mut found = Vec::new();
    let settings = match config::try_read(args, env) {
        Ok(config) => {
            found.push(Finding::good(Code::S01, sentence(&config)));
            found.extend(surroundings(&config));
            let (kafka, ledger) = (Some(config.kafka.clone()), Some(config.ledger.clone()));
            Settings { kafka, ledger, config: Some(config) }
        }
        Err(problems) => {
            let wrong = problems.list();
            found.extend(wrong.iter().map(|(name, what)| wrong_setting(name, what)));
            in_parts(args, env)
        }
    };
    for warning in env.warnings() {
        let (text, remedy) = match warning.split_once(": did you mean ") {
            Some((text, meant)) => (text, format!("did you mean {meant}")),
            None => (warning.as_str(), "correct it, or remove it".to_owned()),
        };
        found.push(Finding::warning(Code::S02, text, remedy));
    }
    (settings, found)
}

fn sentence(config: &Config) -> String {
    let (topics, ledger) = (config.kafka.topics.join(", "), &config.ledger);
    format!("job {}: topic {topics} into table {}", ledger.job, ledger.table)
}

fn wrong_setting(name: &str, what: &str) -> Finding {
    let (text, remedy) = match what.split_once(": ") {
        Some((text, remedy)) => (text, remedy.to_owned()),
        None => (what, format!("correct {name}; `sessionizer --help` explains every setting")),
    };
    Finding::failed(Code::S01, 2, format!("{name} {text}"), remedy)
}

/// Reads the settings of Kafka and those of Postgres separately.
fn in_parts(args: &RunArgs, env: &Environment) -> Settings {
    let mut problems = Problems::new(env);
    let kafka = config::read_kafka(&mut problems, &args.kafka_config, true, env);
    let is_kafka = |name: &str| {
        name.starts_with("KAFKA_") || ["--kafka-config", "SESSIONIZER_KAFKA_CONFIG"].contains(&name)
    };
    let kafka = kafka.filter(|_| !problems.list().iter().any(|(name, _)| is_kafka(name)));
    let mut problems = Problems::new(env);
    let ledger = config::read_ledger(&mut problems, args, env);
    let is_ledger = |name: &str| {
        let flag = name.to_lowercase().replace('_', "-").replace("sessionizer-", "--");
        name.starts_with("POSTGRES_")
            || name == "PGPASSFILE"
            || LEDGER_FLAGS.contains(&flag.as_str())
    };
    let ledger = ledger.filter(|_| !problems.list().iter().any(|(name, _)| is_ledger(name)));
    Settings { config: None, kafka, ledger }
}

/// What the settings need on this machine: open files, and the files that they name.
fn surroundings(config: &Config) -> Vec<Finding> {
    let mut found = Vec::new();
    for limit in [system::check_open_files(config), system::check_threads(config)] {
        found.extend(limit.err().map(|fault| Finding::of_fault(Code::S03, &fault)));
    }
    let mut named: Vec<Result<(), Fault>> = vec![ledger::check_files(&config.ledger)];
    named.extend(config.kafka.unreadable_files().into_iter().map(Err));
    let places = job::places(config);
    let unused = places.as_ref().ok().and_then(|places| places.unused.as_ref());
    found.extend(unused.map(|warning| Finding::advice(Code::S04, warning.clone())));
    named.push(places.map(drop));
    if config.processes > 1 {
        named.extend(config.cluster_secret.as_ref().map(|secret| secret.check()));
    }
    let wrong = named.iter().filter_map(|result| result.as_ref().err());
    found.extend(wrong.map(|fault| Finding::of_fault(Code::S04, fault).or_remedy(CORRECT_PATH)));
    found
}
