//! Whether a request is meant for this port. A foreign page can make a browser send requests here
//! under a name of its own that resolves to this address (DNS rebinding), and could then read the
//! answers. So only addresses, `localhost` and configured names are accepted.

use std::net::{IpAddr, Ipv6Addr};

/// Whether the value of a `Host` header is an address, `localhost`, or one of `names`.
pub fn is_ours(host: &str, names: &[String]) -> bool {
    let Some(name) = without_port(host) else { return false };
    if let Some(six) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return six.parse::<Ipv6Addr>().is_ok();
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// The host without its port; `None` if the port is not a number.
fn without_port(host: &str) -> Option<&str> {
    if host.starts_with('[') {
        let end = host.find(']')? + 1;
        return port_or_nothing(&host[end..]).then_some(&host[..end]);
    }
    match host.split_once(':') {
        None => Some(host),
        Some((name, port)) => is_number(port).then_some(name),
    }
}

fn port_or_nothing(rest: &str) -> bool {
    rest.is_empty() || rest.strip_prefix(':').is_some_and(is_number)
}

fn is_number(port: &str) -> bool {
    port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_given_names_are_ours_and_nothing_else() {
        let names = ["jobs.example".to_owned()];
        for ours in [
            "127.0.0.1:9464",
            "127.0.0.1",
            "10.8.0.7:80",
            "[::1]:9464",
            "[2001:db8::1]",
            "localhost:9464",
            "LocalHost",
            "localhost.",
            "jobs.example:443",
            "Jobs.Example",
        ] {
            assert!(is_ours(ours, &names), "{ours}");
        }
        for foreign in [
            "",
            "evil.example",
            "evil.example:9464",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "jobs.example.evil",
            "localhost:x",
            "localhost:80:80",
            "[::1",
            "[::1]x",
            "[evil.example]",
            "::1",
            "127.0.0.1@evil",
            "localhost:123456",
        ] {
            assert!(!is_ours(foreign, &names), "{foreign}");
        }
    }

    #[test]
    fn fuzz_host() {
        let seeds: [&[u8]; 4] = [b"localhost:9464", b"[::1]:80", b"127.0.0.1", b"job.example."];
        let pieces: [&[u8]; 7] =
            [b":", b"[", b"]", b".", b"%", b"evil.example", "\u{fc}".as_bytes()];
        let names = ["job.example".to_owned()];
        crate::shared::mutate::fuzz(&seeds, &pieces, |bytes| {
            let host = String::from_utf8_lossy(bytes);
            assert!(!(is_ours(&host, &names) && host.contains("evil")), "{host}");
        });
    }
}
