//! The cost of two processes instead of two threads: everything between them is serialised and,
//! with a secret, encrypted.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::bench::Bench;
use crate::bench::backlog::{Cluster, Run, Start};
use crate::bench::measure::{COUNT, EVENTS_PER_S};
use crate::bench::results::each;
use crate::failure::{Result, While};
use crate::ports;

pub fn run(bench: &mut Bench) -> Result<()> {
    let topic = bench.backlog()?;
    let (hosts, secret) = (bench.servers.file("hosts"), bench.servers.file("cluster-secret"));
    ports::write_hosts(&hosts, 2, &mut bench.rng)?;
    write_secret(&secret)?;
    bench.warm(topic)?;
    let open = Cluster { processes: 2, hosts: &hosts, secret: None };
    let closed = Cluster { secret: Some(&secret), ..open };
    let shapes = [
        ("one process of two workers", "2", None),
        ("two processes of one worker", "1", Some(open)),
        ("two processes of one worker, encrypted", "1", Some(closed)),
    ];
    let mut runs = [Vec::new(), Vec::new(), Vec::new()];
    for turn in 1..=bench.runs {
        for ((name, workers, cluster), runs) in shapes.iter().zip(&mut runs) {
            let label = format!("{name}, {turn} of {}", bench.runs);
            let options: &[&str] = &["-w", workers];
            let start = Start { topic, label: &label, options, cluster: *cluster };
            let run = bench.measure_and_keep(start)?;
            bench.forget(&run.job)?;
            runs.push(run);
        }
    }
    for (name, runs) in ["1x2", "2x1", "2x1-encrypted"].into_iter().zip(&runs) {
        let results = &mut bench.results;
        results.add(format!("{name}: throughput"), EVENTS_PER_S, &each(runs, Run::rate));
        let per_second = each(runs, Run::events_per_cpu_second);
        results.add(format!("{name}: events per CPU-second"), COUNT, &per_second);
    }
    let [one, two, encrypted] = &runs;
    let cpu = |runs: &[Run]| each(runs, |run| run.cpu_s);
    let rate = |runs: &[Run]| each(runs, Run::rate);
    bench.results.ratio("two processes: throughput / one", &rate(two), &rate(one));
    bench.results.ratio("... CPU time / one", &cpu(two), &cpu(one));
    bench.results.ratio("encrypted: throughput / not", &rate(encrypted), &rate(two));
    bench.results.ratio("... CPU time / not", &cpu(encrypted), &cpu(two));
    Ok(())
}

/// 32 random bytes that only this user can read.
fn write_secret(path: &Path) -> Result<()> {
    let mut bytes = [0; 32];
    let mut random = fs::File::open("/dev/urandom").during("/dev/urandom")?;
    std::io::Read::read_exact(&mut random, &mut bytes).during("/dev/urandom")?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut options = fs::OpenOptions::new();
    let mut file =
        options.write(true).create(true).mode(0o600).open(path).during(path.display())?;
    std::io::Write::write_all(&mut file, text.as_bytes()).during(path.display())
}
