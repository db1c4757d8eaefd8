//! `produce --scenario`: what was typed, the records of a plan, and the file with its truth.

use std::fs;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};

use clap::ValueEnum;
use sessionizer_core::fault::Fault;

use super::Outgoing;
use super::event::WebEvent;
use super::scenario::{DAY_MS, Plan, PlannedEvent, Request, Scenario, Tail, events};
use crate::cli::ProduceArgs;
use crate::config::{Problems, whole};
use crate::ui::text::plural;

/// The name of traffic in which nothing happens.
const CLEAN: &str = "clean";
const HOST: &str = "shop.example";
/// A clock is compared with those of at least two others.
const SKEW_PARTITIONS: u32 = 3;
/// Plans are kept in memory, about 40 bytes a visit.
const MAX_VISITS: u64 = 50_000_000;

/// A plan to be written, and where its truth goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub request: Request,
    pub truth: Option<String>,
}

/// Reads the arguments of a scenario, if one was asked for, with the hosts that were named. It
/// begins at `start_ms`, or as many whole days as it has before the day of `now_ms`.
pub fn read(
    args: &ProduceArgs,
    named: &[String],
    start_ms: Option<i64>,
    now_ms: i64,
    problems: &mut Problems<'_>,
) -> Option<Planned> {
    if args.scenario.is_empty() {
        if args.truth.is_some() {
            problems.add("--truth", "is only for scenarios: name some with --scenario");
        }
        return None;
    }
    let mut number =
        |name: &str, text: &str, most: u64| problems.take(name, whole(text, 1, most)).unwrap_or(1);
    let days = number("--days", &args.days, 366);
    let visits = number("--visits", &args.visits, 10_000_000);
    let incidents = number("--incidents", &args.incidents, 1_000);
    let seed = whole(&args.seed, 0, 1e15 as u64).unwrap_or(1);
    let scenarios = scenarios(&args.scenario, problems);
    let tail = Tail::ALL.into_iter().find(|tail| tail.name() == args.tail);
    if tail.is_none() {
        problems.add("--tail", "can be light or heavy");
    }
    let hosts = hosts(named, days * visits, problems);
    if args.access_log.is_some() || args.history.is_some() {
        problems.add("--scenario", "goes with neither --access-log nor --history");
    }
    let today_ms = now_ms - now_ms.rem_euclid(DAY_MS);
    let start_ms = start_ms.unwrap_or(today_ms - days as i64 * DAY_MS);
    let tail = tail.unwrap_or(Tail::Light);
    // The partitions are those of the topic.
    let (topic, partitions) = (String::new(), 1);
    let request = Request {
        start_ms,
        days,
        hosts,
        visits,
        tail,
        scenarios,
        incidents,
        seed,
        topic,
        partitions,
    };
    Some(Planned { request, truth: args.truth.clone() })
}

/// The scenarios with these names, each once. `clean` stands for none.
fn scenarios(names: &[String], problems: &mut Problems<'_>) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for name in names.iter().filter(|name| *name != CLEAN) {
        match Scenario::from_str(name, false) {
            Ok(scenario) if !scenarios.contains(&scenario) => scenarios.push(scenario),
            Ok(_) => {}
            Err(_) => {
                let all = Scenario::value_variants().iter().map(|scenario| scenario.name());
                let names: Vec<String> = all.chain([CLEAN.to_owned()]).collect();
                problems.add("--scenario", format!("can be {}", names.join(", ")));
            }
        }
    }
    if !scenarios.is_empty() && names.iter().any(|name| name == CLEAN) {
        problems.add("--scenario", format!("has {CLEAN}, which stands for none of the others"));
    }
    scenarios
}

/// The hosts with these names, or one by default, each of which has so many visits.
fn hosts(names: &[String], visits_each: u64, problems: &mut Problems<'_>) -> Vec<String> {
    let hosts = if names.is_empty() { vec![HOST.to_owned()] } else { names.to_vec() };
    let visits = visits_each * hosts.len() as u64;
    if hosts.len() > 1_000 {
        problems.add("--host", "names more than 1000 hosts");
    } else if visits > MAX_VISITS {
        let what = format!(
            "together with --visits and --host is {visits} visits, more than {MAX_VISITS}, and all \
             are planned in memory"
        );
        problems.add("--days", what);
    }
    hosts
}

impl Planned {
    /// Whether it matters which partition a record is written to.
    pub fn chooses_partitions(&self) -> bool {
        self.request.scenarios.contains(&Scenario::Skew)
    }

    /// Makes sure that the truth can be written, and leaves what the file holds.
    pub fn check_truth(&self) -> Result<(), Fault> {
        let Some(path) = &self.truth else { return Ok(()) };
        // Whoever reads from a pipe would take its closing for the end.
        if fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
            return Ok(());
        }
        let opened = OpenOptions::new().append(true).create(true).open(path);
        opened.map(drop).map_err(|why| cannot_write_truth(path, &why))
    }

    /// Makes sure that a topic has as many partitions as the plan needs.
    pub fn check_partitions(&self, topic: &str, partitions: u32) -> Result<(), Fault> {
        if self.chooses_partitions() && partitions < SKEW_PARTITIONS {
            return Err(Fault::config(format!(
                "--scenario skew: the topic {topic} has {}, and with fewer than {SKEW_PARTITIONS} \
                 nobody can tell whose clock is off: name another topic (KAFKA_TOPIC), which is \
                 created with --partitions {SKEW_PARTITIONS}",
                plural(partitions, "partition")
            )));
        }
        Ok(())
    }

    /// Makes the plan for a topic, and writes its truth.
    pub fn plan(&self, topic: &str, partitions: i32) -> Result<Plan, Fault> {
        let partitions = u32::try_from(partitions).unwrap_or(1).max(1);
        self.check_partitions(topic, partitions)?;
        let plan =
            Plan::new(&Request { topic: topic.to_owned(), partitions, ..self.request.clone() });
        if let Some(path) = &self.truth {
            write_truth(&plan, path).map_err(|why| cannot_write_truth(path, &why))?;
        }
        Ok(plan)
    }
}

fn cannot_write_truth(path: &str, why: &std::io::Error) -> Fault {
    Fault::config(format!("--truth {path}: {why}"))
}

/// The truth: a line of JSON for each incident.
fn write_truth(plan: &Plan, path: &str) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for incident in &plan.incidents {
        serde_json::to_writer(&mut file, incident)?;
        writeln!(file)?;
    }
    file.flush()
}

/// The records of a plan.
pub fn records(plan: &Plan) -> impl Iterator<Item = Outgoing> + '_ {
    events(plan).map(|event| {
        let PlannedEvent { visit, number, .. } = event;
        let ip = visit.visitor.address();
        let partition = plan.is_skewed().then(|| plan.partition(visit.visitor) as i32);
        let event_time_ms = plan.event_time_ms(&event);
        let event = WebEvent {
            url: if number == 0 { "/".into() } else { format!("/page/{number}").into() },
            referrer: "".into(),
            user_agent: "Mozilla/5.0 (X11; Linux x86_64; rv:120.0) Gecko/20100101".into(),
            host: plan.hosts[usize::from(visit.host)].as_str().into(),
            ip: ip.as_str().into(),
            headers: Vec::new(),
            event_time_ms,
        };
        let payload = Some(event.to_json());
        Outgoing { key: Some(ip), payload, partition }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    const NOW_MS: i64 = 1_780_272_000_000 + 5_000;

    fn read_args(args: &[&str]) -> Result<Option<Planned>, String> {
        let typed = ["sessionizer", "produce"].iter().chain(args).map(Into::into);
        let (cli, env) = cli::parse(typed, []).map_err(|why| why.to_string())?;
        let Some(cli::Command::Produce(args)) = cli.command else { panic!("another command") };
        let mut problems = Problems::new(&env);
        let planned = read(&args, &args.host, None, NOW_MS, &mut problems);
        if problems.is_empty() { Ok(planned) } else { Err(problems.fault().to_string()) }
    }

    #[test]
    fn a_scenario_ends_with_yesterday() {
        let planned = read_args(&["--scenario", "flood,reader"]).expect("valid").expect("a plan");
        let Request { start_ms, days, visits, scenarios, .. } = planned.request;
        assert_eq!((start_ms, days, visits), (1_780_272_000_000 - 2 * DAY_MS, 2, 10_000));
        assert_eq!(scenarios, [Scenario::Flood, Scenario::Reader]);
        assert_eq!(read_args(&[]).expect("valid"), None);
        let clean = read_args(&["--scenario", "clean"]).expect("valid").expect("a plan");
        assert!(clean.request.scenarios.is_empty());
    }

    #[test]
    fn a_skew_needs_other_partitions_to_compare_with() {
        let planned = read_args(&["--scenario", "skew", "--visits", "100"]);
        let planned = planned.expect("valid").expect("a plan");
        let why = planned.plan("t", 2).expect_err("too few").to_string();
        assert!(why.contains("the topic t has 2 partitions"), "{why}");
        let plan = planned.plan("t", 3).expect("a plan");
        let all: Vec<Outgoing> = records(&plan).collect();
        let partitions = all.iter().map(|record| record.partition.expect("it has one"));
        let used: std::collections::BTreeSet<i32> = partitions.collect();
        assert!(used.into_iter().eq(0..3));
    }

    #[test]
    fn mistakes_name_the_flag() {
        for (args, want) in [
            (&["--scenario", "fload"][..], "can be flood, crawler, slow, "),
            (&["--truth", "t"], "is only for scenarios"),
            (&["--scenario", "flood", "--tail", "fat"], "can be light or heavy"),
            (&["--scenario", "flood", "--days", "0"], "--days"),
            (&["--scenario", "flood", "--days", "300", "--visits", "1000000"], "--days"),
            (&["--scenario", "flood", "--history", "1h"], "goes with neither"),
        ] {
            let why = read_args(args).expect_err("a mistake");
            let flag = args[args.len() - 2];
            let named = why.contains(flag) || why.contains("--scenario");
            assert!(named && why.contains(want), "{args:?}: {why}");
        }
    }
}
