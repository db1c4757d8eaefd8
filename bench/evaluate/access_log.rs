//! An access log: who comes back too often, and what their user agents claim to be.
//!
//! The detectors do not see the user agent, so it is an independent label.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sessionizer::commands::produce::access_log::{Lines, parse_line, reader};
use sessionizer_core::anomaly::{Anomaly, DAY_MS, Kind, Session, batch, network};
use sessionizer_core::session::{Span, merge_touching};
use sessionizer_core::time::{EventTime, Gap};

use crate::ThresholdArgs;

/// Words by which user agents identify themselves as robots.
const ROBOTS: [&str; 19] = [
    "bot",
    "crawler",
    "spider",
    "slurp",
    "feed",
    "tt-rss",
    "tiny tiny rss",
    "rss",
    "wget",
    "curl",
    "python",
    "java/",
    "libwww",
    "fetcher",
    "planet",
    "scanner",
    "http client",
    "ruby",
    "monitor",
];

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    threshold_args: ThresholdArgs,
    /// The log, in the combined format
    #[arg(value_name = "FILE")]
    log: PathBuf,
    /// The gap between sessions, in seconds
    #[arg(long, value_name = "S", default_value = "300")]
    gap: i64,
}

#[derive(Default)]
struct Visitor {
    times_ms: Vec<i64>,
    agents: BTreeMap<String, u64>,
}

/// What a log holds.
#[derive(Default)]
struct Log {
    visitors: BTreeMap<String, Visitor>,
    /// The minutes of the hour that its lines are of.
    minutes: BTreeSet<i64>,
    skipped: u64,
}

pub fn run(args: &Args) -> Result<(), String> {
    let thresholds = args.threshold_args.thresholds()?;
    let gap = Gap::from_millis(args.gap * 1_000).ok_or("--gap: is not above 0")?;
    let log = Log::read(&args.log)?;
    let rows = log.sessions(gap);
    let watermark = rows.iter().map(|row| row.end).max().ok_or("the log is empty")?.plus(1);
    println!(
        "{} visitors, {} sessions, {} lines skipped\n",
        log.visitors.len(),
        rows.len(),
        log.skipped
    );
    if log.minutes.len() == 1 {
        println!(
            "All lines are of one minute of the hour: rates, durations and surges mean nothing.\n"
        );
    }
    let found = batch(rows.iter().copied(), watermark, &thresholds);
    println!("| kind | day | who | reason | agent | robot |\n|---|---|---|---|---|---|");
    let mut judged = [0, 0];
    for anomaly in found.iter().filter(|a| matches!(a.kind, Kind::Repeat | Kind::Network)) {
        let agent = log.agent(anomaly);
        let robot = is_robot(agent);
        judged[usize::from(robot)] += 1;
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            anomaly.kind.name(),
            &anomaly.at.to_string()[..10],
            anomaly.subject,
            anomaly.reason(),
            agent.replace('|', "/"),
            if robot { "yes" } else { "no" }
        );
    }
    println!("\n{} of {} are robots by their agent.", judged[1], judged[0] + judged[1]);
    missed(&log.visitors, &rows, &found);
    let others = found.iter().filter(|a| !matches!(a.kind, Kind::Repeat | Kind::Network));
    println!("\nOther kinds: {}.", others.count());
    Ok(())
}

impl Log {
    fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let file = reader(path).map_err(|why| format!("{shown}: {why}"))?;
        let mut log = Log::default();
        for (number, line) in Lines::new(file) {
            let line = line.map_err(|why| format!("{shown}: line {number}: {why}"))?;
            let Ok(event) = parse_line(&line, "log") else {
                log.skipped += 1;
                continue;
            };
            log.minutes.insert(event.event_time_ms.div_euclid(60_000).rem_euclid(60));
            let visitor = log.visitors.entry(event.ip.into_owned()).or_default();
            visitor.times_ms.push(event.event_time_ms);
            *visitor.agents.entry(event.user_agent.into_owned()).or_default() += 1;
        }
        Ok(log)
    }

    fn sessions(&self, gap: Gap) -> Vec<Session<'_>> {
        let mut rows = Vec::new();
        for (ip, visitor) in &self.visitors {
            let event = |ms: &i64| Span::event(EventTime::from_millis(*ms));
            let spans = visitor.times_ms.iter().map(event).collect();
            let session =
                |span: Span| Session { ip, host: "log", span, end: gap.end_after(span.last) };
            rows.extend(merge_touching(spans, gap).into_iter().map(session));
        }
        rows
    }

    /// The user agent that the visitor or the network of an anomaly names most often.
    fn agent(&self, anomaly: &Anomaly) -> &str {
        let of_it = self.visitors.iter().filter(|(ip, _)| {
            **ip == anomaly.subject || network(ip).as_ref() == Some(&anomaly.subject)
        });
        let mut agents: BTreeMap<&str, u64> = BTreeMap::new();
        for (agent, n) in of_it.flat_map(|(_, visitor)| &visitor.agents) {
            *agents.entry(agent.as_str()).or_default() += n;
        }
        agents.into_iter().max_by_key(|(_, n)| *n).map_or("", |(agent, _)| agent)
    }
}

/// How many visitors call themselves robots, and how busy they were on their busiest day.
fn missed(visitors: &BTreeMap<String, Visitor>, rows: &[Session<'_>], found: &[Anomaly]) {
    let mut busiest: BTreeMap<(&str, i64), u64> = BTreeMap::new();
    for row in rows {
        *busiest.entry((row.ip, row.end.millis().div_euclid(DAY_MS))).or_default() += 1;
    }
    let flagged: BTreeSet<&str> = found
        .iter()
        .filter(|anomaly| anomaly.kind == Kind::Repeat)
        .map(|anomaly| anomaly.subject.as_str())
        .collect();
    let mut robots: BTreeMap<&str, u64> = BTreeMap::new();
    for ((ip, _), sessions) in busiest {
        let agents = &visitors[ip].agents;
        if agents.keys().any(|agent| is_robot(agent)) {
            let most = robots.entry(ip).or_default();
            *most = sessions.max(*most);
        }
    }
    let at_least = |n: u64| robots.values().filter(|most| **most >= n).count();
    println!(
        "\n{} visitors have an agent that says it is a robot; on their busiest day {} had 2 sessions \
         or more, {} had 5, {} had 9. {} of them are flagged.",
        robots.len(),
        at_least(2),
        at_least(5),
        at_least(9),
        robots.keys().filter(|ip| flagged.contains(*ip)).count()
    );
}

fn is_robot(agent: &str) -> bool {
    let agent = agent.to_lowercase();
    agent == "-" || agent.is_empty() || ROBOTS.iter().any(|robot| agent.contains(robot))
}
