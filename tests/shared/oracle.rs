//! The batch answer in twenty lines, written without a line of the program: sort, then cut wherever
//! two events are more than the gap apart.

use std::collections::BTreeMap;

/// `(first, last, count)` of each session, by key.
pub type Sessions<K> = BTreeMap<K, Vec<(i64, i64, u64)>>;

/// The sessions of `(key, time)`, in any order.
pub fn sessions<K: Ord>(events: impl IntoIterator<Item = (K, i64)>, gap: i64) -> Sessions<K> {
    let mut times: BTreeMap<K, Vec<i64>> = BTreeMap::new();
    for (key, time) in events {
        times.entry(key).or_default().push(time);
    }
    let cut = |mut times: Vec<i64>| {
        times.sort_unstable();
        let runs = times.chunk_by(|a, b| b - a <= gap);
        runs.map(|run| (run[0], run[run.len() - 1], run.len() as u64)).collect()
    };
    times.into_iter().map(|(key, times)| (key, cut(times))).collect()
}
