//! Where output goes and how it looks there.

use std::{
    env,
    io::{self, IsTerminal, Write},
};

use comfy_table::Table;
use serde_json::value::RawValue;

use crate::{args::DisplayArgs, render::Style, render::clean};

/// The program's output.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) verbose: bool,
    pub(crate) style: Style,
    /// Whether a progress bar can be drawn.
    pub(crate) bar: bool,
    /// Whether there is somebody to ask.
    pub(crate) person: bool,
}

impl Output {
    pub(crate) fn new(args: &DisplayArgs) -> Self {
        let (stdout, stderr) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        let no_color = args.no_color || env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        // Where a program reads, a row must stay a line.
        let width = stdout.then(|| known(Table::new().width()).unwrap_or(80));
        Self {
            json: args.json,
            verbose: args.verbose,
            style: Style { width, color: stdout && !no_color && !dumb },
            // A bar is drawn by its terminal's width.
            bar: stderr && !dumb && !args.json && known(Table::new().use_stderr().width()).is_some(),
            person: stderr && io::stdin().is_terminal() && !args.json,
        }
    }

    /// Prints a text that has been rendered; ends it with a line feed if it does not end with one.
    pub(crate) fn print(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            stdout.write_all(b"\n")?;
        }
        stdout.flush()
    }

    /// Prints the agent's data as it came.
    pub(crate) fn json(&self, raw: &RawValue) -> io::Result<()> {
        self.print(&clean::json(raw.get()))
    }

    /// Prints either, as the user wishes.
    pub(crate) fn answer(&self, raw: &RawValue, render: impl FnOnce(&Style) -> String) -> io::Result<()> {
        if self.json { self.json(raw) } else { self.print(&render(&self.style)) }
    }

    /// A remark beside the answer.
    pub(crate) fn remark(&self, text: &str) {
        if !self.json {
            self.notice(text);
        }
    }

    /// A remark that is made with `--json` as well, on standard error: why there is no answer yet.
    pub(crate) fn notice(&self, text: &str) {
        eprintln!("{}", clean::text(text));
    }
}

/// A terminal's width. One that says 0, as consoles and terminals of tests do, does not know it.
fn known(width: Option<u16>) -> Option<u16> {
    width.filter(|width| *width > 0)
}

/// Asks for a yes on the terminal.
pub(crate) fn confirm(question: &str) -> io::Result<bool> {
    eprint!("{question} [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
