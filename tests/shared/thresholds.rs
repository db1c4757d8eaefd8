//! Thresholds with which a small random world has anomalies of all kinds.

use sessionizer_core::anomaly::{Outlier, Thresholds};

pub fn sensitive() -> Thresholds {
    let rank = |min, rank_factor, rank| Outlier {
        min,
        q95_factor: 0.0,
        rank_factor,
        rank,
        cap_factor: None,
    };
    Thresholds {
        learn: 20,
        burst: Outlier { q95_factor: 1.0, cap_factor: Some(10.0), ..rank(4, 2.0, 3) },
        burst_pace_factor: 1.0,
        burst_pace_rank: 3,
        marathon: rank(200_000, 1.0, 5),
        repeat: Outlier { q95_factor: 1.0, ..rank(3, 0.0, 1) },
        network: Outlier { q95_factor: 1.0, ..rank(6, 0.0, 1) },
        network_addresses: 3,
        repeat_z: 1.0,
        network_growth: 0.5,
        network_z: 0.5,
        surge_z: 1.5,
        surge_min: 3,
        fall_min: 3,
        singles_z: 1.0,
        singles_points: 10,
        singles_min: 4,
        ..Thresholds::default()
    }
}
