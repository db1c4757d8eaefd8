//! A string that never appears in a log, an error or a page.

use std::fmt;

/// A password or another secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Secret(value.into())
    }

    /// The value. Call it only to hand the value to the library that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_revealed_to_who_asks_and_does_not_print() {
        let secret = Secret::new("hunter2");
        assert_eq!(secret.reveal(), "hunter2");
        assert_eq!(format!("{:?}", Some(secret)), "Some((secret))");
    }
}
