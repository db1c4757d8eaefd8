//! The progress bars of the process; log lines are written above them.

use indicatif::{HumanCount, ProgressDrawTarget, ProgressState, ProgressStyle};

/// A style with `{rate}`: records a second, as a whole number.
pub fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("a valid template");
    style.with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let rate = HumanCount(state.per_sec() as u64);
        write!(out, "{rate}/s").expect("writing to a string cannot fail");
    })
}

/// All bars of the process.
pub fn bars() -> &'static indicatif::MultiProgress {
    static BARS: std::sync::OnceLock<indicatif::MultiProgress> = std::sync::OnceLock::new();
    BARS.get_or_init(|| {
        indicatif::MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(4))
    })
}
