//! Tests URLs in every form, and that no part of an invalid URL is ever shown.

use super::*;

fn place(url: &str) -> (String, u16, String) {
    let parsed = parse(url).unwrap_or_else(|why| panic!("{url}: {why}"));
    let (host, port) = parsed.hosts[0].clone();
    (host, port, parsed.database)
}

#[test]
fn every_form_of_the_url_names_a_place() {
    let at = |host: &str, port, database: &str| (host.to_owned(), port, database.to_owned());
    let cases = [
        ("jdbc:postgresql://db.example:6432/web", at("db.example", 6432, "web")),
        ("jdbc:postgresql://db.example/web", at("db.example", 5432, "web")),
        ("jdbc:postgresql:web", at("localhost", 5432, "web")),
        ("jdbc:postgresql:/web", at("localhost", 5432, "web")),
        ("jdbc:postgresql:///web", at("localhost", 5432, "web")),
        ("jdbc:postgresql://[::1]:5433/web", at("::1", 5433, "web")),
        ("jdbc:postgresql://[::1]/web", at("::1", 5432, "web")),
        ("postgres://db.example/web", at("db.example", 5432, "web")),
        ("postgresql://u:p@db.example:1/a%20b", at("db.example", 1, "a b")),
        ("postgres://%2Frun%2Fpostgresql/web", at("/run/postgresql", 5432, "web")),
        ("postgres://db_1.example/a%2Fb", at("db_1.example", 5432, "a/b")),
    ];
    for (url, want) in cases {
        assert_eq!(place(url), want, "{url}");
    }
    let hosts = parse("jdbc:postgresql://a:1,b/web").expect("valid").hosts;
    assert_eq!(hosts, [("a".to_owned(), 1), ("b".to_owned(), 5432)]);
}

#[test]
fn parameters_are_those_of_the_jdbc_driver() {
    let url = parse(
        "jdbc:postgresql://h/d?user=me&password=s%26cret&sslmode=verify-ca&sslrootcert=/ca.pem\
         &currentSchema=app,public&connectTimeout=3&reWriteBatchedInserts=true\
         &targetServerType=primary&gssEncMode=disable&channelBinding=require&sslpassword=k",
    )
    .expect("valid");
    assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("me"), Some("s&cret")));
    assert_eq!((url.tls, url.connect_timeout.as_secs()), (TlsMode::VerifyCa, 3));
    assert_eq!(url.schemas, ["app", "public"]);
    let schemas = |path: &str| {
        parse(&format!("jdbc:postgresql://h/db?currentSchema={path}")).map(|url| url.schemas)
    };
    // As Postgres reads a search path.
    let paths = [
        ("Reports,public", vec!["reports", "public"]),
        ("%22$user%22,%20%22Up%22", vec!["$user", "Up"]),
        ("%22a,b%22,%22c%22%22d%22", vec!["a,b", "c\"d"]),
    ];
    for (path, want) in paths {
        assert_eq!(schemas(path).expect(path), want);
    }
    for wrong in ["", ",", "a,", "%22a", "%22a%22b", "a%20b"] {
        assert!(schemas(wrong).is_err(), "{wrong}");
    }
    assert_eq!(url.ignored, ["reWriteBatchedInserts"]);
    assert_eq!(url.channel_binding, Some(ChannelBinding::Require));
    assert_eq!(url.client_key_password.map(|key| key.reveal().to_owned()), Some("k".to_owned()));
    assert_eq!(parse("jdbc:postgresql://h/d?ssl=true").expect("ok").tls, TlsMode::VerifyFull);
    assert_eq!(parse("jdbc:postgresql://h/d").expect("ok").tls, TlsMode::Prefer);
    let login = parse("postgres://me:p%40ss@h/d").expect("valid");
    assert_eq!(login.password.as_deref(), Some("p@ss"));
}

#[test]
fn a_named_authority_is_used() {
    let tls = |parameters: &str| parse(&format!("postgres://h/d?{parameters}")).expect("ok").tls;
    assert_eq!(tls("sslmode=require"), TlsMode::Require);
    assert_eq!(tls("sslmode=require&sslrootcert=/ca.pem"), TlsMode::VerifyCa);
    assert_eq!(tls("sslrootcert=/ca.pem&sslmode=require"), TlsMode::VerifyCa);
    assert_eq!(tls("sslmode=verify-full&sslrootcert=/ca.pem"), TlsMode::VerifyFull);
}

#[test]
fn what_is_wrong_is_reported_with_what_to_write() {
    let cases = [
        ("http://h/d", "must be of the form jdbc:postgresql://host:5432/database"),
        ("", "must be of the form"),
        ("postgres://h", "names no database"),
        ("jdbc:postgresql://h:5432/", "names no database"),
        ("jdbc:postgresql:/", "names no database"),
        ("jdbc:postgresql://h/?sslmode=require", "names no database"),
        ("postgres://u:p@h:port/d", "port that is not a number"),
        ("postgres://h:0/d", "port that is not a number"),
        ("postgres://h:99999/d", "port that is not a number"),
        ("postgres://::1/d", "port that is not a number"),
        ("postgres://[x]/d", "a host that is neither a name"),
        ("postgres://h/d/e", "must be escaped"),
        ("jdbc:postgresql://h/d?sslmode=maybe", "sslmode that is not known"),
        ("jdbc:postgresql://h/d?password=x%4", "two hexadecimal digits"),
        ("jdbc:postgresql://h/d?password=%ff", "not UTF-8"),
        ("jdbc:postgresql://h/d?user=%00", "NUL"),
        ("jdbc:postgresql://h/d?connectTimeout=soon", "number of seconds"),
        ("jdbc:postgresql://h/d?a=1&sslMode=require", "unknown parameter, number 1"),
        ("jdbc:postgresql://h/d?ssl=true&sslMode=require", "unknown parameter, number 2"),
        ("jdbc:postgresql://h/d?ssl=yes", "not true or false"),
        ("jdbc:postgresql://h/d?channelBinding=always", "not disable, prefer or require"),
        ("jdbc:postgresql://h/d?sslfactory=x", "sslfactory, which is not supported: use sslmode"),
        ("jdbc:postgresql://h/d?requireAuth=scram-sha-256", "requireAuth, which is not supported"),
        ("jdbc:postgresql://h/d?gssEncMode=require", "gssEncMode that is not supported"),
        ("jdbc:postgresql://h/d?sslNegotiation=direct", "sslNegotiation that is not supported"),
        ("jdbc:postgresql://h/d?targetServerType=secondary", "needs the primary"),
        ("postgres://h/d?target_session_attrs=standby", "needs the primary"),
        ("postgres://h/d?dbname=e", "before the question mark"),
    ];
    for (url, want) in cases {
        let why = parse(url).expect_err(url);
        assert!(why.contains(want), "{url}: {why}");
    }
    let shown = format!("{0} {0:?}", parse("postgres://u:secret@h/d").expect("valid"));
    assert_eq!(shown, "h:5432/d h:5432/d");
}

/// Puts secrets with every special character of a URL in every place where one may be pasted:
/// whether the URL parses or not, no message shows any part of a secret.
#[test]
#[expect(clippy::too_many_lines, reason = "a table of URLs")]
fn no_piece_of_a_secret_is_ever_shown() {
    let odd = [
        "",
        "@",
        ":",
        "/",
        "?",
        "#",
        "%",
        "^",
        "'",
        "\"",
        "&",
        " ",
        "=",
        ",",
        "\\",
        "ä",
        "[",
        "]",
        "%41",
        "%zz",
        "//",
        "://",
        "&x=",
        "?sslmode=",
        "@h/d",
        ":1/",
    ];
    let around = [
        "postgres://u:{}@h/d",
        "postgres://{}:p@h/d",
        "postgres://u:{}@h:5432/d?sslmode=require",
        "jdbc:postgresql://h/d?user=u&password={}",
        "jdbc:postgresql://h/d?password={}&user=u",
        "jdbc:postgresql://h/d?password=x&{}&user=u",
        "jdbc:postgresql://h/d?sslmode={}",
        "jdbc:postgresql://h/d?ssl={}",
        "jdbc:postgresql://h/d?connectTimeout={}",
        "jdbc:postgresql://h/d?channelBinding={}",
        "jdbc:postgresql://h/d?targetServerType={}",
        "jdbc:postgresql://h/d?sslpassword={}",
        "jdbc:postgresql://h/d?sslfactory={}",
        "postgres:u:{}@h/d",
        "postgres:/u:{}@h/d",
        "postgres//u:{}@h/d",
        "mysql://u:{}@h/d",
        "u:{}@h/d",
        "host=h password={} dbname=d",
        "postgres://u:12{}@h/d",
        "postgres://u:{},x@h/d",
        "postgres://u:1,{}@h/d",
        "\"postgres://u:{}@h/d\"",
    ];
    let mut tried = 0;
    for template in around {
        for first in odd {
            for second in odd {
                // Every part of it can be distinguished from the rest of a message.
                let secret = format!("Qq1{first}Qq2{second}Qq3");
                let shown = match parse(&template.replace("{}", &secret)) {
                    Ok(url) => format!("{url} {url:?} {:?}", url.ignored),
                    Err(why) => why,
                };
                assert!(!shown.contains("Qq"), "{template} with {secret}: {shown}");
                tried += 1;
            }
        }
    }
    assert_eq!(tried, around.len() * odd.len() * odd.len());
}

#[test]
fn a_secret_that_begins_like_a_port_is_not_shown_either() {
    for secret in ["12/Qq", "12/Qq?x", "1,Qq", "1,Qq:2/Qq", "12?Qq", "12#Qq", "12/Qq?sslmode=Qq"] {
        let shown = match parse(&format!("postgres://u:{secret}@h/d")) {
            Ok(url) => format!("{url} {url:?} {:?}", url.ignored),
            Err(why) => why,
        };
        assert!(!shown.contains("Qq"), "{secret}: {shown}");
    }
}

#[test]
fn fuzz_url() {
    let seeds: [&[u8]; 4] = [
        b"jdbc:postgresql://db.example:5432/web?user=job&password=hunter2&sslmode=verify-full",
        b"postgres://job:hunter2@[::1]:5433,other/web?currentSchema=a,b&connectTimeout=5",
        b"jdbc:postgresql:web?password=hunter2",
        b"postgresql://job@/web?host=/run/postgresql&password=hunter2",
    ];
    let pieces: [&[u8]; 10] = [
        b"@",
        b":",
        b"/",
        b"//",
        b"?",
        b"&",
        b"%",
        b"%00",
        "\u{fc}".as_bytes(),
        b"sslmode=disable",
    ];
    crate::shared::mutate::fuzz(&seeds, &pieces, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let shown = match super::parse(&text) {
            // What was moved out of the password is, for example, the name of the database.
            Ok(url) if url.password.as_ref().is_none_or(|it| !it.contains("hunter2")) => return,
            Ok(url) => format!("{url} {url:?}"),
            Err(why) => why,
        };
        assert!(!shown.contains("hunter2"), "{text}: {shown}");
    });
}

#[test]
fn what_may_be_a_password_in_the_wrong_place_is_refused_and_not_repeated() {
    for wrong in [
        "jdbc:postgresql://h/d&password=GEHEIM",
        "jdbc:postgresql://h/d;password=GEHEIM",
        "jdbc:postgresql://h/user=x&password=GEHEIM",
    ] {
        let why = parse(wrong).expect_err(wrong);
        assert!(why.contains("begins with ?") && !why.contains("GEHEIM"), "{why}");
    }
    assert_eq!(parse("postgres://h/a%26b%3Dc").expect("escaped").database, "a&b=c");
}

#[test]
fn a_parameter_counts_once() {
    for twice in [
        "user=a&user=b",
        "password=GEHEIM&password=GEHEIM",
        "connectTimeout=5&connect_timeout=7",
        "ssl=true&sslmode=disable",
    ] {
        let why = parse(&format!("postgres://h/d?{twice}")).expect_err(twice);
        assert!(!why.contains("GEHEIM"), "{why}");
    }
}
