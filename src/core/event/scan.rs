//! Scans the three fields of an event in its usual shape. Pure.
//!
//! Parsing JSON was two thirds of what an event costs between Kafka and the session table, so the
//! usual shape has a scanner of its own: one pass that keeps nothing but where the three values
//! are. It owns no rules. Whenever it is not sure (an escape in a value that matters, a duplicated
//! field, a number that is not a plain integer, deep nesting, an error of any kind), it returns
//! `None` and the general parser in `decode.rs` decides. That parser accepts whatever the scanner
//! accepts, with the same result; a test there compares the two.

/// The values that matter, as they appear in the payload: `ip` and `host` in UTF-8.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scanned<'a> {
    pub ip: &'a [u8],
    pub host: &'a [u8],
    pub event_time: ScannedTime<'a>,
}

/// The value of `event_time`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScannedTime<'a> {
    /// A string without escapes and control characters; it is not checked to be UTF-8.
    Text(&'a [u8]),
    /// An integer that is not negative and below 10^18.
    Integer(i64),
}

/// How deep values that do not matter may nest; deeper ones go to the general parser.
const MAX_DEPTH: u32 = 4;

/// Scans a payload of the usual shape; `None` means that the general parser has to decide.
pub fn scan(payload: &[u8]) -> Option<Scanned<'_>> {
    let mut scanner = Scanner { bytes: payload, at: 0 };
    let (mut ip, mut host, mut event_time) = (None, None, None);
    scanner.expect(b'{')?;
    loop {
        scanner.expect(b'"')?;
        let name = scanner.plain()?;
        scanner.expect(b':')?;
        match name {
            b"ip" if ip.is_none() => ip = Some(scanner.text()?),
            b"host" if host.is_none() => host = Some(scanner.text()?),
            b"event_time" if event_time.is_none() => event_time = Some(scanner.time()?),
            b"ip" | b"host" | b"event_time" => return None,
            _ => scanner.skip(0)?,
        }
        match scanner.next()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    if scanner.bytes[scanner.at..].iter().any(|byte| !is_space(*byte)) {
        return None;
    }
    let (ip, host) = (ip?, host?);
    let utf8 = |text: &[u8]| text.is_ascii() || std::str::from_utf8(text).is_ok();
    (utf8(ip) && utf8(host)).then_some(Scanned { ip, host, event_time: event_time? })
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    /// The next byte that is not white space.
    #[inline]
    fn next(&mut self) -> Option<u8> {
        loop {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            if !is_space(byte) {
                return Some(byte);
            }
        }
    }

    #[inline]
    fn expect(&mut self, wanted: u8) -> Option<()> {
        // Most events contain no white space.
        if self.bytes.get(self.at) == Some(&wanted) {
            self.at += 1;
            return Some(());
        }
        (self.next()? == wanted).then_some(())
    }

    /// The rest of a string after its opening quote, if it has no escapes.
    #[inline]
    fn plain(&mut self) -> Option<&'a [u8]> {
        let start = self.at;
        let length = plain_length(&self.bytes[start..]);
        self.at = start + length + 1;
        (self.bytes.get(start + length) == Some(&b'"')).then(|| &self.bytes[start..start + length])
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        self.plain()
    }

    fn time(&mut self) -> Option<ScannedTime<'a>> {
        match self.next()? {
            b'"' => Some(ScannedTime::Text(self.plain()?)),
            first @ b'0'..=b'9' => Some(ScannedTime::Integer(self.integer(first)?)),
            _ => None,
        }
    }

    /// The rest of an integer; `None` for a fraction, an exponent or a leading zero.
    fn integer(&mut self, first: u8) -> Option<i64> {
        let mut value = i64::from(first - b'0');
        let mut digits = 1;
        while let Some(byte @ b'0'..=b'9') = self.bytes.get(self.at) {
            value = value.wrapping_mul(10).wrapping_add(i64::from(byte - b'0'));
            digits += 1;
            self.at += 1;
        }
        if digits > 18 || (first == b'0' && digits > 1) {
            return None;
        }
        let ends = matches!(self.bytes.get(self.at)?, b',' | b'}' | b']');
        (ends || is_space(self.bytes[self.at])).then_some(value)
    }

    /// Skips a value that does not matter.
    fn skip(&mut self, depth: u32) -> Option<()> {
        match self.next()? {
            b'"' => self.skip_string(),
            b'{' if depth < MAX_DEPTH => self.skip_object(depth),
            b'[' if depth < MAX_DEPTH => self.skip_list(depth),
            b'n' => self.word(b"ull"),
            b't' => self.word(b"rue"),
            b'f' => self.word(b"alse"),
            first @ b'0'..=b'9' => self.integer(first).map(drop),
            _ => None,
        }
    }

    fn skip_object(&mut self, depth: u32) -> Option<()> {
        let mut next = self.next()?;
        if next == b'}' {
            return Some(());
        }
        loop {
            if next != b'"' {
                return None;
            }
            self.skip_string()?;
            self.expect(b':')?;
            self.skip(depth + 1)?;
            match self.next()? {
                b',' => next = self.next()?,
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    fn skip_list(&mut self, depth: u32) -> Option<()> {
        let before = self.at;
        if self.next()? == b']' {
            return Some(());
        }
        self.at = before;
        loop {
            self.skip(depth + 1)?;
            match self.next()? {
                b',' => {}
                b']' => return Some(()),
                _ => return None,
            }
        }
    }

    /// Skips the rest of a string, escapes included.
    fn skip_string(&mut self) -> Option<()> {
        loop {
            self.at += plain_length(&self.bytes[self.at..]);
            match self.bytes.get(self.at)? {
                b'"' => {
                    self.at += 1;
                    return Some(());
                }
                b'\\' => match self.bytes.get(self.at + 1)? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 2,
                    b'u' => {
                        let digits = self.bytes.get(self.at + 2..self.at + 6)?;
                        if !digits.iter().all(u8::is_ascii_hexdigit) {
                            return None;
                        }
                        self.at += 6;
                    }
                    _ => return None,
                },
                _ => return None,
            }
        }
    }

    fn word(&mut self, rest: &[u8]) -> Option<()> {
        let found = self.bytes.get(self.at..self.at + rest.len())? == rest;
        self.at += rest.len();
        found.then_some(())
    }
}

#[inline]
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\t' | b'\r')
}

/// The number of bytes before the first quote, backslash or control character.
///
/// It looks at eight bytes at a time. In `(word - n) & !word` the high bit of a byte is set if the
/// byte is below `n`; that is exact up to and including the first such byte, because borrows only
/// propagate upwards. Flipping one bit moves the quote (0x22) next to the control characters and
/// leaves everything else above them.
#[inline]
fn plain_length(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    let mut length = 0;
    for chunk in bytes.chunks_exact(8) {
        let word = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
        let quote = word ^ (ONES * 0x02);
        let slash = word ^ (ONES * 0x5c);
        let found =
            (quote.wrapping_sub(ONES * 0x21) & !quote) | (slash.wrapping_sub(ONES) & !slash);
        if found & HIGH != 0 {
            return length + (found & HIGH).trailing_zeros() as usize / 8;
        }
        length += 8;
    }
    let special = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
    let rest = &bytes[length..];
    length + rest.iter().position(special).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_that_ends_a_plain_run_is_found_wherever_it_stands() {
        for byte in 0..=255 {
            let ends = byte < 0x20 || byte == b'"' || byte == b'\\';
            for length in 0..20 {
                for at in 0..length {
                    for filler in [b'a', 0x20, 0x21, 0x23, 0x5b, 0x5d, 0x7f, 0x80, 0xff] {
                        let mut bytes = vec![filler; length];
                        bytes[at] = byte;
                        let want = if ends { at } else { length };
                        assert_eq!(plain_length(&bytes), want, "{byte} at {at} of {length}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_usual_shape_is_taken_and_anything_doubtful_is_left() {
        let text = ScannedTime::Text(b"2023-11-14T22:13:20.123Z");
        let taken = [
            (r#"{"ip":"i","host":"h","event_time":"2023-11-14T22:13:20.123Z"}"#, text),
            (
                " { \"host\" : \"h\" , \"ip\":\"i\"\n,\t\"event_time\" : 17 } ",
                ScannedTime::Integer(17),
            ),
            (
                r#"{"h":{"a":[1,"\"}",{"b":null}],"c":{}},"ip":"i","host":"h","event_time":0}"#,
                ScannedTime::Integer(0),
            ),
            (
                r#"{"":[true,false,"\u00e9"],"ip":"i","host":"h","event_time":999999999999999999}"#,
                ScannedTime::Integer(999_999_999_999_999_999),
            ),
            (
                r#"{"a":{"a":{"a":{"a":1}}},"b":[[[[1]]]],"ip":"i","host":"h","event_time":1}"#,
                ScannedTime::Integer(1),
            ),
        ];
        for (json, event_time) in taken {
            let want = Scanned { ip: b"i", host: b"h", event_time };
            assert_eq!(scan(json.as_bytes()), Some(want), "{json}");
        }
        for json in [
            "",
            "{}",
            "[]",
            r#"{"ip":"i","host":"h","event_time":17"#,
            r#"{"ip":"i","host":"h","event_time":17} x"#,
            r#"{"ip":"i","host":"h","event_time":17,}"#,
            r#"{"ip":"i","host":"h","event_time":017}"#,
            r#"{"ip":"i","host":"h","event_time":-1}"#,
            r#"{"ip":"i","host":"h","event_time":1.5}"#,
            r#"{"ip":"i","host":"h","event_time":9999999999999999999}"#,
            r#"{"ip":"\u0069","host":"h","event_time":17}"#,
            r#"{"ip":"i","host":null,"event_time":17}"#,
            r#"{"ip":"i","ip":"i","host":"h","event_time":17}"#,
            r#"{"ip":"i","host":"h","host":"h","event_time":17}"#,
            r#"{"ip":"i","host":"h","event_time":17,"event_time":17}"#,
            r#"{"ip":"i","host":"h"}"#,
            r#"{"a":"\x","ip":"i","host":"h","event_time":17}"#,
            r#"{"a":"\u00g9","ip":"i","host":"h","event_time":17}"#,
            r#"{"a":[[[[[]]]]],"ip":"i","host":"h","event_time":17}"#,
            r#"{"a":{"a":{"a":{"a":{"a":{}}}}},"ip":"i","host":"h","event_time":17}"#,
        ] {
            assert_eq!(scan(json.as_bytes()), None, "{json}");
        }
        let umlaut = scan(r#"{"ip":"i","host":"münchen","event_time":0}"#.as_bytes());
        assert_eq!(umlaut.map(|found| found.host), Some("münchen".as_bytes()));
    }
}
