//! Late events merge with the rows that they touch, and read no others.

use crate::oracle::{Event, GAP_MS, event, sessions};
use crate::postgres::{MINUTE, TEN};
use crate::world::{World, eventually};

/// 0001-01-01T00:00:00Z, the earliest time that an event may have.
const YEAR_1: i64 = -62_135_596_800_000;

/// A name, what was there, and the stragglers; in milliseconds from [`TEN`].
type Late = (&'static str, &'static [i64], &'static [i64]);

const LATE: [Late; 17] = [
    ("before, gap - 1", &[0, MINUTE], &[-GAP_MS + 1]),
    ("before, gap", &[0, MINUTE], &[-GAP_MS]),
    ("before, gap + 1", &[0, MINUTE], &[-GAP_MS - 1]),
    ("after, gap - 1", &[0, MINUTE], &[MINUTE + GAP_MS - 1]),
    ("after, gap", &[0, MINUTE], &[MINUTE + GAP_MS]),
    ("after, gap + 1", &[0, MINUTE], &[MINUTE + GAP_MS + 1]),
    ("within", &[0, MINUTE], &[30_000, 0, MINUTE]),
    ("bridge two rows", &[0, 2 * GAP_MS], &[GAP_MS]),
    ("almost bridge two rows", &[0, 2 * GAP_MS + 1], &[GAP_MS]),
    ("bridge four rows", &[0, 400_000, 800_000, 1_200_000], &[200_000, 600_000, 1_000_000]),
    ("two sessions touch one row", &[0, MINUTE], &[-GAP_MS, MINUTE + GAP_MS]),
    ("reach a row only together", &[0], &[-3 * GAP_MS, -2 * GAP_MS, -GAP_MS]),
    ("older than everything", &[0], &[-864_000_000_000, -TEN - 1, YEAR_1 - TEN]),
    ("touch nothing", &[0], &[10 * GAP_MS, 12 * GAP_MS]),
    ("nobody was here before", &[], &[0, GAP_MS, 2 * GAP_MS + 1]),
    ("an end that grows past the next row", &[0, GAP_MS + 1], &[1, GAP_MS]),
    ("the newest of all", &[100 * GAP_MS], &[99 * GAP_MS, 101 * GAP_MS]),
];

pub fn late_events() -> (Vec<Event>, Vec<Event>) {
    let all = |which: fn(&Late) -> &'static [i64]| {
        let events = LATE
            .iter()
            .flat_map(|case| which(case).iter().map(|offset| event(case.0, "h", TEN + offset)));
        events.collect::<Vec<_>>()
    };
    (all(|case| case.1), all(|case| case.2))
}

fn with<'a>(one: &'a [Event], other: &'a [Event]) -> impl Iterator<Item = &'a Event> {
    one.iter().chain(other)
}

#[test]
pub fn late_events_merge_with_the_rows_they_touch() {
    let world = World::new("late");
    world.create_topic(2);
    let (before, late) = late_events();
    world.send_events(0, &before);
    world.run_to_end(&[]);
    assert_eq!(world.rows(), sessions(&before));
    world.send_events(1, &late);
    let log = world.run_to_end(&["-w", "2"]);
    assert_eq!(world.rows(), sessions(with(&before, &late)));
    assert!(log.contains(" of them for late sessions"), "{log}");
    assert_eq!(world.imbalance(), "0");
}

#[test]
pub fn late_events_may_come_one_by_one_while_the_job_runs() {
    let world = World::new("late-live");
    world.create_topic(1);
    let (before, late) = late_events();
    // Moves the watermark past everything, and stays open itself.
    let mover = [event("mover", "h", TEN + 200 * GAP_MS)];
    world.send_events(0, with(&before, &mover));
    let args = ["-w", "2", "--epoch", "100ms", "--out-of-orderness", "0s", "--idle-timeout", "1h"];
    let job = world.start(&args);
    let there = |events: &[&Event]| {
        let want = sessions(events.iter().copied());
        eventually("the rows are those of the batch answer", || {
            let made = world.value("select to_regclass('sessionized_events') is not null");
            made == "t" && world.rows() == want
        });
    };
    let mut sent: Vec<&Event> = before.iter().collect();
    there(&sent);
    for wave in late.chunks(late.len().div_ceil(6)) {
        world.send_events(0, wave);
        sent.extend(wave);
        there(&sent);
    }
    job.stop();
    world.run_to_end(&["-w", "3"]);
    sent.extend(&mover);
    assert_eq!(world.rows(), sessions(sent));
    assert_eq!(world.imbalance(), "0");
}

/// A visitor may have any number of sessions: the cost of a late event does not grow with them.
#[test]
fn a_late_event_reads_the_rows_that_it_may_touch_and_no_others() {
    const SESSIONS: i64 = 3_000;
    const LATE: i64 = 40;
    let world = World::new("long-history");
    world.create_topic(1);
    let at = |session: i64| TEN + session * 2 * GAP_MS;
    let mut sent: Vec<Event> =
        (0..SESSIONS).map(|session| event("regular", "h", at(session))).collect();
    let mover = event("mover", "h", at(2 * SESSIONS));
    world.send_events(0, with(&sent, std::slice::from_ref(&mover)));
    let args = ["--epoch", "50ms", "--out-of-orderness", "0s", "--idle-timeout", "1h"];
    let job = world.start(&args);
    eventually("the history is there", || {
        let made = world.value("select to_regclass('sessionized_events') is not null");
        made == "t" && world.rows().len() as i64 == SESSIONS
    });
    for number in 1..=LATE {
        let late = event("regular", "h", at(SESSIONS - number) + number);
        world.send_events(0, [&late]);
        sent.push(late);
        std::thread::sleep(std::time::Duration::from_millis(60));
    }
    let want = sessions(&sent);
    eventually("the rows are those of the batch answer", || world.rows() == want);
    job.stop();
    // Only rows read through the index count, which are the job's; other readers scan the table.
    let read = "select idx_tup_fetch from pg_stat_user_tables where relname = 'sessionized_events'";
    let counted = || world.value(read).parse::<i64>().unwrap_or(0);
    eventually("the server has counted", || counted() >= LATE);
    assert!(counted() < 30 * LATE, "{} rows for {LATE} late events", counted());
}
