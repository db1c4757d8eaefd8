//! The hasher of the maps that every row goes through.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Hashes the keys of a window, with a seed that nobody outside can know.
#[derive(Clone)]
pub struct Mixing(u64);

impl Default for Mixing {
    fn default() -> Self {
        static SEED: OnceLock<u64> = OnceLock::new();
        Mixing(*SEED.get_or_init(|| RandomState::new().build_hasher().finish()))
    }
}

impl BuildHasher for Mixing {
    type Hasher = Mixed;

    fn build_hasher(&self) -> Mixed {
        Mixed { seed: self.0, mixed: self.0 }
    }
}

/// Mixes the parts of a key. It is faster than the standard library's hasher, which matters in a
/// backlog.
pub struct Mixed {
    seed: u64,
    mixed: u64,
}

impl Mixed {
    fn mix(&mut self, part: u64) {
        self.mixed = (self.mixed.rotate_left(5) ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.mixed ^ (self.mixed >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        self.mix(xxh3_64_with_seed(bytes, self.seed));
    }

    fn write_u16(&mut self, part: u16) {
        self.mix(u64::from(part));
    }

    fn write_u64(&mut self, part: u64) {
        self.mix(part);
    }

    fn write_i64(&mut self, part: i64) {
        self.mix(part as u64);
    }

    fn write_usize(&mut self, part: usize) {
        self.mix(part as u64);
    }
}
