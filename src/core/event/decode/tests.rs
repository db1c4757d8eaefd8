use super::*;
use crate::shared::mutate::fuzz;
use crate::shared::rng::Rng;

const TIME: i64 = 1_700_000_000_123;

fn reason(payload: impl AsRef<[u8]>) -> Reason {
    let payload = payload.as_ref();
    let text = String::from_utf8_lossy(payload);
    decode(Some(payload)).expect_err(&format!("accepted {text}")).reason
}

#[test]
fn an_event_needs_three_fields_and_minds_no_other() {
    let others = [
        r#""url":"/","referrer":null,"user_agent":7,"headers":{"a":[1,{"b":null}]},"#,
        r#""url":[],"referrer":{},"user_agent":true,"headers":"x","extra":1e400,"#,
        r#""ip":17,"host":null,"event_time":[],"#,
        "",
    ];
    for other in others {
        let json = format!(
            r#"{{{other}"host":"a.example","ip":"1.2.3.4","event_time":"2023-11-14T22:13:20.123Z"}}"#
        );
        let event = decode(Some(json.as_bytes())).unwrap_or_else(|why| panic!("{json}: {why:?}"));
        assert_eq!(
            (&*event.ip, &*event.host, event.time.millis()),
            (&b"1.2.3.4"[..], &b"a.example"[..], TIME)
        );
        assert!(matches!((event.ip, event.host), (Cow::Borrowed(_), Cow::Borrowed(_))));
    }
}

#[test]
fn other_fields_may_nest_deeply_and_hold_bytes_that_are_not_utf8() {
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let json = format!(r#"{{"headers":{deep},"ip":"i","host":"h","event_time":1}}"#);
    assert!(decode(Some(json.as_bytes())).is_ok());
    let json = b"{\"url\":\"\xff\xfe\",\"\xff\":1,\"ip\":\"i\",\"host\":\"h\",\"event_time\":1}";
    assert!(decode(Some(json)).is_ok());
}

#[test]
fn the_last_of_a_duplicate_field_counts() {
    let json = r#"{"ip":"a","host":"h","event_time":1,"ip":"b","event_time":2}"#;
    let event = decode(Some(json.as_bytes())).expect("valid");
    assert_eq!((&*event.ip, event.time.millis()), (&b"b"[..], 2));
    assert_eq!(reason(r#"{"ip":"a","host":"h","event_time":1,"ip":null}"#), Reason::NoIp);
}

#[test]
fn keys_are_taken_byte_for_byte_with_escapes_resolved() {
    let json = r#"{"ip":" 1 ","host":"m\u00fcnchen.\ud83d\ude00","event_time":1,"\u0069p2":0}"#;
    let event = decode(Some(json.as_bytes())).expect("valid");
    assert_eq!((&*event.ip, &*event.host), (&b" 1 "[..], "münchen.😀".as_bytes()));
}

#[test]
fn every_reason_has_its_inputs() {
    let with = |ip: &str, host: &str, time: &str| {
        format!(r#"{{"ip":{ip},"host":{host},"event_time":{time}}}"#)
    };
    let long = format!("\"{}\"", "x".repeat(MAX_KEY_BYTES));
    let cases = [
        (String::new(), Reason::Empty),
        ("{".into(), Reason::BadJson),
        ("[]".into(), Reason::BadJson),
        ("null".into(), Reason::BadJson),
        ("{} {}".into(), Reason::BadJson),
        ("{\"ip\":\"\\ud800\",\"host\":\"h\",\"event_time\":1}".into(), Reason::BadJson),
        (with("null", "\"h\"", "1"), Reason::NoIp),
        (with("\"\"", "\"h\"", "1"), Reason::NoIp),
        (with("5", "\"h\"", "1"), Reason::NoIp),
        (with("[1]", "\"h\"", "1"), Reason::NoIp),
        (with("\"i\"", "{}", "1"), Reason::NoHost),
        (with("\"i\"", "{\"a\":1}", "1"), Reason::NoHost),
        (r#"{"ip":"i","event_time":1}"#.into(), Reason::NoHost),
        (with("\"i\"", "\"h\"", "null"), Reason::NoTime),
        (with("\"i\"", "\"h\"", "\"\""), Reason::NoTime),
        (with("\"i\"", "\"h\"", "1.5"), Reason::BadTime),
        (with("\"i\"", "\"h\"", "true"), Reason::BadTime),
        (with("\"i\"", "\"h\"", "[1]"), Reason::BadTime),
        (with("\"i\"", "\"h\"", "{\"a\":1}"), Reason::BadTime),
        (with("\"i\"", "\"h\"", "\"yesterday\""), Reason::BadTime),
        (with("\"i\"", "\"h\"", "253402300800000"), Reason::BadTime),
        (with("\"i\"", "\"h\"", "-62135596800001"), Reason::BadTime),
        (with("\"i\"", "\"h\"", "18446744073709551615"), Reason::BadTime),
        (with("\"i\"", "\"h\"", "99999999999999999999999"), Reason::BadTime),
        (with("\"a\\u0000b\"", "\"h\"", "1"), Reason::NulInKey),
        (with("\"i\"", "\"a\\u0000\"", "1"), Reason::NulInKey),
        (with("\"i\"", &long, "1"), Reason::KeyTooLong),
    ];
    for (json, want) in cases {
        assert_eq!(reason(&json), want, "{json}");
    }
    assert_eq!(decode(None).expect_err("tombstone").reason, Reason::Empty);
    let detail = decode(Some(b"[]")).expect_err("an array").detail;
    assert!(detail.contains("expected a JSON object"), "{detail}");
    assert_eq!(reason(b"{\"ip\":\"\xff\",\"host\":\"h\",\"event_time\":1}"), Reason::BadJson);
}

#[test]
fn a_key_of_exactly_the_limit_fits() {
    let host = "x".repeat(MAX_KEY_BYTES - 1);
    let json = format!(r#"{{"ip":"i","host":"{host}","event_time":1}}"#);
    assert!(decode(Some(json.as_bytes())).is_ok());
    // The same key with an escape, which only the general parser reads.
    let json = format!(r#"{{"ip":"\u0069","host":"{host}","event_time":1}}"#);
    assert!(decode(Some(json.as_bytes())).is_ok());
}

/// What replaces parts of valid JSON: structure, and what only one of the two parsers might accept.
const PIECES: [&str; 27] = [
    "\"",
    "\\",
    ",",
    ":",
    "{",
    "}",
    "[",
    "]",
    "0",
    "-",
    "null",
    "\u{1}",
    " ",
    "\n",
    "1e5",
    "\\u12G4",
    "\\ud800",
    "\\n",
    "\"ip\":",
    "\"host\":7,",
    "\"ip\":1e999,",
    "\"\t\":0,",
    "\"\\n\":0,",
    "\"event_time\":\"\\ud800\",",
    "\"event_time\":\"\",",
    "ü",
    "é",
];

/// The scanner and the general parser: whatever is broken, both paths give the same event, the
/// same reason and the same message.
#[test]
fn the_scanner_never_shows() {
    let seeds = [
        concat!(
            r#"{"url":"/a?b=\"c\"","referrer":"","user_agent":"k\u00e4fer","host":"a.example","#,
            r#""ip":"192.0.2.7","headers":{"a":"b","c":["d",1,null]},"#,
            r#""event_time":"2023-11-14T22:13:20.123Z"}"#,
        ),
        r#" { "ip" : "1" , "host":"m\u00fcnchen" ,"event_time": 1700000000123 , "x":[ ] } "#,
        concat!(
            r#"{"event_time":"2023-11-14 22:13:20+02:00","n":15,"ip":"ü","t":true,"#,
            r#""host":"h","f":false}"#,
        ),
        r#"{"ip":"","host":"","event_time":"","ip":"i","host":"h","event_time":0}"#,
    ];
    let pieces: Vec<&[u8]> = PIECES
        .iter()
        .map(|piece| piece.as_bytes())
        .chain([&b"\xff"[..], b"\0", b"\x1f", b""])
        .collect();
    let mut rng = Rng::new(1);
    let mut below = |n: usize| rng.below(n as u64) as usize;
    let (mut scanned, mut rejected) = (0, 0);
    for round in 0..400_000 {
        let mut json = seeds[round % seeds.len()].as_bytes().to_vec();
        for _ in 0..below(4) {
            let at = below(json.len() + 1);
            let gone = below(3).min(json.len() - at);
            json.splice(at..at + gone, pieces[below(pieces.len())].iter().copied());
        }
        if json.is_empty() {
            continue;
        }
        let got = decode(Some(&json));
        assert_eq!(got, decode_any(&json), "{}", String::from_utf8_lossy(&json));
        scanned += usize::from(scan(&json).is_some());
        rejected += usize::from(got.is_err());
    }
    assert!(scanned > 20_000 && rejected > 20_000, "{scanned} scanned, {rejected} rejected");
}

#[test]
fn of_a_field_that_is_there_twice_the_first_must_only_be_json() {
    let with = |first: &str| {
        let (ip, host, time) = (r#""ip":"i""#, r#""host":"h""#, r#""event_time":17"#);
        ["ip", "host", "event_time"].map(|name| {
            format!(r#"{{"x":1e999,"{name}":{first},{ip},"y":"\ud800",{host},{time}}}"#)
        })
    };
    for first in ["1e999", "-1e999", r#""\ud800""#, r#""\udc00\ud800""#, "[1e999]", "{}", "null"] {
        for json in with(first) {
            let event = decode(Some(json.as_bytes())).expect(&json);
            assert_eq!(
                (&*event.ip, &*event.host, event.time.millis()),
                (b"i" as &[u8], b"h" as &[u8], 17),
                "{json}"
            );
        }
    }
    for first in ["1e", "01", "\"\\x\"", "\"\u{1}\"", "[", "nul", "\"\\ud8\""] {
        for json in with(first) {
            assert_eq!(reason(&json), Reason::BadJson, "{json}");
        }
    }
    for last in [r#""ip":"i","ip":1e999"#, r#""ip":"i","ip":"\ud800""#] {
        let json = format!(r#"{{{last},"host":"h","event_time":17}}"#);
        assert_eq!(reason(&json), Reason::BadJson, "{json}");
    }
}

#[test]
fn a_control_character_must_be_escaped_in_names_as_in_values() {
    let event = |name: &str| format!(r#"{{"{name}":1,"ip":"i","host":"h","event_time":17}}"#);
    for name in ["\u{1}", "a\tb", "\\n\u{1f}", "\\\"\n", "\\\\\u{0}", "ip\n"] {
        assert_eq!(reason(event(name)), Reason::BadJson, "{name:?}");
        let nested = format!(r#"{{"x":{},"ip":"i","host":"h","event_time":17}}"#, event(name));
        assert_eq!(reason(nested), Reason::BadJson, "{name:?}");
    }
    for name in ["", "\\u0001", "\\n", "\\\\", "\\\"", "\u{7f}", "ü", "\\ud800"] {
        decode(Some(event(name).as_bytes())).expect(name);
    }
    let spaced = "{\t\"ip\"\n:\r\"i\" ,\"host\":\"h\",\"event_time\":17, \"\\n\":0\t}";
    decode(Some(spaced.as_bytes())).expect("white space between strings");
}

/// A payload comes from outside: it must not be able to use up the stack.
#[test]
fn values_may_nest_however_deeply() {
    for (open, close) in [("{\"a\":", "}"), ("[", "]"), ("[{\"a\":", "}]")] {
        let (open, close) = (open.repeat(200_000), close.repeat(200_000));
        let json = format!(r#"{{"x":{open}1{close},"ip":"i","host":"h","event_time":17}}"#);
        let event = decode(Some(json.as_bytes())).expect("what is in x does not matter");
        assert_eq!((event.key().parts(), event.time.millis()), (("i", "h"), 17));
    }
}

#[test]
fn reasons_have_names_of_their_own() {
    let names: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|r| r.name()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
    assert!(Reason::ALL.iter().all(|reason| reason.to_string() == reason.name()));
}

#[test]
fn fuzz_event() {
    let seeds: [&[u8]; 3] = [
        br#"{"ip":"192.0.2.7","host":"a.example","event_time":1700000000123}"#,
        br#"{"event_time":"2026-01-31T12:00:00.5+02:00","url":"/a?b=\"c","host":"b","ip":"::1"}"#,
        br#"{"headers":{"a":[1,2e9,null]},"ip":"x","host":"\u00fc","event_time":"1999-12-31 23:59:60"}"#,
    ];
    let pieces: [&[u8]; 9] =
        [b"\"", b"\\", b"\\ud800", b"1e999", b"{", b"]", b"\xff", b"\0", b",\"ip\":7"];
    fuzz(&seeds, &pieces, |json| {
        if !json.is_empty() {
            assert_eq!(decode(Some(json)), decode_any(json), "{}", String::from_utf8_lossy(json));
        }
    });
}
