//! The batch answer in twenty lines: sort, then cut wherever events are more than the gap apart.

use std::collections::BTreeMap;

pub const GAP_MS: i64 = 100;

/// `(first, last, count)` by key.
pub type Sessions = BTreeMap<String, Vec<(i64, i64, u64)>>;

pub fn sessions<'a>(events: impl IntoIterator<Item = (&'a str, i64)>) -> Sessions {
    let mut times: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for (key, time) in events {
        times.entry(key.to_owned()).or_default().push(time);
    }
    let cut = |mut times: Vec<i64>| {
        times.sort_unstable();
        let runs = times.chunk_by(|a, b| b - a <= GAP_MS);
        runs.map(|run| (run[0], run[run.len() - 1], run.len() as u64)).collect()
    };
    times.into_iter().map(|(key, times)| (key, cut(times))).collect()
}
