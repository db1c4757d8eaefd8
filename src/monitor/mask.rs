//! Addresses of visitors, masked: the last octet of an IPv4 address, the last 80 bits of an IPv6
//! address, and all but the beginning of anything else.

use std::net::IpAddr;

/// The address with its end removed.
pub fn mask(address: &str) -> String {
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(four)) => {
            let [a, b, c, _] = four.octets();
            format!("{a}.{b}.{c}.x")
        }
        Ok(IpAddr::V6(six)) => match six.to_ipv4_mapped() {
            Some(four) => mask(&four.to_string()),
            None => {
                let [a, b, c, ..] = six.segments();
                format!("{a:x}:{b:x}:{c:x}::x")
            }
        },
        Err(_) => {
            let start: String = address.chars().take(2).collect();
            format!("{start}…")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_address_is_not_shown() {
        for (address, shown) in [
            ("98.41.179.161", "98.41.179.x"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1::x"),
            ("::ffff:98.41.179.161", "98.41.179.x"),
            ("visitor-4711", "vi…"),
            ("98.41.179.161 ", "98…"),
            ("", "…"),
        ] {
            assert_eq!(mask(address), shown);
        }
    }
}
