//! The metrics: the documented list, a running job, the dashboard, the rules and the alerts are
//! compared with each other.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use crate::lifecycle::{Traffic, wait_for_records};
use crate::watch::{Watched, exchange};
use crate::world::{World, eventually};

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
    let args = ["--epoch", "100ms", "-w", "2", "--snapshot-interval", "100ms"];
    let watched = Watched::start(&world, &args);
    wait_for_records(&world, traffic.records());
    crate::audit::passes(&world);
    eventually("the last audit is known", || {
        watched.get("/metrics").body.contains("\nsessionizer_audit_rows ")
    });
    eventually("all shards are saved", || {
        watched.get("/metrics").body.contains("\nsessionizer_snapshot_timestamp_seconds ")
    });
    watched.wait_until("all is known", |document| {
        document["tiles"]["lag_s"].is_number()
            && document["tiles"]["durable_watermark"].is_number()
            && document["statistics"]["state"] == "counting"
    });
    let plain = watched.get("/metrics");
    let (documented, served) = (documented(), served(&plain.body));
    let missing: Vec<_> = documented.difference(&served).collect();
    let secret: Vec<_> = served.difference(&documented).collect();
    assert!(missing.is_empty(), "in the list, and not served: {missing:?}\n{}", plain.body);
    assert!(secret.is_empty(), "served, and not in the list: {secret:?}");
    let state = plain.body.lines().find_map(|line| line.strip_prefix("sessionizer_state_bytes "));
    let state: f64 = state.and_then(|bytes| bytes.parse().ok()).expect("a number");
    assert!(state > 1e3, "{state} bytes for all that was open");

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

/// Checks them with Prometheus' own tool.
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

/// A Prometheus that scrapes a job, removed with the test.
struct Prometheus {
    process: std::process::Child,
    directory: std::path::PathBuf,
    address: String,
}

impl Prometheus {
    /// Starts one; `None` if there is none on this machine.
    fn start(world: &World, target: &str) -> Option<Prometheus> {
        Command::new("prometheus").arg("--version").output().ok()?;
        let directory = std::env::temp_dir().join(format!("{}-prometheus", world.name));
        std::fs::create_dir_all(&directory).expect("a directory");
        let root = env!("CARGO_MANIFEST_DIR");
        let config = format!(
            "global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}\n\
             rule_files: [{root}/deploy/prometheus/alerts.yml, {root}/deploy/prometheus/rules.yml]\n\
             scrape_configs:\n  - job_name: sessionizer\n    static_configs:\n      - targets: [\"{target}\"]\n"
        );
        let file = directory.join("prometheus.yml");
        std::fs::write(&file, config).expect("a file");
        let address = crate::cluster::addresses(1).remove(0);
        let log = std::fs::File::create(directory.join("log")).expect("a file");
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stderr(log)
            .spawn()
            .expect("it has just been started");
        Some(Prometheus { process, directory, address })
    }

    /// Asks its API.
    fn ask(&self, path: &str) -> Option<serde_json::Value> {
        std::net::TcpStream::connect(&self.address).ok()?;
        let answer = crate::watch::get(&self.address, path);
        serde_json::from_str(&answer.body).ok()
    }

    /// The result of a query; one that is refused fails.
    fn query(&self, query: &str) -> Vec<serde_json::Value> {
        let coded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let told = self.ask(&format!("/api/v1/query?query={coded}")).expect("it answers");
        assert_eq!(told["status"], "success", "{query}: {told}");
        told["data"]["result"].as_array().expect("a result").clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

fn panels() -> Vec<serde_json::Value> {
    let dashboard = file("deploy/grafana/sessionizer.json");
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).expect("JSON");
    dashboard["panels"].as_array().expect("panels").clone()
}

/// Every query of a panel, with all jobs chosen.
fn queries(panel: &serde_json::Value) -> Vec<String> {
    let targets = panel["targets"].as_array().expect("targets").iter();
    targets.map(|target| target["expr"].as_str().expect("a query").replace("$job", ".*")).collect()
}

/// Grafana moves panels that overlap, each time in another way.
#[test]
fn every_panel_of_the_dashboard_has_a_place_and_an_id_of_its_own() {
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in panels() {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "the id of {title:?}");
        let place = |side: &str| panel["gridPos"][side].as_u64().expect("a number");
        let (x, y) = (place("x"), place("y"));
        assert!(x + place("w") <= 24, "{title:?} is beyond the right edge");
        for cell in (x..x + place("w")).flat_map(|x| (y..y + place("h")).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{title:?} covers another panel at {cell:?}");
        }
    }
}

#[test]
fn a_real_prometheus_answers_every_query_of_the_dashboard() {
    let world = World::new("prometheus");
    let mut traffic = Traffic::new(&world);
    traffic.send(2_000);
    let args = ["--epoch", "100ms", "-w", "2", "--snapshot-interval", "100ms"];
    let watched = Watched::start(&world, &args);
    let Some(prometheus) = Prometheus::start(&world, &watched.address) else {
        let why = "prometheus is not installed (Debian's package of that name)";
        return crate::skipped::skipped("the queries of the dashboard", why);
    };
    // Rates need two samples of everything.
    eventually("it has scraped", || {
        traffic.send(200);
        let told = prometheus.ask("/api/v1/query?query=count_over_time(up%5B1m%5D)");
        told.is_some_and(|told| {
            let value = told["data"]["result"][0]["value"][1].as_str().map(str::to_owned);
            value.and_then(|value| value.parse::<u64>().ok()).is_some_and(|count| count >= 8)
        })
    });
    assert_eq!(prometheus.query("up")[0]["value"][1], "1");
    crate::audit::passes(&world);
    // Metrics of failures are empty while nothing fails.
    let may_be_empty = ["sessionizer_postgres_retries_total", "sessionizer_kafka_errors_total"];
    for query in panels().iter().flat_map(queries) {
        let empty = may_be_empty.iter().any(|name| query.contains(name));
        // Some things take a moment: a watermark, a session that closes.
        eventually(&format!("{query} finds something"), || {
            !prometheus.query(&query).is_empty() || empty
        });
    }
    for rule in ["sessionizer:events:rate5m", "kafka_consumergroup_lag"] {
        eventually(rule, || !prometheus.query(rule).is_empty());
    }
    let alerts = prometheus.ask("/api/v1/rules?type=alert").expect("it answers");
    let groups = alerts["data"]["groups"].as_array().expect("groups");
    for rule in groups.iter().flat_map(|group| group["rules"].as_array().expect("rules")) {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    watched.job.stop();
}
