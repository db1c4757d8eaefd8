//! Random numbers that tell two of something apart.

/// An identifier that nothing else has.
pub fn id() -> u64 {
    let mut bytes = [0; 8];
    openssl::rand::rand_bytes(&mut bytes).expect("OpenSSL has random numbers");
    u64::from_ne_bytes(bytes)
}
