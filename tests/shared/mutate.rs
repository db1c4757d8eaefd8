//! Input that is almost right, for whatever reads bytes from outside: a valid one in which a few
//! pieces were cut out, repeated or put in, and bits flipped. `SESSIONIZER_FUZZ` is the number of
//! inputs for each target.

use super::rng::Rng;

/// How many inputs each target gets by default: enough for a second.
const INPUTS: u64 = 20_000;

/// Calls `check` with changed copies of the seeds. The failing input is in the panic's message if
/// the check puts it there; the number of the input is always.
pub fn fuzz(seeds: &[&[u8]], pieces: &[&[u8]], mut check: impl FnMut(&[u8])) {
    let inputs = std::env::var("SESSIONIZER_FUZZ")
        .map_or(INPUTS, |number| number.parse().expect("SESSIONIZER_FUZZ is a number"));
    let mut rng = Rng::new(inputs);
    for at in 0..inputs {
        let mut bytes = seeds[at as usize % seeds.len()].to_vec();
        for _ in 0..rng.below(5) {
            change(&mut rng, &mut bytes, pieces);
        }
        check(&bytes);
    }
    println!("{inputs} inputs");
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, pieces: &[&[u8]]) {
    let at = rng.below(bytes.len() as u64 + 1) as usize;
    let to = bytes.len().min(at + rng.below(12) as usize);
    match rng.below(6) {
        0 => drop(bytes.drain(at..to)),
        1 => bytes.truncate(at),
        2 => {
            let again = bytes[at..to].to_vec();
            bytes.splice(at..at, again);
        }
        3 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
        4 if at < bytes.len() => bytes[at] = rng.below(256) as u8,
        _ if pieces.is_empty() => bytes.insert(at, rng.below(256) as u8),
        _ => {
            let piece = pieces[rng.below(pieces.len() as u64) as usize];
            bytes.splice(at..to, piece.iter().copied());
        }
    }
}
