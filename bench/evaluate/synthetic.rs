//! Generated days: what is found in them, and what is raised where nothing happened.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

use sessionizer::commands::produce::scenario::{
    DAY_MS, Plan, PlannedSession, Request, Scenario, Tail, events,
};
use sessionizer_core::anomaly::{
    Anomaly, BUCKET_MS, ClockJudge, Evidence, Kind, PartitionClock, SINGLES_MS, Session,
    Thresholds, batch, network,
};
use sessionizer_core::time::{EventTime, Gap};

use crate::outcome::{Found, Score, Scores, ratio};
use crate::{ThresholdArgs, open};

const GAP_MS: i64 = 300_000;
/// 2026-06-01T00:00:00Z.
const START_MS: i64 = 1_780_272_000_000;
/// The baseline: a session of more than this many events.
const BASELINE: u64 = 100;
/// The scenarios that are planned together: those of single visitors in one plan, each one of a
/// whole host in a plan of its own.
const WORLDS: [&[Scenario]; 5] = [
    &[
        Scenario::Flood,
        Scenario::Crawler,
        Scenario::Slow,
        Scenario::Distributed,
        Scenario::Reader,
        Scenario::Marathon,
    ],
    &[Scenario::Surge],
    &[Scenario::Outage],
    &[Scenario::Singles],
    &[Scenario::Skew],
];
/// How many days without incidents: on the first there is no day before, and on the second, visitors
/// are judged for the first time.
const CLEAN_DAYS: usize = 3;
/// The job's defaults, and its topic.
const OUT_OF_ORDERNESS_MS: i64 = 15_000;
const IDLE_TIMEOUT_MS: i64 = 30_000;
const EPOCH_MS: i64 = 1_000;
const TOPIC: &str = "web-events";
const PARTITIONS: u32 = 4;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    threshold_args: ThresholdArgs,
    /// The seeds, from and to; the thresholds were chosen on 1-10
    #[arg(long, value_name = "FROM-TO", default_value = "11-30")]
    seeds: String,
    /// Visits a day
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "10000,100000,1000000")]
    visits: Vec<u64>,
    /// How often each scenario happens on the second of two days
    #[arg(long, value_name = "N", default_value = "2")]
    incidents: u64,
}

/// The results for a volume and a tail.
#[derive(Default)]
struct Cell {
    scores: Scores,
    baseline: Scores,
    /// On clean days, by kind and day.
    false_alarms: BTreeMap<Kind, [u64; CLEAN_DAYS]>,
    baseline_alarms: u64,
    days: u64,
}

pub fn run(args: &Args) -> Result<(), String> {
    let thresholds = args.threshold_args.thresholds()?;
    let seeds = seeds(&args.seeds)?;
    let mut cells = Vec::new();
    for visits in &args.visits {
        for tail in Tail::ALL {
            let mut cell = Cell::default();
            for seed in seeds.clone() {
                cell.run(
                    &Request {
                        start_ms: START_MS,
                        days: 2,
                        hosts: vec!["shop.example".to_owned()],
                        visits: *visits,
                        tail,
                        scenarios: Vec::new(),
                        incidents: args.incidents,
                        seed,
                        topic: TOPIC.to_owned(),
                        partitions: PARTITIONS,
                    },
                    &thresholds,
                );
            }
            eprintln!("done: {visits} visits a day, {} tails", tail.name());
            cells.push((*visits, tail, cell));
        }
    }
    print(&cells, &seeds, args);
    Ok(())
}

fn seeds(text: &str) -> Result<RangeInclusive<u64>, String> {
    let parse = |text: &str| text.parse::<u64>().map_err(|why| format!("--seeds {text}: {why}"));
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    Ok(parse(from)?..=parse(to)?)
}

impl Cell {
    fn run(&mut self, clean: &Request, thresholds: &Thresholds) {
        let end_ms = |days: u64| clean.start_ms + days as i64 * DAY_MS;
        // All visits end with the plan: that is not a fall.
        let in_time =
            |days| move |found: &Found| found.known_ms.is_none_or(|known| known <= end_ms(days));
        let plan = Plan::new(&Request { days: CLEAN_DAYS as u64, ..clean.clone() });
        let Judged { mut found, large } = judge(&plan, thresholds);
        found.extend(clocks(&plan, thresholds));
        self.days += 1;
        let day = |found: &Found| {
            let days = found.known_ms.map(|known| (known - clean.start_ms) / DAY_MS);
            days.map_or(CLEAN_DAYS - 1, |days| (days as usize).min(CLEAN_DAYS - 1))
        };
        let in_time_clean = in_time(CLEAN_DAYS as u64);
        let is_last = |found: &&Found| day(found) == CLEAN_DAYS - 1 && in_time_clean(found);
        self.baseline_alarms += large.iter().filter(is_last).count() as u64;
        for found in found.iter().filter(|found| in_time_clean(found)) {
            self.false_alarms.entry(found.kind).or_default()[day(found)] += 1;
        }
        for world in WORLDS {
            let plan = Plan::new(&Request { scenarios: world.to_vec(), ..clean.clone() });
            let Judged { found, large } = match world.contains(&Scenario::Skew) {
                true => Judged { found: clocks(&plan, thresholds), large: Vec::new() },
                false => judge(&plan, thresholds),
            };
            let on_second = |found: &Found| found.known_ms.is_none_or(|known| known >= end_ms(1));
            let on_time = |found: &Found| on_second(found) && in_time(clean.days)(found);
            let found: Vec<Found> = found.into_iter().filter(on_time).collect();
            self.scores.add(&found, &plan.incidents);
            if world.contains(&Scenario::Flood) {
                let large: Vec<Found> = large.into_iter().filter(on_time).collect();
                self.baseline.add(&large, &plan.incidents);
            }
        }
    }

    fn of_baseline(&self) -> Score {
        self.baseline.kinds.get(&Kind::Burst).cloned().unwrap_or_default()
    }
}

/// What was found in a plan.
struct Judged {
    found: Vec<Found>,
    /// By the baseline.
    large: Vec<Found>,
}

fn judge(plan: &Plan, thresholds: &Thresholds) -> Judged {
    let gap = Gap::from_millis(GAP_MS).expect("a gap");
    let sessions = plan.sessions(gap);
    // The sessions of a visitor are adjacent.
    let same = |a: &PlannedSession, b: &PlannedSession| a.visitor == b.visitor;
    let visitors: Vec<(String, &[PlannedSession])> =
        sessions.chunk_by(same).map(|sessions| (sessions[0].visitor.address(), sessions)).collect();
    let row = |ip, session: &PlannedSession| Session {
        ip,
        host: &plan.hosts[usize::from(session.host)],
        span: session.span,
        end: session.end,
    };
    let of_visitor = visitors.iter().flat_map(|(ip, all)| all.iter().map(move |s| row(ip, s)));
    let rows: Vec<Session<'_>> = of_visitor.collect();
    let watermark = rows.iter().map(|row| row.end).max().unwrap_or(EventTime::NEVER).plus(1);
    let anomalies = batch(rows.iter().copied(), watermark, thresholds);
    let known = known(&rows, &anomalies);
    let found = anomalies.into_iter().zip(known).map(|(anomaly, known_ms)| Found {
        kind: anomaly.kind,
        host: anomaly.host,
        subject: anomaly.subject,
        at_ms: anomaly.at.millis(),
        known_ms,
    });
    let mut found: Vec<Found> = found.collect();
    for open in open::marathons(&rows, thresholds) {
        let same = |one: &&mut Found| {
            (one.kind, &one.host, &one.subject, one.at_ms)
                == (open.kind, &open.host, &open.subject, open.at_ms)
        };
        match found.iter_mut().find(same) {
            Some(of_row) => of_row.known_ms = of_row.known_ms.min(open.known_ms),
            None => found.push(open),
        }
    }
    let large = rows.iter().filter(|row| row.span.count > BASELINE).map(|row| Found {
        kind: Kind::Burst,
        host: row.host.to_owned(),
        subject: row.ip.to_owned(),
        at_ms: row.span.first.millis(),
        known_ms: Some(row.end.millis()),
    });
    Judged { found, large: large.collect() }
}

/// The partitions whose clock is off, if the events are read as they happen.
fn clocks(plan: &Plan, thresholds: &Thresholds) -> Vec<Found> {
    let mut judge = ClockJudge::new(thresholds, OUT_OF_ORDERNESS_MS as u64, IDLE_TIMEOUT_MS as u64);
    let names: Vec<String> = (0..plan.partitions).map(|of| format!("{TOPIC}/{of}")).collect();
    // When the last event of each partition came, and the newest time that one had.
    let mut newest: Vec<Option<(i64, i64)>> = vec![None; names.len()];
    let mut epoch_ms = i64::MIN;
    // The job reports a partition once a day.
    let mut found: BTreeMap<(String, i64), Found> = BTreeMap::new();
    for event in events(plan) {
        epoch_ms = epoch_ms.max(event.at_ms - event.at_ms.rem_euclid(EPOCH_MS) - IDLE_TIMEOUT_MS);
        while epoch_ms + EPOCH_MS <= event.at_ms {
            epoch_ms += EPOCH_MS;
            let promise = |of: &Option<(i64, i64)>| {
                let (_, time_ms) = of.filter(|(at_ms, _)| epoch_ms - at_ms < IDLE_TIMEOUT_MS)?;
                Some(EventTime::from_millis(time_ms - OUT_OF_ORDERNESS_MS))
            };
            let partitions: Vec<PartitionClock<'_>> = names
                .iter()
                .zip(&newest)
                .map(|(name, of)| PartitionClock { name, promise: promise(of) })
                .collect();
            for anomaly in judge.epoch(&partitions) {
                let (subject, at_ms) = (anomaly.subject, anomaly.at.millis());
                let (kind, host, known_ms) = (anomaly.kind, anomaly.host, Some(epoch_ms));
                let one = Found { kind, host, subject: subject.clone(), at_ms, known_ms };
                found.entry((subject, at_ms)).or_insert(one);
            }
        }
        let of = &mut newest[plan.partition(event.visit.visitor) as usize];
        let time_ms = plan.event_time_ms(&event);
        *of = Some((event.at_ms, of.map_or(time_ms, |(_, newest_ms)| newest_ms.max(time_ms))));
    }
    found.into_values().collect()
}

/// When each anomaly was known, by event time.
fn known(rows: &[Session<'_>], found: &[Anomaly]) -> Vec<Option<i64>> {
    // The ends of the sessions of the visitors and networks that were found, by day.
    let mut ends: HashMap<(String, i64), Vec<i64>> = HashMap::new();
    for anomaly in found.iter().filter(|a| matches!(a.kind, Kind::Repeat | Kind::Network)) {
        let day = anomaly.at.millis().div_euclid(DAY_MS);
        ends.insert((anomaly.subject.clone(), day), Vec::new());
    }
    if !ends.is_empty() {
        for row in rows {
            let day = row.end.millis().div_euclid(DAY_MS);
            for subject in [Some(row.ip.to_owned()), network(row.ip)].into_iter().flatten() {
                if let Some(ends) = ends.get_mut(&(subject, day)) {
                    ends.push(row.end.millis());
                }
            }
        }
        ends.values_mut().for_each(|ends| ends.sort_unstable());
    }
    let at = |anomaly: &Anomaly| {
        let at_ms = anomaly.at.millis();
        match (anomaly.kind, anomaly.evidence) {
            (_, Evidence::Session { duration_ms, .. } | Evidence::Pace { duration_ms, .. }) => {
                Some(at_ms + duration_ms as i64 + GAP_MS)
            }
            (Kind::Surge | Kind::Fall, _) => Some(at_ms + BUCKET_MS),
            (Kind::Singles, _) => Some(at_ms + SINGLES_MS),
            _ => {
                let of_day = ends.get(&(anomaly.subject.clone(), at_ms.div_euclid(DAY_MS)))?;
                of_day.get(anomaly.threshold as usize).copied()
            }
        }
    };
    found.iter().map(at).collect()
}

fn print(cells: &[(u64, Tail, Cell)], seeds: &RangeInclusive<u64>, args: &Args) {
    println!(
        "Seeds {} to {}, {} incidents of each scenario on the second of two days.\n",
        seeds.start(),
        seeds.end(),
        args.incidents
    );
    println!("| kind | visits a day | tails | recall | precision | delay | false alarms a day |");
    println!("|---|--:|---|--:|--:|--:|--:|");
    let a_day = |alarms: u64, days: u64| format!("{:.2}", alarms as f64 / days.max(1) as f64);
    for kind in Kind::ALL {
        for (visits, tail, cell) in cells {
            let score = cell.scores.kinds.get(&kind).cloned().unwrap_or_default();
            let [.., alarms] = cell.false_alarms.get(&kind).copied().unwrap_or_default();
            println!(
                "| {} | {visits} | {} | {} | {} | {} | {} |",
                kind.name(),
                tail.name(),
                score.recall(),
                score.precision(),
                score.delay(),
                a_day(alarms, cell.days)
            );
        }
    }
    for (visits, tail, cell) in cells {
        println!(
            "| more than {BASELINE} events | {visits} | {} | {} | {} | {} | {} |",
            tail.name(),
            cell.of_baseline().recall(),
            cell.of_baseline().precision(),
            cell.of_baseline().delay(),
            a_day(cell.baseline_alarms, cell.days)
        );
    }
    println!("\n| scenario | {} |", titles(cells, |visits, tail| format!("{visits} {tail}")));
    println!("|---|{}", "--:|".repeat(cells.len()));
    for scenario in WORLDS.iter().flat_map(|world| world.iter()) {
        let recall = |cell: &Cell| {
            let (all, found) =
                cell.scores.scenarios.get(&scenario.name()).copied().unwrap_or((0, 0));
            ratio(found, all)
        };
        let recalls: Vec<String> = cells.iter().map(|(_, _, cell)| recall(cell)).collect();
        println!("| {} | {} |", scenario.name(), recalls.join(" | "));
    }
    for (day, name) in ["first", "second"].into_iter().enumerate() {
        let titles = titles(cells, |visits, tail| format!("{visits} {tail}"));
        println!("\n| false alarms on the {name} day | {titles} |");
        println!("|---|{}", "--:|".repeat(cells.len()));
        for kind in Kind::ALL {
            let of_day = |cell: &Cell| {
                let alarms = cell.false_alarms.get(&kind).copied().unwrap_or_default()[day];
                a_day(alarms, cell.days)
            };
            let alarms: Vec<String> = cells.iter().map(|(_, _, cell)| of_day(cell)).collect();
            println!("| {} | {} |", kind.name(), alarms.join(" | "));
        }
    }
}

fn titles(cells: &[(u64, Tail, Cell)], title: impl Fn(u64, &str) -> String) -> String {
    let titles: Vec<String> =
        cells.iter().map(|(visits, tail, _)| title(*visits, tail.name())).collect();
    titles.join(" | ")
}
