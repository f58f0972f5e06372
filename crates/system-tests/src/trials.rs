//! Trials: tests that need root say so instead of failing, and show the whole story of an error.

use std::any::Any;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};

/// What takes longer is told with its time: the whole run has a limit.
const SLOW: Duration = Duration::from_secs(15);

/// A test named `name`. Without root it is reported as ignored, of the kind "needs root".
pub fn trial(name: &str, test: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> Trial {
    if rustix::process::geteuid().is_root() {
        let own = name.to_owned();
        Trial::test(name, move || {
            let begun = Instant::now();
            let result = test().map_err(|error| Failed::from(format!("{error:?}")));
            let took = begun.elapsed();
            if took > SLOW {
                eprintln!("{:>6.0} s  {own}", took.as_secs_f64());
            }
            result
        })
    } else {
        Trial::test(name, || Err(Failed::from("needs root"))).with_kind("needs root").with_ignored_flag(true)
    }
}

/// The `main` of a test binary made of trials.
#[must_use]
pub fn main(trials: Vec<Trial>) -> ExitCode {
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
