//! Where the processes of a cluster are: parses the hostfile. Text in, addresses out; no I/O.

use std::net::IpAddr;

use sessionizer_core::fault::Message;

/// The port of a line that does not name one.
const PORT: u16 = 2101;

/// The lines that name a process: neither blank nor a comment.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty())
}

/// How many processes a hostfile names.
pub fn named(text: &str) -> usize {
    lines(text).count()
}

/// The addresses of `processes` processes, process 0 first: one `host:port` a line. Blank lines,
/// text after a `#` and, as in timely, lines after the last process are ignored.
pub fn parse(text: &str, processes: usize) -> Result<Vec<String>, Message> {
    let mut addresses: Vec<String> = Vec::with_capacity(processes);
    for line in lines(text).take(processes) {
        let address = address(line)?;
        if addresses.contains(&address) {
            let problem = Message::new(format!("names {address} twice"));
            return Err(problem.remedy(": ", "each process needs an address of its own"));
        }
        addresses.push(address);
    }
    if addresses.len() < processes {
        let problem = format!(
            "names {}, and --processes is {processes}",
            processes_in_words(addresses.len())
        );
        let remedy = "it needs a line host:port for each process, process 0 first";
        return Err(Message::new(problem).remedy(": ", remedy));
    }
    Ok(addresses)
}

/// `1 process`, `2 processes`.
pub fn processes_in_words(count: usize) -> String {
    format!("{count} process{}", if count == 1 { "" } else { "es" })
}

/// The addresses without a hostfile: all on this machine.
pub fn local(processes: usize) -> Vec<String> {
    (0..processes).map(|process| format!("localhost:{}", usize::from(PORT) + process)).collect()
}

/// Whether an address is on loopback, judging by its text alone: any name other than localhost may
/// be anywhere.
pub fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    match ip {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

fn address(line: &str) -> Result<String, Message> {
    let wrong = || {
        let problem = Message::new(format!("has the line {line:?}"));
        Err(problem.remedy(": ", "it must be host:port, or [IPv6]:port"))
    };
    let (host, port) = match line.rsplit_once(':') {
        _ if line.starts_with('[') && line.ends_with(']') => (line, PORT),
        // An IPv6 address contains colons, so it must be in brackets.
        Some((host, _)) if host.contains(':') && !host.ends_with(']') => return wrong(),
        Some((host, port)) => match port.parse::<u16>() {
            Ok(port) if port > 0 => (host, port),
            _ => return wrong(),
        },
        None => (line, PORT),
    };
    if host.is_empty() || host.chars().any(char::is_whitespace) {
        return wrong();
    }
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_process_and_comments_and_blank_lines_are_none() {
        let text = "# ours\nalpha:4000\n\n  beta  # the second\n[::1]:5\n[::2]\nunused:1\n";
        let want = ["alpha:4000", "beta:2101", "[::1]:5", "[::2]:2101"];
        assert_eq!(parse(text, 4).expect("valid"), want);
        assert_eq!((named(text), named("# none\n\n")), (5, 0));
    }

    #[test]
    fn what_is_no_address_is_reported_with_its_line() {
        for bad in ["a:", "a:0", "a:99999", ":4000", "a b:1", "::1", "fe80::1:2101"] {
            let why = parse(bad, 1).expect_err(bad).to_string();
            assert!(why.contains(bad), "{why}");
        }
    }

    #[test]
    fn too_few_lines_and_the_same_twice_are_refused() {
        let refused = |text: &str, count| parse(text, count).expect_err(text).to_string();
        assert!(refused("a:1\nb:1", 3).contains("names 2 processes"));
        assert!(refused("a:1", 2).starts_with("names 1 process, and"));
        assert!(refused("a:1\na:1", 2).contains("a:1 twice"));
        assert!(refused("a\na:2101", 2).contains("twice"));
    }

    #[test]
    fn without_a_hostfile_all_are_here() {
        assert_eq!(local(2), ["localhost:2101", "localhost:2102"]);
        assert!(local(2).iter().all(|address| is_loopback(address)));
    }

    #[test]
    fn only_loopback_is_loopback() {
        for here in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "LocalHost:1"]
        {
            assert!(is_loopback(here), "{here}");
        }
        for elsewhere in
            ["0.0.0.0:1", "[::]:1", "10.8.0.1:1", "localhost.example:1", "alpha:1", "128.0.0.1:1"]
        {
            assert!(!is_loopback(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn fuzz_hostfile() {
        let seeds: [&[u8]; 2] = [b"a.example:2101\nb.example:2101\n", b"[::1]:1\r\n10.0.0.1:65535"];
        let pieces: [&[u8]; 6] = [b"\n", b":", b"[", b"]", b"#", b"\xff"];
        crate::shared::mutate::fuzz(&seeds, &pieces, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            if let Ok(hosts) = parse(&text, 2) {
                assert_eq!(hosts.len(), 2, "{text}");
            }
        });
    }
}
