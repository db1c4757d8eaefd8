//! The header by which an answer of the HTTP port says whose it is: two jobs on one machine may be
//! told to use the same port, and only one of them gets it.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// The header's name.
pub const JOB_HEADER: &str = "sessionizer-job";

/// What is escaped in a name: all that is not usual in one.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// The header's value for a job of any name: visible ASCII characters.
pub fn encode(job: &str) -> String {
    utf8_percent_encode(job, ESCAPED).to_string()
}

/// The name of the job in a header's value.
pub fn decode(value: &str) -> String {
    percent_decode_str(value.trim()).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_survives_the_header() {
        assert_eq!(encode("web-events_2.a"), "web-events_2.a");
        assert_eq!(encode("a b%ä\r\n:"), "a%20b%25%C3%A4%0D%0A%3A");
        for job in ["web", "a b", " a ", "50 %", "%41", "Straße", "a\r\nX: y", "日本", ""] {
            let value = encode(job);
            assert!(value.bytes().all(|byte| byte.is_ascii_graphic()), "{value}");
            assert_eq!(decode(&value), job);
        }
    }
}
