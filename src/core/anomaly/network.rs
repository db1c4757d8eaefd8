//! The network of an address: the first 24 bits of IPv4, the first 48 of IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The network of `ip` as text; `None` if it is not an address.
///
/// ```
/// use sessionizer_core::anomaly::network;
///
/// assert_eq!(network("192.0.2.77").as_deref(), Some("192.0.2.0/24"));
/// assert_eq!(network("2001:db8:1:2::3").as_deref(), Some("2001:db8:1::/48"));
/// assert_eq!(network("::ffff:192.0.2.77").as_deref(), Some("192.0.2.0/24"));
/// assert_eq!(network("proxy.example"), None);
/// ```
pub fn network(ip: &str) -> Option<String> {
    match ip.parse::<IpAddr>().ok()?.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            Some(format!("{}/24", Ipv4Addr::new(a, b, c, 0)))
        }
        IpAddr::V6(ip) => {
            let [a, b, c, ..] = ip.segments();
            Some(format!("{}/48", Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0)))
        }
    }
}
