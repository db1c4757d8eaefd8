//! Whether a text mentions an address: for payloads that are not events, and so have no key that
//! says whose they are. Pure.

/// Whether `text` contains `token` as a whole: `10.0.0.1` is not in `10.0.0.12`, and is in
/// `"10.0.0.1:443"`. The case of letters does not matter. In binary data, any occurrence counts,
/// because a length may stand right before a string: better one payload too many.
pub(super) fn mentions(text: &[u8], token: &str) -> bool {
    let token = token.as_bytes();
    if token.is_empty() || text.len() < token.len() {
        return false;
    }
    let anywhere = !is_text(text);
    let same = |at: &usize| text[*at..*at + token.len()].eq_ignore_ascii_case(token);
    (0..=text.len() - token.len()).filter(same).any(|at| {
        let (before, after) = (&text[..at], &text[at + token.len()..]);
        let goes_on = goes_on(after.iter(), token) || goes_on(before.iter().rev(), token);
        anywhere || !goes_on
    })
}

fn is_text(bytes: &[u8]) -> bool {
    let control = |c: char| c.is_control() && !['\t', '\r', '\n'].contains(&c);
    std::str::from_utf8(bytes).is_ok_and(|text| !text.contains(control))
}

/// Whether what follows belongs to the same word or address: it is a letter or a digit, or a dot, a
/// hyphen or (in an address with colons) a colon before one.
fn goes_on<'a>(mut beside: impl Iterator<Item = &'a u8>, token: &[u8]) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || !byte.is_ascii();
    match beside.next() {
        Some(byte) if is_word(byte) => true,
        Some(b'.' | b'-') => beside.next().is_some_and(is_word),
        Some(b':') if token.contains(&b':') => {
            beside.next().is_some_and(|byte| is_word(byte) || *byte == b':')
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_as_a_whole_and_only_so() {
        for (text, token, found) in [
            (&br#"{"ip":"10.0.0.1","#[..], "10.0.0.1", true),
            (b"10.0.0.1", "10.0.0.1", true),
            (b"from 10.0.0.1:443.", "10.0.0.1", true),
            (b"10.0.0.1.", "10.0.0.1", true),
            (b"10.0.0.12", "10.0.0.1", false),
            (b"110.0.0.1", "10.0.0.1", false),
            (b"1.10.0.0.1", "10.0.0.1", false),
            (b"10.0.0.1.7", "10.0.0.1", false),
            (b"10.0.0.12, 10.0.0.1", "10.0.0.1", true),
            (b"\xff\xfe10.0.0.1", "10.0.0.1", true),
            (b"\x02\x0810.0.0.1shop", "10.0.0.1", true),
            ("ü10.0.0.1".as_bytes(), "10.0.0.1", false),
            (b"[2001:DB8::1]", "2001:db8::1", true),
            (b"2001:db8::1:2", "2001:db8::1", false),
            (b"2001:db8::12", "2001:db8::1", false),
            (b"::1", "2001:db8::1", false),
            (b"", "10.0.0.1", false),
            (b"10.0.0.1", "", false),
        ] {
            let shown = String::from_utf8_lossy(text);
            assert_eq!(mentions(text, token), found, "{token} in {shown}");
        }
    }
}
