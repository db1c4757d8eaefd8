//! The results, as a table and as JSON.

use std::fmt::Display;
use std::io::Write;
use std::path::Path;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets::NOTHING};
use serde_json::json;

use super::backlog::Run;
use super::measure::{
    COUNT, CPU_SECONDS, EVENTS_PER_S, MB, MICROS, SECONDS, TIMES, Unit, ratios, summary, thousands,
};
use crate::failure::{Result, While};

/// The machine, the versions, and the size of the run.
pub struct Head {
    pub machine: String,
    pub versions: String,
    pub events: u64,
    pub runs: usize,
}

#[derive(Default)]
pub struct Results {
    case: String,
    rows: Vec<Row>,
}

struct Row {
    case: String,
    what: String,
    unit: Unit,
    values: Vec<f64>,
}

impl Results {
    /// Begins a case: the rows that follow belong to it.
    pub fn begin(&mut self, case: impl Into<String>) {
        self.case = case.into();
    }

    pub fn add(&mut self, what: impl Into<String>, unit: Unit, values: &[f64]) {
        let values = values.iter().map(|value| unit.round(*value)).collect();
        self.rows.push(Row { case: self.case.clone(), what: what.into(), unit, values });
    }

    /// The quotients of two lists, turn by turn.
    pub fn ratio(&mut self, what: impl Into<String>, these: &[f64], those: &[f64]) {
        self.add(what, TIMES, &ratios(these, those));
    }

    /// Adds all figures of runs of the job over a backlog.
    pub fn report(&mut self, name: impl Display, runs: &[Run]) {
        for (what, unit, value) in [
            ("throughput", EVENTS_PER_S, Run::rate as fn(&Run) -> f64),
            ("CPU time", CPU_SECONDS, |run| run.cpu_s),
            ("CPU time of an event", MICROS, Run::cpu_us_per_event),
            ("events per CPU-second", COUNT, Run::events_per_cpu_second),
            ("peak memory", MB, |run| run.peak_mb),
            ("from start to end", SECONDS, |run| run.wall_s),
            ("CPU time of PostgreSQL", CPU_SECONDS, |run| run.postgres_s),
            ("CPU time of Kafka", CPU_SECONDS, |run| run.kafka_s),
        ] {
            self.add(format!("{name}: {what}"), unit, &each(runs, value));
        }
    }

    /// The same for bare consumers.
    pub fn report_raw(&mut self, consumers: usize, runs: &[Run]) {
        self.add(format!("raw, consumers: {consumers}"), EVENTS_PER_S, &each(runs, Run::rate));
        self.add("... CPU time", CPU_SECONDS, &each(runs, |run| run.cpu_s));
        self.add("... CPU time of an event", MICROS, &each(runs, Run::cpu_us_per_event));
        self.add("... CPU time of Kafka", CPU_SECONDS, &each(runs, |run| run.kafka_s));
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Writes the table to standard output.
    pub fn print(&self, head: &Head) -> Result<()> {
        let Head { machine, versions, events, runs } = head;
        let events = thousands(*events);
        let table = self.table();
        let runs = if *runs == 1 { "1 run".to_owned() } else { format!("{runs} runs") };
        let text = format!("\n{machine}\n{versions}\n{events} events, {runs}\n\n{table}\n");
        std::io::stdout().write_all(text.as_bytes()).during("cannot write the results")
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        let number = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        let titles = ["median", "least", "most"].map(|title| number(title.to_owned()));
        let [median, least, most] = titles;
        table.set_header(vec![
            Cell::new("case"),
            Cell::new("measured"),
            median,
            least,
            most,
            Cell::new("unit"),
        ]);
        for Row { case, what, unit, values } in &self.rows {
            let Some(summary) = summary(values) else { continue };
            table.add_row(vec![
                Cell::new(case),
                Cell::new(what),
                number(unit.show(summary.median)),
                number(unit.show(summary.least)),
                number(unit.show(summary.most)),
                Cell::new(unit.name),
            ]);
        }
        table.trim_fmt()
    }

    /// Writes everything to a file, every single run included.
    pub fn write_json(&self, head: &Head, path: &Path) -> Result<()> {
        let text = format!("{:#}\n", self.json(head));
        std::fs::write(path, text).during(path.display())
    }

    fn json(&self, head: &Head) -> serde_json::Value {
        let rows = self.rows.iter().filter_map(|Row { case, what, unit, values }| {
            let summary = summary(values)?;
            Some(json!({
                "case": case,
                "measured": what,
                "unit": unit.name,
                "median": summary.median,
                "least": summary.least,
                "most": summary.most,
                "values": values,
            }))
        });
        json!({
            "machine": head.machine,
            "versions": head.versions,
            "events": head.events,
            "runs": head.runs,
            "results": rows.collect::<Vec<_>>(),
        })
    }
}

/// One figure of each run.
pub fn each(runs: &[Run], figure: impl Fn(&Run) -> f64) -> Vec<f64> {
    runs.iter().map(figure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        let mut results = Results::default();
        results.begin("backlog");
        results.add("-w 2: throughput", EVENTS_PER_S, &[1_900_000.4, 1_700_000.0, 1_800_000.0]);
        results.ratio("... / raw", &[3.0, 1.0], &[2.0, 1.0]);
        results.add("nothing", COUNT, &[]);
        results
    }

    #[test]
    fn a_table_has_a_line_for_all_that_was_measured() {
        let table = results().table();
        let lines: Vec<&str> = table.lines().map(str::trim).collect();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(lines[0]), ["case", "measured", "median", "least", "most", "unit"]);
        assert_eq!(words(lines[1])[..4], ["backlog", "-w", "2:", "throughput"], "{table}");
        let numbers = ["1,800,000", "1,700,000", "1,900,000", "events/s"];
        assert_eq!(words(lines[1])[4..], numbers, "{table}");
        assert_eq!(words(lines[2])[4..], ["1.000", "1.000", "1.500", "×"], "{table}");
        assert_eq!(lines.len(), 3, "{table}");
    }

    #[test]
    fn json_keeps_every_run() {
        let head = Head {
            machine: "two cores".to_owned(),
            versions: "0.1.0".to_owned(),
            events: 5,
            runs: 3,
        };
        let json = results().json(&head);
        assert_eq!(json["machine"], "two cores");
        let row = &json["results"][0];
        assert_eq!(row["case"], "backlog");
        assert_eq!(row["median"], 1_800_000.0);
        assert_eq!(row["values"], json!([1_900_000.0, 1_700_000.0, 1_800_000.0]));
    }
}
