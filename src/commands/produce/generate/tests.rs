use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::*;

const GAP_MS: i64 = 300_000;

fn records(recipe: &Recipe) -> Vec<GeneratedRecord> {
    Generator::new(recipe.clone()).expect("a good recipe").collect()
}

/// Everything at once.
fn wild(number: u64) -> Recipe {
    Recipe {
        number: Some(number),
        disorder_ms: 5_000,
        bad: 0.02,
        late: 0.01,
        hot: 0.1,
        rate: 1_000.0,
        ..Recipe::default()
    }
}

/// The times of the good events of each (ip, host), in order.
fn by_key(records: &[GeneratedRecord]) -> HashMap<(String, String), Vec<i64>> {
    let mut keys: HashMap<_, Vec<i64>> = HashMap::new();
    for record in records.iter().filter(|record| record.bad.is_none()) {
        let value: Value = serde_json::from_slice(record.payload.as_ref().expect("a payload"))
            .expect("good events are JSON");
        let text = |name: &str| value[name].as_str().expect("text").to_string();
        let time = record.event_time_ms.expect("good events have a time");
        keys.entry((text("ip"), text("host"))).or_default().push(time);
    }
    keys.values_mut().for_each(|times| times.sort_unstable());
    keys
}

/// For every good record, how much older it is than the newest good one before it.
fn ages_ms(records: &[GeneratedRecord]) -> Vec<i64> {
    let mut newest = i64::MIN;
    let times = records.iter().filter(|record| record.bad.is_none());
    times
        .map(|record| {
            let time = record.event_time_ms.expect("good events have a time");
            newest = newest.max(time);
            newest - time
        })
        .collect()
}

fn assert_near(what: &str, got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= want * tolerance, "{what}: {got} is not about {want}");
}

#[test]
fn the_same_recipe_gives_the_same_records_and_another_seed_others() {
    assert_eq!(records(&wild(20_000)), records(&wild(20_000)));
    assert_ne!(records(&wild(100)), records(&Recipe { seed: 2, ..wild(100) }));
}

/// If this test fails, the stream of a seed has changed: benchmark results from before and
/// after can no longer be compared. Do not change the number unless that is intended.
#[test]
fn the_stream_of_a_recipe_never_changes() {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    for record in records(&wild(20_000)) {
        add(record.key.as_deref().unwrap_or("none").as_bytes());
        add(record.payload.as_deref().unwrap_or(b"tombstone"));
        add(&record.event_time_ms.unwrap_or(i64::MIN).to_le_bytes());
    }
    assert_eq!(hash, 0x1d03_0614_8eeb_3bbf);
}

#[test]
fn the_number_is_exact() {
    for number in [0, 1, 2, 999, 10_000] {
        assert_eq!(records(&wild(number)).len() as u64, number);
    }
    let endless = Generator::new(Recipe { number: None, ..wild(0) }).expect("a good recipe");
    assert_eq!(endless.take(30_000).count(), 30_000);
}

#[test]
fn no_event_is_more_than_the_disorder_behind_the_newest_before_it() {
    for disorder_ms in [0, 1, 250, 15_000] {
        let recipe = Recipe { disorder_ms, late: 0.0, ..wild(20_000) };
        let most = ages_ms(&records(&recipe)).into_iter().max().expect("events");
        assert!(most <= disorder_ms, "{most} ms behind with a disorder of {disorder_ms} ms");
        assert!(most >= disorder_ms * 9 / 10, "only {most} of {disorder_ms} ms");
    }
}

#[test]
fn stragglers_are_as_many_and_as_late_as_asked() {
    let recipe = Recipe { late: 0.05, late_by_ms: 600_000, ..wild(100_000) };
    let ages = ages_ms(&records(&recipe));
    let late: Vec<i64> = ages.into_iter().filter(|age| *age > recipe.disorder_ms).collect();
    assert_near("stragglers", late.len() as f64, 5_000.0, 0.1);
    assert!(late.iter().all(|age| *age <= 600_000));
    let mean = late.iter().sum::<i64>() as f64 / late.len() as f64;
    assert_near("mean age", mean, 302_500.0, 0.03);
}

#[test]
fn most_stragglers_have_a_session_to_land_in() {
    let recipe = Recipe { bad: 0.0, hot: 0.0, late_by_ms: 600_000, rate: 100.0, ..wild(100_000) };
    let records = records(&recipe);
    let late: Vec<GeneratedRecord> = records
        .iter()
        .zip(ages_ms(&records))
        .filter(|(_, age)| *age > recipe.disorder_ms)
        .map(|(record, _)| record.clone())
        .collect();
    let all = by_key(&records);
    let touches = |key, time: i64| {
        let times: &Vec<i64> = &all[key];
        times.iter().filter(|other| (*other - time).abs() <= GAP_MS).count() > 1
    };
    let stragglers = by_key(&late);
    let landed = stragglers.iter().flat_map(|(key, times)| times.iter().map(move |t| (key, *t)));
    let landed = landed.filter(|(key, time)| touches(key, *time)).count();
    assert!(landed * 10 > late.len() * 4, "only {landed} of {}", late.len());
}

#[test]
fn bad_records_are_as_many_as_asked_and_of_every_kind_alike() {
    let mut kinds: BTreeMap<BadKind, u64> = BTreeMap::new();
    for kind in records(&wild(60_000)).iter().filter_map(|record| record.bad) {
        *kinds.entry(kind).or_default() += 1;
    }
    assert_eq!(kinds.len(), BadKind::ALL.len());
    assert_near("bad records", kinds.values().sum::<u64>() as f64, 1_200.0, 0.1);
    let (least, most) = (kinds.values().min(), kinds.values().max());
    assert!(most.expect("kinds") - least.expect("kinds") <= 1, "{kinds:?}");
}

#[test]
fn bad_records_change_nobody_elses_events() {
    let keys = |bad| {
        let recipe = Recipe { bad, late: 0.0, ..wild(10_000) };
        records(&recipe).into_iter().map(|record| record.key).collect::<Vec<_>>()
    };
    assert_eq!(keys(0.0), keys(0.3));
}

#[test]
fn good_records_match_their_payload_and_some_are_written_oddly() {
    let mut plain = 0;
    let records = records(&wild(50_000));
    let good: Vec<&GeneratedRecord> =
        records.iter().filter(|record| record.bad.is_none()).collect();
    for record in &good {
        let payload = record.payload.as_ref().expect("a payload");
        let value: Value = serde_json::from_slice(payload).expect("JSON");
        assert_eq!(value["ip"].as_str(), record.key.as_deref());
        assert!(value["host"].as_str().is_some_and(|host| !host.is_empty()));
        assert_eq!(Some(odd::tests::millis(&value["event_time"])), record.event_time_ms);
        plain += u64::from(payload.starts_with(b"{\"url\":\"/") && payload.ends_with(b"Z\"}"));
    }
    assert!(plain * 1_000 < good.len() as u64 * 999 && plain * 1_000 > good.len() as u64 * 990);
}

#[test]
fn events_are_about_360_bytes() {
    let records = records(&Recipe { number: Some(20_000), ..Recipe::default() });
    let bytes: usize =
        records.iter().filter_map(|record| Some(record.payload.as_ref()?.len())).sum();
    assert_near("bytes", bytes as f64 / 20_000.0, 360.0, 0.02);
}

#[test]
fn time_goes_at_the_rate_from_the_first_second_on() {
    for rate in [0.05, 3.0, 100.0, 5_000.0, 200_000.0] {
        let number = if rate < 1.0 { 3_000 } else { 40_000 };
        for part in [number, number / 4] {
            let recipe = Recipe { rate, number: Some(part), ..Recipe::default() };
            let last = records(&recipe).pop().and_then(|record| record.event_time_ms);
            let seconds = (last.expect("a time") - recipe.start_ms) as f64 / 1_000.0;
            assert_near(&format!("{rate}/s"), part as f64 / seconds, rate, 0.08);
        }
    }
}

#[test]
fn the_hot_visitor_has_the_ratio_asked_and_is_nobody_else() {
    let recipe = Recipe { hot: 0.3, ..wild(50_000) };
    let records = records(&recipe);
    let hot = records.iter().filter(|record| record.key == Some(web::ip(0))).count();
    // A straggler replaces an event, even one of the hot visitor.
    assert_near("hot events", hot as f64, 50_000.0 * 0.3 * 0.99, 0.03);
    let cold = self::records(&Recipe { hot: 0.0, ..recipe });
    assert!(cold.iter().filter(|record| record.key == Some(web::ip(0))).count() < 100);
}

#[test]
fn visits_have_the_mean_length_and_are_mostly_apart() {
    let recipe = Recipe { number: Some(100_000), rate: 30.0, ..Recipe::default() };
    let keys = by_key(&records(&recipe));
    let sessions: usize = keys
        .values()
        .map(|times| 1 + times.windows(2).filter(|pair| pair[1] - pair[0] > GAP_MS).count())
        .sum();
    assert_near("events a session", 100_000.0 / sessions as f64, 8.0, 0.1);
    assert!(keys.len() > 8_000, "only {} keys", keys.len());
}

#[test]
fn pauses_on_both_sides_of_five_minutes_and_on_it_occur() {
    let keys = by_key(&records(&Recipe { rate: 100.0, ..wild(100_000) }));
    let mut pauses: HashMap<i64, u64> = HashMap::new();
    for pair in keys.values().flat_map(|times| times.windows(2)) {
        *pauses.entry(pair[1] - pair[0]).or_default() += 1;
    }
    for pause in [299_999, 300_000, 300_001] {
        let count = pauses.get(&pause).copied().unwrap_or_default();
        assert!((10..400).contains(&count), "{pause} ms: {count} times");
    }
}

#[test]
fn memory_is_bounded_by_the_visits_that_run_not_by_events_or_visitors() {
    let recipe = Recipe { number: None, visitors: 10_000_000, ..wild(0) };
    let mut generator = Generator::new(recipe).expect("a good recipe");
    // 900 events a second with a pause of 20.5 s, and 5,000 views in 5 s, half of them held
    // back.
    for _ in 0..20 {
        generator.by_ref().take(5_000).for_each(drop);
        let (running, waiting) =
            (generator.arrivals.visits().running(), generator.arrivals.waiting());
        assert!(running <= 18_600, "{running} visits");
        assert!(waiting <= 3_000, "{waiting} views");
    }
    let few = Recipe { number: Some(10), rate: 1e6, ..Recipe::default() };
    let mut few = Generator::new(few).expect("a good recipe");
    few.by_ref().for_each(drop);
    assert!(few.arrivals.visits().running() <= 20);
}

#[test]
fn recipes_at_the_edge_of_their_ranges_work() {
    let base = || wild(5_000);
    for recipe in [
        Recipe { bad: 1.0, late: 0.0, ..base() },
        Recipe { bad: 0.0, late: 1.0, ..base() },
        Recipe { hot: 1.0, ..base() },
        Recipe { visitors: 1, ..base() },
        Recipe { visitors: 1, hot: 0.0, ..base() },
        Recipe { visitors: u64::from(u32::MAX), ..base() },
        Recipe { events_per_visit: 1, ..base() },
        Recipe { events_per_visit: 20_000, ..base() },
        Recipe { pause_ms: 0, ..base() },
        Recipe { pause_ms: 3_162_240_000_000, rate: 0.005, ..base() },
        Recipe { disorder_ms: 1_000_000, ..base() },
        Recipe { rate: 0.001, ..base() },
        Recipe { rate: 0.001, hot: 1.0, late_by_ms: 3_162_240_000_000, ..base() },
        Recipe { rate: 1e6, ..base() },
        Recipe { start_ms: 0, ..base() },
        Recipe { start_ms: 95_617_584_000_000, rate: 0.001, ..base() },
        Recipe { seed: u64::MAX, ..base() },
    ] {
        let records = records(&recipe);
        assert_eq!(records.len(), 5_000, "{recipe:?}");
        let bad = records.iter().filter(|record| record.bad.is_some()).count();
        assert_near("bad", bad as f64, recipe.bad * 5_000.0, 0.5);
    }
    assert!(Generator::new(Recipe { rate: -1.0, ..base() }).is_err());
}
