//! Asking again until there is an answer. Every request that is worth repeating is repeated here.
//!
//! Two waits are not: those of a start for Kafka and for Postgres, which go on as long as there are
//! signs of life, and the writer's, which has no end but that of the run.

use std::ops::ControlFlow::{self, Break, Continue};
use std::thread;
use std::time::{Duration, Instant};

/// Asks until `ask` breaks, with a pause after each failure. Once `timeout` is over, returns the
/// last failure. It asks at least once.
pub fn until<T, E>(
    timeout: Duration,
    pause: Duration,
    mut ask: impl FnMut() -> ControlFlow<T, E>,
) -> Result<T, E> {
    let began = Instant::now();
    loop {
        match ask() {
            Break(answer) => return Ok(answer),
            Continue(why) if began.elapsed() >= timeout => return Err(why),
            Continue(_) => thread::sleep(pause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_millis(1);

    #[test]
    fn the_first_answer_ends_it() {
        let mut asked = 0;
        let answer = until(Duration::from_secs(60), PAUSE, || {
            asked += 1;
            if asked == 3 { Break("yes") } else { Continue("not yet") }
        });
        assert_eq!((answer, asked), (Ok("yes"), 3));
    }

    #[test]
    fn the_last_failure_is_returned_and_even_without_patience_it_asks_once() {
        let mut asked = 0;
        let mut ask = || -> ControlFlow<(), u32> {
            asked += 1;
            Continue(asked)
        };
        assert_eq!(until(Duration::ZERO, PAUSE, &mut ask), Err(1));
        let why = until(4 * PAUSE, PAUSE, ask).expect_err("never answered");
        assert!(why > 2, "asked {why} times");
    }
}
