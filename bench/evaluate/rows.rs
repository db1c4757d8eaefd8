//! What a job has found: compares rows of `sessionizer.anomalies` with the ground truth of the
//! topic.

use std::path::PathBuf;

use sessionizer::commands::produce::scenario::Incident;
use sessionizer_core::anomaly::Kind;

use crate::outcome::{Found, Scores};

#[derive(clap::Args)]
pub struct Args {
    /// The truth that `sessionizer produce --truth FILE` has written
    #[arg(long, value_name = "FILE")]
    truth: PathBuf,
    /// What the job has found, one line of JSON for each row:
    /// psql -Atc "select row_to_json(a) from sessionizer.anomalies a where job = 'NAME'"
    #[arg(long, value_name = "FILE")]
    rows: PathBuf,
}

/// A row, as far as it is scored.
#[derive(serde::Deserialize)]
struct Row {
    kind: Kind,
    host: String,
    subject: String,
    at: String,
    state: String,
}

pub fn run(args: &Args) -> Result<(), String> {
    let incidents: Vec<Incident> = lines(&args.truth)?;
    let mut found = Vec::new();
    for row in lines::<Row>(&args.rows)? {
        let at = chrono::DateTime::parse_from_rfc3339(&row.at)
            .map_err(|why| format!("{}: {}: {why}", args.rows.display(), row.at))?;
        if row.state == "raised" {
            found.push(Found {
                kind: row.kind,
                host: row.host,
                subject: row.subject,
                at_ms: at.timestamp_millis(),
                known_ms: None,
            });
        }
    }
    let mut scores = Scores::default();
    scores.add(&found, &incidents);
    println!("| kind | raised | right | incidents | found | precision | recall |");
    println!("|---|--:|--:|--:|--:|--:|--:|");
    for (kind, score) in &scores.kinds {
        println!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            kind.name(),
            score.raised,
            score.right,
            score.incidents,
            score.found,
            score.precision(),
            score.recall()
        );
    }
    let missed = scores.scenarios.iter().filter(|(_, (all, found))| all != found);
    for (scenario, (all, found)) in missed {
        println!("\n{scenario}: {} of {all} not found", all - found);
    }
    Ok(())
}

fn lines<T: serde::de::DeserializeOwned>(path: &PathBuf) -> Result<Vec<T>, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|why| format!("{shown}: {why}"))?;
    let parse = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|why| format!("{shown}: line {}: {why}", number + 1))
    };
    text.lines().enumerate().map(parse).collect()
}
