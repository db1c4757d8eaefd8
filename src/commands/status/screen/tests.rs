use super::*;
use serde_json::json;

fn document() -> Value {
    json!({
        "at": 1_790_251_385_000_u64, "version": "0.1.0", "revision": "abc",
        "job": {"name": "web", "table": "public.s", "processes": 1, "process": 0,
                "scope": "job", "started_at": 1_790_251_325_000_u64},
        "sentence": {"text": "waiting for Postgres (12 s, retrying: refused)", "cause": "refused"},
        "health": {"ready": {"ok": false, "text": "waiting"}},
        "tiles": {"events_per_s": 10_012.4, "lag_s": 0.2, "lag_records": 34, "rows": 12,
                  "sessions_per_s": null, "durable_delay_s": 0.41, "open_sessions": 123_456,
                  "watermark": 1_790_251_370_000_u64, "dead_letters": 3, "records": 5,
                  "late_sessions": 0, "memory_used": 1_048_576},
        "partitions": {"total": 14, "rows": [
            {"id": "web/3", "offset": 123_456, "lag_records": 34, "lag_s": 0.2, "rate": 2_503.0,
             "promise": 1_790_251_370_000_u64, "state": "held_up", "holds_back": true},
            {"id": "web/\u{1b}[2J", "offset": 0, "lag_records": null, "lag_s": null,
             "rate": null, "promise": null, "state": "idle", "holds_back": false}]},
        "writers": {"rows": [
            {"writer": 0, "commits": 812, "rows": 1_203, "last_commit_ms": 12.1,
             "waiting_epochs": 2, "failing_since": 1_790_251_373_000_u64, "error": "refused"}]},
        "balance": {"as_of": 1_790_251_380_000_u64, "records": 10, "closed": 5, "open": 4,
                    "dead": 1, "lost": 0, "difference": 0},
        "proof": {"verified_through": 1_790_250_605_000_u64, "audited_at": 1_790_250_665_000_u64,
                  "differences": 0, "unverifiable": 0, "rows": 1_203, "kind": "incremental"},
        "dead_letters": {"rows": [{"reason": "bad_json", "count": 3}]},
        "statistics": {"state": "counting", "hosts": 1, "hosts_limit": 10_000},
        "statistics_all": {"rows": []},
        "statistics_hosts": {"rows": [
            {"host": "www.example", "hour": {"sessions": 1_020}, "visitors": null,
             "day": {"sessions": 20_412, "events": 81_648, "singles": 10_206,
                     "duration_ms": 4_082_400_000_u64}}], "other": {"hosts": 0}},
        "statistics_visitors": {"rows": null},
        "anomalies": {"live": 1, "rows": [
            {"kind": "burst", "host": "www.example", "subject": "192.0.2.1",
             "at": 1_790_251_200_000_u64, "reason": "412 events in 31 s"}]},
    })
}

#[test]
fn one_screen_has_it_all() {
    let want = "\
waiting for Postgres (12 s, retrying: refused)
job web into public.s; as of 12:03:05 UTC, running for 1 min; 0.1.0 (abc)
not ready: waiting

events/s 10,012           lag 0.2 s                 records to read 34
sessions/s –              durable in 0.4 s          open sessions 123,456
rows 12                   watermark 15 s ago        dead letters 3
records 5                 late merged 0             in flight 1 MiB

partition   offset  to read    lag     /s  promise  state
web/3      123,456       34  0.2 s  2,503     15 s  held up, holds back
web/\u{fffd}[2J         0        –      –      –        –  idle
and 12 more partitions

writer  commits  sessions   took  waiting  state
0           812     1,203  12 ms        2  failing for 12 s: refused

sessions by host  last hour  last day  events each      length  one event
www.example           1,020    20,412          4.0  3 min 20 s       50 %

anomalies: 1
  2026-09-24 12:00 burst of 192.0.2.1 at www.example
    412 events in 31 s

balance of 12:03: it adds up: 10 records = 5 closed + 4 open + 1 dead
audited 12 min ago, up to 13 min ago: equal; 1,203 rows
dead letters: 3 bad_json
";
    assert_eq!(screen(&document(), 80, None), want);
}

#[test]
fn a_screen_that_is_too_low_shows_less_of_each_table() {
    let mut many = document();
    let partition = many["partitions"]["rows"][0].clone();
    many["partitions"]["rows"] = vec![partition; 14].into();
    let lines = |height| screen(&many, 80, height).lines().count();
    assert_eq!(lines(None), 37);
    assert!(lines(Some(30)) <= 30 && lines(Some(30)) > 24);
    assert!(lines(Some(23)) <= 23, "{}", screen(&many, 80, Some(23)));
    let low = screen(&many, 80, Some(1));
    assert!(low.contains("\nand 13 more partitions\n"), "{low}");
    assert!(low.contains("audited 12 min ago"), "nothing is left out entirely: {low}");
}

#[test]
fn a_document_of_which_nothing_is_known_is_shown_and_no_line_is_too_wide() {
    assert!(screen(&json!({}), 80, None).starts_with("–\n"));
    for line in screen(&document(), 40, None).lines() {
        assert!(line.chars().count() <= 40, "{line}");
    }
    let mut off = document();
    off["balance"]["difference"] = 7.into();
    assert!(screen(&off, 100, None).contains("IT IS OFF BY 7"));
    off["proof"]["differences"] = 2.into();
    off["proof"]["unverifiable"] = 7.into();
    let said = "\naudited 12 min ago, up to 13 min ago: 2 DIFFERENCES, `sessionizer audit` shows them; \
                1,203 rows, 7\n  cannot be verified\n";
    assert!(screen(&off, 100, None).contains(said), "{}", screen(&off, 100, None));
    off["proof"]["differences"] = 1.into();
    assert!(screen(&off, 100, None).contains("1 DIFFERENCE, `sessionizer audit` shows it;"));
}

#[test]
fn what_is_cut_ends_in_an_ellipsis_and_without_a_terminal_nothing_is() {
    let mut long = document();
    long["job"]["name"] = "j".repeat(100).into();
    long["balance"]["records"] = 123_456_789_012_u64.into();
    let narrow = screen(&long, 80, None);
    assert!(narrow.contains(&format!("\njob {}…\n", "j".repeat(75))), "{narrow}");
    // A sum goes on in the next line.
    assert!(
        narrow.contains("123,456,789,012 records = 5 closed + 4 open + 1\n  dead\n"),
        "{narrow}"
    );
    let piped = screen(&long, usize::MAX, None);
    assert!(!piped.contains('…') && piped.contains("; 0.1.0 (abc)\n"), "{piped}");
    assert!(piped.contains("5 closed + 4 open + 1 dead\n"), "{piped}");
}

#[test]
fn however_long_figures_are_a_blank_is_between_them_and_no_line_is_too_wide() {
    let mut long = document();
    long["tiles"]["watermark"] = (1_790_251_385_000_i64 - 3_973_305_600_000).into();
    let shown = screen(&long, 80, None);
    let line = "\nrows 12                   watermark 45,987 d 8 h ago  dead letters 3\n";
    assert!(shown.contains(line), "{shown}");
    for tile in
        ["events_per_s", "lag_records", "sessions_per_s", "open_sessions", "rows", "records"]
    {
        long["tiles"][tile] = 123_456_789_012_345_678_u64.into();
    }
    let names = ["events/s", "records to read", "watermark", "dead letters", "in flight"];
    for width in (24..120).chain([usize::MAX]) {
        let shown = screen(&long, width, None);
        assert!(shown.lines().all(|line| line.chars().count() <= width), "{width}:\n{shown}");
        for name in names {
            let (before, _) = shown.split_once(&format!("{name} ")).unwrap_or_else(|| {
                panic!("{width}: {name} is missing in\n{shown}");
            });
            assert!(before.ends_with(['\n', ' ']), "{width}: {name}:\n{shown}");
        }
        // What fits into a line of its own is shown whole.
        if width >= "records to read 123,456,789,012,345,680".len() {
            assert!(shown.contains("watermark 45,987 d 8 h ago"), "{width}:\n{shown}");
            assert!(shown.contains("sessions/s 123,456,789,012,345,68"), "{width}:\n{shown}");
        }
    }
}

#[test]
fn no_single_row_is_replaced_by_a_line_that_says_so() {
    let mut many = document();
    let partition = many["partitions"]["rows"][0].clone();
    let letter = many["dead_letters"]["rows"][0].clone();
    for (all, said) in [(12, None), (13, None), (14, Some("\nand 2 more partitions\n"))] {
        many["partitions"] = json!({"total": all, "rows": vec![partition.clone(); all]});
        let shown = screen(&many, 80, None);
        assert_eq!(shown.contains("\nand "), said.is_some(), "{all}: {shown}");
        assert!(said.is_none_or(|said| shown.contains(said)), "{all}: {shown}");
    }
    for (all, ends) in [(5, "3 bad_json, 3 bad_json\n"), (7, "3 bad_json, and 3 more\n")] {
        many["dead_letters"]["rows"] = vec![letter.clone(); all].into();
        assert!(screen(&many, 80, None).ends_with(ends), "{}", screen(&many, 80, None));
    }
    // Whatever the height is, at most as much is empty as one more row of each table needs.
    for height in 22..40 {
        let lines = screen(&many, 80, Some(height)).lines().count();
        assert!(lines <= height && lines + 4 > height.min(37), "{lines} of {height}");
    }
}

#[test]
fn what_is_small_is_not_shown_as_nothing() {
    let rates = [0.0, 0.01, 0.44, 1.0, 9.94, 9.96, 1_234.5].map(|n| rate(&json!(n)));
    assert_eq!(rates, ["0", "< 0.1", "0.4", "1", "9.9", "10", "1,235"]);
    let times = [0.0, 0.01, 0.05, 12.0].map(|n| seconds(&json!(n)));
    assert_eq!(times, ["0 s", "< 0.1 s", "0.1 s", "12 s"]);
    assert_eq!(rate(&Value::Null), "–");
    let mut empty = document();
    empty["tiles"]["watermark"] = Value::Null;
    empty["writers"]["rows"][0]["failing_since"] = Value::Null;
    let shown = screen(&empty, 80, None);
    assert!(shown.contains(" watermark –  ") && shown.contains("  ready\n"), "{shown}");
}
