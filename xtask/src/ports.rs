//! Free ports on loopback, for the processes of a cluster.

use std::fmt::Write;
use std::net::TcpListener;
use std::ops::Range;
use std::path::Path;

use crate::failure::{Result, While};
use crate::rng::Rng;

/// On Linux, ephemeral ports start at 32768. Below that, no client takes the port of a process that
/// is about to be restarted.
const FREE: Range<u64> = 20_000..30_000;

/// The first of `count` consecutive free ports.
pub fn free(count: usize, rng: &mut Rng) -> u16 {
    loop {
        let first = rng.between(FREE.start, FREE.end - count as u64) as u16;
        // The listener is closed again at once.
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (first..).take(count).all(free) {
            return first;
        }
    }
}

/// Writes a hostfile for `count` processes on free ports.
pub fn write_hosts(path: &Path, count: usize, rng: &mut Rng) -> Result<()> {
    std::fs::write(path, hosts(count, free(count, rng))).during(path.display())
}

fn hosts(count: usize, first: u16) -> String {
    (first..).take(count).fold(String::new(), |mut hosts, port| {
        writeln!(hosts, "127.0.0.1:{port}").expect("writing to a string cannot fail");
        hosts
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostfile_has_a_line_for_each_process() {
        assert_eq!(hosts(2, 20_001), "127.0.0.1:20001\n127.0.0.1:20002\n");
    }

    #[test]
    fn a_port_that_is_taken_is_not_given() {
        let mut rng = Rng::new(1);
        let first = free(3, &mut rng.clone());
        let _taken = TcpListener::bind(("127.0.0.1", first + 1)).expect("it is free");
        let other = free(3, &mut rng);
        assert!(!(other..other + 3).contains(&(first + 1)), "{other} with {first} + 1 taken");
    }
}
