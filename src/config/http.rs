//! The settings of the HTTP port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::cli::RunArgs;
use crate::config::Problems;
use crate::config::value::{duration_ms, list, name};
use crate::monitor::HttpConfig;

/// The port that OpenTelemetry's exporters use, and on most machines nothing else.
const PORT: u16 = 9_464;

/// Reads the settings of the HTTP port.
pub fn read_http(problems: &mut Problems<'_>, args: &RunArgs) -> Option<HttpConfig> {
    let address = problems.take("--http", address(args));
    let hosts = list(&args.http_host).and_then(|all| all.into_iter().map(host).collect());
    let hosts = problems.take("--http-host", hosts);
    let full = match args.page.trim() {
        "masked" => Ok(false),
        "full" => Ok(true),
        _ => Err(format!("is {:?}: it can be masked or full", args.page)),
    };
    let full = problems.take("--page", full);
    let within = duration_ms(&args.ready_within, 1_000, 366 * 86_400_000);
    let within = problems.take("--ready-within", within);
    let metrics_hosts = list(&args.metrics_hosts);
    let metrics_hosts: Result<Vec<String>, String> =
        metrics_hosts.and_then(|all| all.into_iter().map(|host| name(host, 253)).collect());
    let metrics_hosts = problems.take("--metrics-hosts", metrics_hosts);
    Some(HttpConfig {
        address: address?,
        hosts: hosts?,
        full: full?,
        ready_within: Duration::from_millis(within?),
        metrics_hosts: metrics_hosts?,
    })
}

/// Where to listen. By default, processes without a hostfile, which share a machine, have a port
/// each.
fn address(args: &RunArgs) -> Result<Option<SocketAddr>, String> {
    let Some(text) = args.http.as_deref().map(str::trim).filter(|text| !text.is_empty()) else {
        let process = args.process.trim().parse::<u16>().unwrap_or(0);
        let port = if args.hostfile.is_some() { PORT } else { PORT.saturating_add(process) };
        return Ok(Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)));
    };
    if text.eq_ignore_ascii_case("none") {
        return Ok(None);
    }
    let local = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    let address = local.as_deref().unwrap_or(text).parse().map(Some);
    address.map_err(|_| {
        format!("is {text:?}: it must be an address with its port, like 127.0.0.1:{PORT}, or none")
    })
}

/// A name without a port, as a `Host` header has it.
fn host(text: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match text.bytes().all(legal) && text.len() <= 253 {
        true => Ok(text.to_ascii_lowercase()),
        false => Err(format!("is {text:?}: it must be a name like jobs.example, without a port")),
    }
}
