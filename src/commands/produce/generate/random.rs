//! The generator's own random numbers: xoshiro256++, seeded by splitmix64.
//!
//! The stream of a seed is the same for ever, on every machine: tests and benchmarks rely on it. So
//! it depends on no library whose next version may differ, and floating point is limited to
//! operations that IEEE 754 defines to the last bit (+, −, ×, ÷, √; never a logarithm or a sine).
//! Not for secrets.

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Random([u64; 4]);

/// Scrambles `x`: one step of splitmix64. It is a bijection, so different inputs stay different.
pub fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Random {
    /// Stream number `stream` of `seed`; the streams of one seed are independent of each other.
    pub fn new(seed: u64, stream: u64) -> Self {
        let start = mix(seed) ^ mix(!stream);
        Random([1, 2, 3, 4].map(|i| mix(start.wrapping_add(mix(i)))))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.0;
        let bits = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        bits
    }

    /// Uniform in 0 .. `end` (exclusive); 0 if `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    /// Uniform in 0.0 .. 1.0 (exclusive).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with probability `ratio`: never for 0.0, always for 1.0.
    pub fn chance(&mut self, ratio: f64) -> bool {
        self.unit() < ratio
    }

    /// Around `mean`: many small and a few large values, none above three times the mean.
    pub fn spread(&mut self, mean: f64) -> f64 {
        let unit = self.unit();
        3.0 * mean * unit * unit
    }

    /// One of `choices`, which must not be empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_of_a_seed_never_changes() {
        let mut random = Random::new(1, 0);
        let got: Vec<u64> = (0..4).map(|_| random.bits()).collect();
        let want = [
            0x8a73_8b6c_7f74_c020,
            0x40f3_93d3_eef5_1c4c,
            0xbd02_9985_c9a3_6737,
            0x08ed_6c01_fc6a_b290,
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn the_step_is_xoshiro_256_plus_plus() {
        // The first outputs of the reference implementation for the state 1, 2, 3, 4.
        let mut random = Random([1, 2, 3, 4]);
        let got: Vec<u64> = (0..4).map(|_| random.bits()).collect();
        assert_eq!(got, [41_943_041, 58_720_359, 3_588_806_011_781_223, 3_591_011_842_654_386]);
    }

    #[test]
    fn seeds_and_streams_differ() {
        let mut firsts: Vec<u64> = (0..100)
            .flat_map(|i| [(i, 0), (0, i + 1)])
            .map(|(s, t)| Random::new(s, t).bits())
            .collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 200);
    }

    #[test]
    fn draws_keep_their_range_and_their_mean() {
        let mut random = Random::new(7, 7);
        let n = 200_000;
        let (mut sum, mut spread) = (0, 0.0);
        for _ in 0..n {
            let draw = random.below(10);
            assert!(draw < 10);
            sum += draw;
            let wide = random.spread(5.0);
            assert!((0.0..15.0).contains(&wide));
            spread += wide;
        }
        assert!((sum as f64 / n as f64 - 4.5).abs() < 0.03, "{sum}");
        assert!((spread / n as f64 - 5.0).abs() < 0.05, "{spread}");
        assert!((0..1_000).all(|_| random.chance(1.0) && !random.chance(0.0)));
        assert_eq!(random.below(0), 0);
    }
}
