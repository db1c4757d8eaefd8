//! The statistics as collections: differential dataflow sums, counts and ranks what the window
//! emits, and retracts what no longer holds.

use differential_dataflow::VecCollection;
use differential_dataflow::operators::{CountTotal, ThresholdTotal};
use sessionizer_core::time::Epoch;
use timely::dataflow::StreamVec;
use timely::dataflow::operators::Concatenate;
use timely::dataflow::operators::vec::Map;

use crate::dataflow::statistics::operator::{CountedSince, Windowed};
use crate::dataflow::statistics::publish::Entry;
use crate::dataflow::statistics::sums::{Host, Item, Summary, Sums, VisitorAddress};

/// Visitors with fewer sessions in the window are not among the busiest.
pub const BUSY: i64 = 5;

type Entries<'scope> = StreamVec<'scope, Epoch, (Entry, Epoch, i64)>;

/// Builds the statistics of what is in the window, as entries for the publisher.
pub fn render_collections(windowed: Windowed<'_>, visitors: bool) -> Entries<'_> {
    let Windowed { hours, minutes, visits, hosts, from } = windowed;
    let scope = hours.scope();
    let days = hours.clone().map(|((host, _hour), item)| (host, item));
    let mut all = vec![
        entries(summaries(hours, "Hours"), |((host, hour), summary)| {
            Entry::Hour(host, hour, summary)
        }),
        entries(summaries(days, "Days"), |(host, summary)| Entry::Day(host, summary)),
        entries(minutes.count_total_core(), |((host, minute), sums)| {
            Entry::Minute(host, minute, sums)
        }),
        entries(hosts, |(host, name)| Entry::Host(host, name)),
        entries(from, |(worker, from): (usize, CountedSince)| Entry::Since(worker, from)),
    ];
    if visitors {
        all.extend(by_visitor(visits));
    }
    scope.concatenate(all)
}

/// How many visitors each host has, and the busiest of them.
fn by_visitor(visits: VecCollection<'_, Epoch, (Host, VisitorAddress), i64>) -> [Entries<'_>; 2] {
    let visits = visits.arrange_by_self_named("Visits");
    let distinct: VecCollection<_, _, i64> = visits.clone().threshold_total(|_, _| 1);
    let distinct = distinct.map(|(host, _visitor)| host).count_total_core();
    let counted: VecCollection<_, _, i64> = visits.count_total_core();
    let busy = counted.filter(|(_, sessions)| *sessions >= BUSY);
    [
        entries(distinct, |(host, visitors)| Entry::Visitors(host, visitors)),
        entries(busy, |((host, visitor), sessions)| Entry::Busy(host, visitor, sessions)),
    ]
}

/// Summarises the sessions of each key.
fn summaries<'scope, K>(
    items: VecCollection<'scope, Epoch, (K, Item), Sums>,
    name: &str,
) -> VecCollection<'scope, Epoch, (K, Summary), i64>
where
    K: differential_dataflow::ExchangeData + std::hash::Hash,
{
    items.reduce_named(name, |_key, items, summary| {
        summary.push((Summary::of(items.iter().map(|(item, sums)| (**item, *sums))), 1));
    })
}

fn entries<'scope, D: 'static + Clone>(
    collection: VecCollection<'scope, Epoch, D, i64>,
    entry: impl Fn(D) -> Entry + 'static,
) -> Entries<'scope> {
    collection.inner.map(move |(data, epoch, diff)| (entry(data), epoch, diff))
}
