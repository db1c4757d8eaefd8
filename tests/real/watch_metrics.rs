//! The metrics: the list in the documentation, what a running job serves, the dashboard, the rules
//! and the alerts are held against each other.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use crate::lifecycle::{Traffic, wait_for_records};
use crate::watch::{Watched, exchange};
use crate::world::World;

fn file(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// The metrics that the documentation lists: the first word in backticks of each line of a table.
fn documented() -> BTreeSet<String> {
    let text = file("docs/METRICS.md");
    let names = text.lines().filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next());
    let names =
        names.filter(|name| name.starts_with("sessionizer_") || name.starts_with("process_"));
    names.map(str::to_owned).collect()
}

/// Those that a text of Prometheus declares, by the names of their samples.
fn served(text: &str) -> BTreeSet<String> {
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    names.map(str::to_owned).collect()
}

/// Every word in a text that is the name of a metric, without the suffixes of histograms.
fn named(text: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':');
    let words = text.split(word).filter(|word| {
        word.starts_with("sessionizer_") && !word.contains(':') && word.len() > "sessionizer_".len()
    });
    let base = |word: &str| {
        let suffix = ["_bucket", "_sum", "_count"].into_iter();
        let base = suffix.filter_map(|suffix| word.strip_suffix(suffix)).next();
        base.filter(|base| base.ends_with("_seconds")).unwrap_or(word).to_owned()
    };
    words.map(base).collect()
}

#[test]
fn the_list_of_metrics_is_what_a_running_job_serves() {
    let world = World::new("metrics");
    let mut traffic = Traffic::new(&world);
    traffic.send(3_000);
    let watched = Watched::start(&world, &["--epoch", "100ms", "-w", "2"]);
    wait_for_records(&world, traffic.records());
    watched.wait_until("all is known", |document| {
        document["tiles"]["lag_s"].is_number() && document["tiles"]["durable_watermark"].is_number()
    });
    let plain = watched.get("/metrics");
    let (documented, served) = (documented(), served(&plain.body));
    let missing: Vec<_> = documented.difference(&served).collect();
    let secret: Vec<_> = served.difference(&documented).collect();
    assert!(missing.is_empty(), "in the list, and not served: {missing:?}\n{}", plain.body);
    assert!(secret.is_empty(), "served, and not in the list: {secret:?}");

    let open = exchange(
        &watched.address,
        "GET /metrics HTTP/1.0\r\nHost: localhost\r\nAccept: application/openmetrics-text;version=1.0.0,\
         text/plain;q=0.5\r\n\r\n",
    );
    assert!(open.head.contains("application/openmetrics-text"), "{}", open.head);
    assert!(open.body.ends_with("# EOF\n") && !plain.body.contains("# EOF"), "{}", open.body);
    check(&plain.body);
    watched.job.stop();
}

/// Prometheus' own tool reads them and finds nothing to complain of.
fn check(metrics: &str) {
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut tool) = spawned else {
        let why = "promtool is not installed (Debian's package prometheus)";
        return crate::skipped::skipped("the format of the metrics", why);
    };
    std::io::Write::write_all(tool.stdin.as_mut().expect("piped"), metrics.as_bytes())
        .expect("it reads");
    let output = tool.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{metrics}");
}

#[test]
fn dashboard_and_alerts_use_metrics_that_exist() {
    let documented = documented();
    for path in [
        "deploy/prometheus/alerts.yml",
        "deploy/prometheus/rules.yml",
        "deploy/grafana/sessionizer.json",
    ] {
        let used = named(&file(path));
        let unknown: Vec<_> = used.difference(&documented).collect();
        assert!(unknown.is_empty() && !used.is_empty(), "{path}: {unknown:?}");
    }
}

#[test]
fn every_alert_has_its_paragraph_and_every_paragraph_its_alert() {
    let alerts = file("deploy/prometheus/alerts.yml");
    let operations = file("docs/OPERATIONS.md");
    let names: BTreeSet<&str> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let of_headings: BTreeSet<&str> =
        operations.lines().filter_map(|line| line.strip_prefix("### Sessionizer")).collect();
    let of_alerts: BTreeSet<&str> =
        names.iter().map(|name| name.strip_prefix("Sessionizer").expect("the prefix")).collect();
    assert!(of_alerts.len() >= 9, "{of_alerts:?}");
    assert_eq!(of_alerts, of_headings);
    for name in names {
        let link = format!("OPERATIONS.md#{}", name.to_lowercase());
        assert!(alerts.contains(&link), "{name} has no runbook_url to {link}");
    }
}
