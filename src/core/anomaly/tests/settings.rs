//! The names of the settings, what each of them changes, and what they refuse.

use super::*;

/// Every setting, with thresholds in which it is 77, whatever its unit is.
fn settings() -> [(&'static str, Thresholds); SETTINGS.len()] {
    let usual = Thresholds::default;
    let (burst, marathon) = (usual().burst, usual().marathon);
    let (repeat, network) = (usual().repeat, usual().network);
    let bursts = |burst| Thresholds { burst, ..usual() };
    let marathons = |marathon| Thresholds { marathon, ..usual() };
    let repeats = |repeat| Thresholds { repeat, ..usual() };
    let networks = |network| Thresholds { network, ..usual() };
    [
        ("learn", Thresholds { learn: 77, ..usual() }),
        ("burst.min", bursts(Outlier { min: 77, ..burst })),
        ("burst.q95_factor", bursts(Outlier { q95_factor: 77.0, ..burst })),
        ("burst.rank_factor", bursts(Outlier { rank_factor: 77.0, ..burst })),
        ("burst.rank", bursts(Outlier { rank: 77, ..burst })),
        ("burst.cap_factor", bursts(Outlier { cap_factor: Some(77.0), ..burst })),
        ("burst.pace_min", Thresholds { burst_pace_min: 77, ..usual() }),
        ("burst.pace_factor", Thresholds { burst_pace_factor: 77.0, ..usual() }),
        ("burst.pace_rank", Thresholds { burst_pace_rank: 77, ..usual() }),
        ("marathon.min", marathons(Outlier { min: 77_000, ..marathon })),
        ("marathon.rank_factor", marathons(Outlier { rank_factor: 77.0, ..marathon })),
        ("marathon.rank", marathons(Outlier { rank: 77, ..marathon })),
        ("repeat.min", repeats(Outlier { min: 77, ..repeat })),
        ("repeat.q95_factor", repeats(Outlier { q95_factor: 77.0, ..repeat })),
        ("repeat.rank_factor", repeats(Outlier { rank_factor: 77.0, ..repeat })),
        ("repeat.rank", repeats(Outlier { rank: 77, ..repeat })),
        ("repeat.cap_factor", repeats(Outlier { cap_factor: Some(77.0), ..repeat })),
        ("repeat.growth", Thresholds { repeat_growth: 77.0, ..usual() }),
        ("repeat.z", Thresholds { repeat_z: 77.0, ..usual() }),
        ("network.min", networks(Outlier { min: 77, ..network })),
        ("network.q95_factor", networks(Outlier { q95_factor: 77.0, ..network })),
        ("network.rank_factor", networks(Outlier { rank_factor: 77.0, ..network })),
        ("network.rank", networks(Outlier { rank: 77, ..network })),
        ("network.cap_factor", networks(Outlier { cap_factor: Some(77.0), ..network })),
        ("network.addresses", Thresholds { network_addresses: 77, ..usual() }),
        ("network.growth", Thresholds { network_growth: 77.0, ..usual() }),
        ("network.z", Thresholds { network_z: 77.0, ..usual() }),
        ("surge.z", Thresholds { surge_z: 77.0, ..usual() }),
        ("surge.factor", Thresholds { surge_factor: 77.0, ..usual() }),
        ("surge.min", Thresholds { surge_min: 77, ..usual() }),
        ("fall.min", Thresholds { fall_min: 77, ..usual() }),
        ("singles.z", Thresholds { singles_z: 77.0, ..usual() }),
        ("singles.points", Thresholds { singles_points: 77, ..usual() }),
        ("singles.min", Thresholds { singles_min: 77, ..usual() }),
        ("clock.factor", Thresholds { clock_factor: 77.0, ..usual() }),
        ("clock.min", Thresholds { clock_min_ms: 77_000, ..usual() }),
        ("clock.epochs", Thresholds { clock_epochs: 77, ..usual() }),
        ("clock.partitions", Thresholds { clock_partitions: 77, ..usual() }),
    ]
}

#[test]
fn every_setting_has_a_name_and_changes_what_it_says() {
    for ((name, want), (listed, _)) in settings().into_iter().zip(SETTINGS) {
        let mut thresholds = Thresholds::default();
        assert_eq!((name, thresholds.set(name, 77.0)), (listed, Ok(())));
        assert_eq!(thresholds, want, "{name}");
    }
}

#[test]
fn a_setting_that_does_not_exist_or_is_out_of_its_range_is_refused() {
    let mut thresholds = Thresholds::default();
    let why = thresholds.set("brust.min", 1.0).expect_err("no setting");
    assert!(why.starts_with("\"brust.min\" is none of learn, burst.min, "), "{why}");
    for (name, value) in [
        ("burst.rank", 0.0),
        ("burst.pace_rank", 0.0),
        ("surge.factor", 0.5),
        ("surge.z", -0.1),
        ("learn", 1.1e12),
        ("learn", f64::NAN),
    ] {
        assert!(thresholds.set(name, value).is_err(), "{name} {value}");
    }
    assert_eq!(thresholds, Thresholds::default());
    thresholds.set("surge.factor", 1.0).expect("the least");
    // Fewer than one are none to judge by, and of two partitions nobody knows which is off.
    for name in ["learn", "surge.min", "fall.min", "singles.min", "clock.epochs"] {
        thresholds.set(name, 0.0).expect("one is meant");
    }
    thresholds.set("clock.partitions", 2.0).expect("three are meant");
    let Thresholds { learn, surge_min, fall_min, singles_min, clock_epochs, .. } = thresholds;
    assert_eq!([learn, surge_min, fall_min, singles_min, clock_epochs], [1; 5]);
    assert_eq!(thresholds.clock_partitions, 3);
}
