use std::collections::BTreeMap;

use sessionizer_core::anomaly::Kind;

use super::*;

const GAP_MS: i64 = 300_000;

fn request(scenarios: &[Scenario]) -> Request {
    Request {
        start_ms: 1_780_272_000_000,
        days: 2,
        hosts: ["a.example", "b.example"].map(String::from).to_vec(),
        visits: 3_000,
        tail: Tail::Heavy,
        scenarios: scenarios.to_vec(),
        incidents: 2,
        seed: 7,
        topic: "t".to_owned(),
        partitions: 4,
    }
}

fn all() -> Vec<Scenario> {
    clap::ValueEnum::value_variants().to_vec()
}

#[test]
fn the_same_request_gives_the_same_plan_and_another_seed_another() {
    let plan = Plan::new(&request(&all()));
    assert_eq!(plan, Plan::new(&request(&all())));
    assert_ne!(plan, Plan::new(&Request { seed: 8, ..request(&all()) }));
}

/// The evaluation judges the sessions that the program would make of the events.
#[test]
fn the_sessions_of_a_plan_are_those_of_its_events() {
    for tail in Tail::ALL {
        let plan = Plan::new(&Request { tail, ..request(&all()) });
        let mut times: BTreeMap<(u16, VisitorAddress), Vec<i64>> = BTreeMap::new();
        let mut last_ms = i64::MIN;
        for event in events(&plan) {
            assert!(event.at_ms >= last_ms, "in the order of time");
            last_ms = event.at_ms;
            times.entry((event.visit.host, event.visit.visitor)).or_default().push(last_ms);
        }
        let mut want = Vec::new();
        for ((host, visitor), times) in times {
            for run in times.chunk_by(|a, b| b - a <= GAP_MS) {
                want.push((host, visitor, run[0], run[run.len() - 1], run.len() as u64));
            }
        }
        let sessions = plan.sessions(Gap::from_millis(GAP_MS).expect("a gap"));
        let got: Vec<_> = sessions
            .iter()
            .map(|s| (s.host, s.visitor, s.span.first.millis(), s.span.last.millis(), s.span.count))
            .collect();
        assert_eq!(got.len(), want.len());
        assert_eq!(got, want);
    }
}

#[test]
fn a_day_has_about_its_number_of_visits_and_a_curve() {
    let plan = Plan::new(&Request { visits: 20_000, ..request(&[]) });
    assert!(plan.incidents.is_empty());
    let visits = plan.visits.len() as f64;
    assert!((visits / 80_000.0 - 1.0).abs() < 0.05, "{visits}");
    let hour = |hour: i64| {
        let of_day = |visit: &&Visit| visit.first_ms % DAY_MS / HOUR_MS == hour;
        plan.visits.iter().filter(of_day).count()
    };
    assert!(hour(19) > 4 * hour(3), "{} and {}", hour(19), hour(3));
}

#[test]
fn tails_are_as_long_as_specified() {
    let share_above = |tail: Tail, events: u64| {
        let plan = Plan::new(&Request { tail, visits: 50_000, ..request(&[]) });
        let above = plan.visits.iter().filter(|visit| visit.events > events).count();
        above as f64 / plan.visits.len() as f64
    };
    // 0.55 × (101 / 2) to the power of minus the exponent, and pages left open.
    let heavy = share_above(Tail::Heavy, 100);
    assert!((0.0009..0.0016).contains(&heavy), "{heavy}");
    let light = share_above(Tail::Light, 100);
    assert!((0.000_003..0.000_08).contains(&light), "{light}");
}

#[test]
fn every_scenario_leaves_its_mark_and_records_it() {
    for scenario in all().into_iter().filter(|scenario| *scenario != Scenario::Skew) {
        let request = request(&[scenario]);
        let plan = Plan::new(&request);
        assert_eq!(plan.incidents.len(), 4, "{scenario:?}");
        for incident in &plan.incidents {
            let second_day = request.start_ms + DAY_MS;
            assert!(incident.from_ms >= second_day, "{incident:?}");
            assert!(incident.to_ms <= second_day + DAY_MS, "{incident:?}");
            assert!(request.hosts.contains(&incident.host));
            let host = u16::from(incident.host == "b.example");
            let in_it = |visit: &&Visit| {
                visit.host == host && (incident.from_ms..=incident.to_ms).contains(&visit.first_ms)
            };
            let mine = plan.visits.iter().filter(in_it);
            let of_subject = |visit: &&Visit| {
                let address = visit.visitor.address();
                let network = sessionizer_core::anomaly::network(&address);
                incident.subject == address || network.as_ref() == Some(&incident.subject)
            };
            let found: Vec<&Visit> = mine.clone().filter(of_subject).collect();
            match scenario {
                Scenario::Flood | Scenario::Marathon => {
                    assert_eq!((found.len(), found[0].events), (1, incident.size));
                }
                Scenario::Surge | Scenario::Singles => assert!(incident.size > 100),
                Scenario::Outage => assert!(mine.count() < 60, "{incident:?}"),
                _ => assert_eq!(found.len() as u64, incident.size, "{incident:?}"),
            }
        }
    }
}

#[test]
fn a_skewed_partition_is_ahead_for_a_while_and_no_other_is() {
    let plan = Plan::new(&request(&[Scenario::Skew]));
    let second_day = request(&[]).start_ms + DAY_MS;
    assert_eq!(plan.incidents.len(), 2, "it happens to the topic, not to each host");
    for incident in &plan.incidents {
        assert!(incident.from_ms >= second_day && incident.to_ms <= second_day + DAY_MS);
        assert_eq!((incident.host.as_str(), &incident.kinds[..]), ("", &[Kind::Clock][..]));
    }
    let mut ahead = 0;
    for event in events(&plan) {
        let subject = format!("t/{}", plan.partition(event.visit.visitor));
        let of_it = |one: &&Incident| {
            one.subject == subject && (one.from_ms..one.to_ms).contains(&event.at_ms)
        };
        let minutes = plan.incidents.iter().filter(of_it).map(|one| one.size).max().unwrap_or(0);
        assert_eq!(plan.event_time_ms(&event) - event.at_ms, minutes as i64 * MINUTE_MS);
        ahead += u64::from(minutes > 0);
    }
    assert!(ahead > 100, "{ahead}");
    assert!(plan.is_skewed() && !Plan::new(&request(&[])).is_skewed());
}

#[test]
fn the_truth_is_a_line_of_json() {
    let plan = Plan::new(&request(&[Scenario::Flood]));
    let text = serde_json::to_string(&plan.incidents[0]).expect("plain data");
    let start = r#"{"scenario":"flood","kinds":["burst"],"host":""#;
    assert!(text.starts_with(start), "{text}");
    assert_eq!(serde_json::from_str::<Incident>(&text).expect("JSON"), plan.incidents[0]);
}
