//! TLS errors in sentences: OpenSSL and librdkafka report them as stacks of codes.

use openssl::error::ErrorStack;
use sessionizer_core::fault::Message;

/// What to do about a file that cannot be read.
pub const CORRECT_PATH: &str = "correct the path, or the file's permissions";
const PEM: &str = "name a file in PEM form, as openssl writes it";
const PASSWORD: &str = "give the password of the key (sslpassword in POSTGRES_URL, \
                        ssl.key.password in --kafka-config)";

/// OpenSSL's names for errors, what they mean to somebody who sets up certificates, and what to do.
const MEANINGS: [(&str, &str, &str); 10] = [
    ("no such file or directory", "cannot be read: no such file", CORRECT_PATH),
    ("permission denied", "cannot be read: permission denied", CORRECT_PATH),
    ("is a directory", "is a directory, not a file", "name a file"),
    ("no start line", "is not what is expected there: no PEM block of that kind in it", PEM),
    ("no certificate or crl found", "holds no certificate in PEM form", PEM),
    (
        "key values mismatch",
        "does not belong to the certificate",
        "name a key and a certificate that belong together",
    ),
    ("bad decrypt", "is encrypted, and the password is wrong", PASSWORD),
    ("bad password read", "is encrypted, and there is no password for it", PASSWORD),
    ("problems getting password", "is encrypted, and there is no password for it", PASSWORD),
    ("system lib", "cannot be read: no such file, or no right to read it", CORRECT_PATH),
];

/// What an OpenSSL error stack says about a file, as the rest of a sentence.
pub fn meaning(stack: &ErrorStack) -> Message {
    let reasons: Vec<&str> = stack.errors().iter().filter_map(|error| error.reason()).collect();
    let known = MEANINGS
        .iter()
        .find(|(reason, ..)| reasons.iter().any(|found| found.eq_ignore_ascii_case(reason)));
    match known {
        Some((_, meaning, remedy)) => Message::new(*meaning).remedy("; ", *remedy),
        None => {
            let why = reasons.last().unwrap_or(&"OpenSSL does not say why");
            let problem = Message::new(format!("cannot be used: {why}"));
            problem.remedy("; ", "name a file that holds what is needed there")
        }
    }
}

/// A message of librdkafka without OpenSSL's codes, source locations and internal states:
/// `ssl.ca.location failed: error:80000002:system library::No such file or directory` becomes
/// `ssl.ca.location cannot be read: no such file`.
pub fn plain(message: &str) -> String {
    let message = message.split(" (after ").next().unwrap_or(message).trim();
    // The first bytes of another protocol, taken for a length: a larger limit would not help.
    if message.contains("Invalid response size") {
        return "what answers there does not speak Kafka: is the port right, and does it ask for TLS?"
            .to_owned();
    }
    // librdkafka guesses at the version of a broker that just does not answer.
    if message.contains("ApiVersionRequest failed") && message.contains("Timed out") {
        return "no answer".to_owned();
    }
    if message.contains("Connect to ")
        && let Some((_, why)) = message.rsplit_once(" failed: ")
    {
        return why.to_owned();
    }
    let stack = message.match_indices("error:").map(|(at, word)| at + word.len()).find(|at| {
        let code = message[*at..].split(':').next().unwrap_or_default();
        code.len() >= 8 && code.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    let Some(at) = stack else { return message.to_owned() };
    let (before, stack) = (&message[..at - "error:".len()], &message[at..]);
    // error:CODE:LIBRARY:FUNCTION:REASON: more
    let mut fields = stack.splitn(5, ':').skip(3);
    let reason = fields.next().unwrap_or_default().trim();
    let more = fields.next().unwrap_or_default().trim();
    let lower = stack.to_ascii_lowercase();
    let setting = before.trim().strip_suffix("failed:").map(str::trim);
    if let Some(setting) = setting.filter(|setting| setting.starts_with("ssl."))
        && let Some((_, meaning, _)) = MEANINGS.iter().find(|(reason, ..)| lower.contains(reason))
    {
        return format!("{setting} {meaning}");
    }
    let more = match more.split_once(": ") {
        // The file and line of OpenSSL's source.
        Some((place, more)) if place.contains(".c:") => more,
        _ if more.contains(".c:") => "",
        _ => more,
    };
    match more {
        "" => format!("{before}{reason}"),
        more => format!("{before}{reason}: {more}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_librdkafka_lose_their_codes() {
        for (message, want) in [
            (
                "a:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms \
                 in state CONNECT)",
                "Connection refused",
            ),
            (
                "SASL authentication error: Authentication failed: Invalid username or password \
                 (after 114ms in state AUTH_REQ)",
                "SASL authentication error: Authentication failed: Invalid username or password",
            ),
            (
                "ssl.ca.location failed: error:80000002:system library::No such file or directory",
                "ssl.ca.location cannot be read: no such file",
            ),
            (
                "127.0.0.1:9092/1: ApiVersionRequest failed: Local: Timed out: probably due to \
                 broker version < 0.10 (see api.version.request configuration) (after 10009ms in \
                 state APIVERSION_QUERY)",
                "no answer",
            ),
            (
                "ssl.key.location failed: error:0B080074:x509 certificate routines:\
                 X509_check_private_key:key values mismatch",
                "ssl.key.location does not belong to the certificate",
            ),
            (
                "SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: \
                 broker certificate could not be verified (after 3ms in state SSL_HANDSHAKE)",
                "SSL handshake failed: certificate verify failed: broker certificate could not be \
                 verified",
            ),
        ] {
            assert_eq!(plain(message), want);
        }
    }

    #[test]
    fn a_stack_of_openssl_becomes_a_sentence() {
        let none = openssl::pkey::PKey::private_key_from_pem(b"nothing").expect_err("no key");
        assert!(!meaning(&none).to_string().contains("error:"), "{}", meaning(&none));
        let none = openssl::x509::X509::from_pem(b"nothing").expect_err("no certificate");
        let want = "is not what is expected there: no PEM block of that kind in it";
        assert_eq!(meaning(&none).problem, want);
        assert_eq!(meaning(&none).remedies(), [PEM]);
    }
}
