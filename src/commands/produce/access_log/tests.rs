use super::*;

// Every line here is made up.
const GOOD: &str = "203.0.113.9 - - [17/May/2015:10:05:03 +0000] \
                    \"GET /a?b=c HTTP/1.1\" 200 12 \
                    \"https://example.net/x\" \"Browser/1.0 (X; Y)\"";
const GOOD_MS: i64 = 1_431_857_103_000;

fn parse(line: &[u8]) -> Result<WebEvent<'_>, LineError> {
    parse_line(line, "example.org")
}

/// [`GOOD`] with its request, including `"..."`, replaced.
fn with_request(request: &str) -> String {
    GOOD.replace("\"GET /a?b=c HTTP/1.1\"", request)
}

#[test]
fn a_combined_line_becomes_an_event() {
    let event = parse(GOOD.as_bytes()).expect("a good line");
    let want = WebEvent {
        url: "/a?b=c".into(),
        referrer: "https://example.net/x".into(),
        user_agent: "Browser/1.0 (X; Y)".into(),
        host: "example.org".into(),
        ip: "203.0.113.9".into(),
        headers: vec![],
        event_time_ms: GOOD_MS,
    };
    assert_eq!(event, want);
}

#[test]
fn the_common_format_has_no_referrer_and_no_user_agent() {
    let line = GOOD.split(" \"https").next().expect("a first part");
    for line in
        [line.to_string(), format!("{line} "), format!("{line}\r\n"), format!("{line} \"-\" \"-\"")]
    {
        let event = parse(line.as_bytes()).expect("a good line");
        assert_eq!((&*event.referrer, &*event.user_agent), ("", ""), "{line}");
    }
}

#[test]
fn clients_are_addresses_or_host_names() {
    for client in [
        "203.0.113.9",
        "2001:db8::7",
        "::ffff:203.0.113.9",
        "fe80::1%eth0",
        "dial-up.example.com",
        "localhost",
        "under_score.example",
    ] {
        let line = GOOD.replace("203.0.113.9", client);
        assert_eq!(parse(line.as_bytes()).expect("a good client").ip, client);
    }
}

#[test]
fn times_keep_their_zone_and_their_fraction() {
    for (time, want) in [
        ("17/May/2015:10:05:03 +0000", GOOD_MS),
        ("17/May/2015:10:05:03 -0000", GOOD_MS),
        ("17/May/2015:12:05:03 +0200", GOOD_MS),
        ("17/May/2015:15:35:03 +0530", GOOD_MS),
        ("16/May/2015:22:20:03 -1145", GOOD_MS),
        ("17/may/2015:10:05:03 +0000", GOOD_MS),
        ("17/May/2015:10:05:03.250 +0000", GOOD_MS + 250),
        ("01/Jan/1970:00:00:00 +0000", 0),
        ("29/Feb/2024:23:59:59 +0000", 1_709_251_199_000),
        ("30/Jun/2015:23:59:60 +0000", 1_435_708_800_000),
    ] {
        let line = GOOD.replace("17/May/2015:10:05:03 +0000", time);
        assert_eq!(parse(line.as_bytes()).map(|event| event.event_time_ms), Ok(want), "{time}");
    }
}

#[test]
fn users_may_hold_spaces_and_brackets() {
    for user in ["- alice", "- Bob the [builder]", "id [17/May/2015] x", "-  -", "- [ [x]"] {
        let line = GOOD.replace("- -", user);
        assert_eq!(parse(line.as_bytes()).map(|event| event.event_time_ms), Ok(GOOD_MS), "{user}");
    }
}

#[test]
fn requests_are_taken_as_they_are() {
    for (request, want) in [
        (r#""GET / HTTP/1.0""#, "/"),
        (r#""GET /a b HTTP/1.1""#, "/a b"),
        (r#""GET /zero-nine""#, "/zero-nine"),
        (r#""VERSION-CONTROL /x HTTP/1.1""#, "/x"),
        (r#""CONNECT example.org:443 HTTP/1.1""#, "example.org:443"),
        (r#""GET http://example.org/full HTTP/1.1""#, "http://example.org/full"),
        (r#""-""#, ""),
        (r#""""#, ""),
        (r#""GET""#, "GET"),
        (r#""hello world""#, "hello world"),
        (r#""\x16\x03\x01\x02""#, "\u{16}\u{3}\u{1}\u{2}"),
        (r#""GET /caf\xc3\xa9 HTTP/1.1""#, "/café"),
        (r#""GET /caf\xe9 HTTP/1.1""#, "/caf\u{fffd}"),
        (r#""GET /\"quoted\" HTTP/1.1""#, "/\"quoted\""),
        (r#""GET /back\\ HTTP/1.1""#, "/back\\"),
        (r#""GET /tail\\""#, "/tail\\"),
        (r#""GET /\t\n\r\b\v\f HTTP/1.1""#, "/\t\n\r\u{8}\u{b}\u{c}"),
        (r#""GET /\x4 \xzz \q HTTP/1.1""#, "/\\x4 \\xzz \\q"),
        (r#""GET /raw"quote HTTP/1.1""#, "/raw\"quote"),
    ] {
        let line = with_request(request);
        let event = parse(line.as_bytes()).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(event.url, want, "{line}");
        assert_eq!(event.user_agent, "Browser/1.0 (X; Y)", "{line}");
    }
}

#[test]
fn a_line_cut_in_the_user_agent_is_still_an_event() {
    for (end, want) in [(99, ""), (106, "Browser"), (117, "Browser/1.0 (X; Y)")] {
        assert_eq!(parse(&GOOD.as_bytes()[..end]).expect("good").user_agent, want);
    }
}

#[test]
fn bytes_that_are_not_utf_8_become_replacement_characters() {
    let mut line = GOOD.replace("Browser", "Br#wser").into_bytes();
    let at = line.iter().position(|&byte| byte == b'#').expect("the mark");
    line[at] = 0xff;
    assert_eq!(parse(&line).expect("a good line").user_agent, "Br\u{fffd}wser/1.0 (X; Y)");
}

#[test]
fn what_follows_the_user_agent_is_ignored() {
    for extra in [" \"203.0.113.1, 10.0.0.1\"", " 0.003", " \"unclosed", " - - x=1 [no] \"\""] {
        let line = format!("{GOOD}{extra}");
        assert_eq!(parse(line.as_bytes()).expect("a good line").user_agent, "Browser/1.0 (X; Y)");
    }
}

#[test]
fn status_and_size_may_be_missing_values() {
    for numbers in ["304 -", "- -", "000 0", "200 18446744073709551616"] {
        let line = GOOD.replace("200 12", numbers);
        assert!(parse(line.as_bytes()).is_ok(), "{line}");
    }
}

#[test]
fn errors_name_the_field_the_column_and_the_problem() {
    let long = format!("{}:80 - - [x]", "v".repeat(300));
    let cut = |end: usize| GOOD[..end].to_string();
    for (line, want) in [
        ("".to_string(), "client at column 1: the line is empty"),
        (" \t ".to_string(), "client at column 1: the line is empty"),
        (GOOD.replace("203.0.113.9", "-"), "client at column 1: \"-\" is neither"),
        (GOOD.replace("203.0.113.9", "unix:"), "client at column 1: \"unix:\" is neither"),
        (GOOD.replace("203.0.113.9", "a.example:80"), "client at column 1: \"a.example:80\" is"),
        (GOOD.replace("203.0.113.9", "a\0b"), "client at column 1: \"a\\0b\" is neither"),
        (GOOD.replace("203.0.113.9", "\u{feff}::1"), "client at column 1: \"\\u{feff}::1\" is"),
        (long, "client at column 1: \"vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv…\" is neither"),
        ("hello".to_string(), "time at column 6: no time in brackets follows"),
        (GOOD.replace("May", "Mai"), "time at column 17: \"17/Mai/2015:10:05:03 +0000\" is not"),
        (GOOD.replace("17/", "32/"), "time at column 17: \"32/May/2015:10:05:03 +0000\" is not"),
        (GOOD.replace(" +0000", ""), "time at column 17: \"17/May/2015:10:05:03\" is not"),
        (GOOD.replace("2015", "-015"), "time at column 17: \"17/May/-015:10:05:03 +0000\" is not"),
        (GOOD.replace("2015", "+12015"), "time at column 17: \"17/May/+12015:10:05:03 +0000\" is"),
        (cut(30), "time at column 17: the bracket is never closed"),
        (cut(44), "request at column 45: missing, the line ends before it"),
        (cut(50), "request at column 46: the quote is never closed"),
        (
            with_request("GET /"),
            "request at column 46: a quote should open it, but there is \"GET\"",
        ),
        (GOOD.replace("200 12", "OK 12"), "status at column 68: \"OK\" is neither a number nor -"),
        (GOOD.replace("200 12", "200 1k"), "size at column 72: \"1k\" is neither a number nor -"),
        (GOOD.replace("200 12", "200"), "size at column 72: \"\\\"https://example.net/x\\\"\" is"),
        (cut(66), "status at column 67: missing, the line ends before it"),
        (GOOD.replace("\"https", "https"), "referrer at column 75: a quote should open it"),
        (cut(98), "user agent at column 98: missing, the line ends before it"),
        (cut(90), "referrer at column 75: the quote is never closed"),
    ] {
        let error = parse(line.as_bytes()).expect_err(&line).to_string();
        assert!(error.starts_with(want), "{line}\n said {error}\n not  {want}");
    }
}

#[test]
fn no_line_makes_the_parser_panic() {
    for end in 0..=GOOD.len() {
        for byte in [b'"', b'\\', b'[', b' ', b'-', 0xff, 0] {
            let mut line = GOOD.as_bytes()[..end].to_vec();
            line.push(byte);
            let _ = parse(&line);
            line.extend_from_slice(&GOOD.as_bytes()[end..]);
            let _ = parse(&line);
        }
    }
}

#[test]
fn fuzz_access_log() {
    let pieces: [&[u8]; 8] =
        [b"\"", b"\\x22", b"[", b"] ", b" ", b"-", b"\xff", b"31/Feb/2026:24:61:61 +9999"];
    crate::shared::mutate::fuzz(&[GOOD.as_bytes()], &pieces, |line| {
        if let Ok(event) = parse(line) {
            let json: serde_json::Value =
                serde_json::from_slice(&event.to_json()).expect("an event is JSON");
            assert!(json["ip"].as_str().is_some_and(|ip| !ip.is_empty()), "{json}");
        }
    });
}
