//! What a program of ours says about itself: manual pages and shell completions, made from its grammar.
//!
//! The grammar knows options and commands. What else belongs into a manual (files, examples, the environment) is a
//! [`Manual`], which stands beside the grammar.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use clap::Command;
pub use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

/// What a manual page says beyond the grammar. The exit codes are the grammar's `after_help`.
#[derive(Debug, Clone, Copy)]
pub struct Manual {
    /// The manual's section: `"1"` for everybody's programs, `"8"` for root's.
    pub section: &'static str,
    /// Variables and what they mean.
    pub environment: &'static [(&'static str, &'static str)],
    /// Files and what they are.
    pub files: &'static [(&'static str, &'static str)],
    /// Command lines and what they do.
    pub examples: &'static [(&'static str, &'static str)],
    /// Other pages, such as `patchctl(1)`.
    pub see_also: &'static [&'static str],
}

/// The completion script of `command` for a shell.
#[must_use]
pub fn completions(mut command: Command, shell: Shell) -> String {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The manual page of the program, or of one of its commands; none if there is no such command. The commands of a
/// command are separated by spaces.
///
/// # Errors
/// When the page cannot be put together, which does not depend on the outside.
pub fn page(command: Command, manual: &Manual, name: Option<&str>) -> io::Result<Option<String>> {
    let program = built(command);
    let mut subject = &program;
    for part in name.iter().flat_map(|name| name.split_whitespace()) {
        match subject.find_subcommand(part) {
            Some(found) => subject = found,
            None => return Ok(None),
        }
    }
    render(subject, manual, name.is_none()).map(Some)
}

/// Writes the pages of the program and of all its commands into `directory`, which is made if it is missing. They are
/// named as `man` looks for them, `patchctl-apply.1` for one.
///
/// # Errors
/// When the directory or a page cannot be written.
pub fn write_pages(command: Command, manual: &Manual, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let program = built(command);
    let mut rest = vec![(&program, true)];
    while let Some((subject, is_program)) = rest.pop() {
        let name = subject.get_display_name().unwrap_or_else(|| subject.get_name());
        let text = render(subject, manual, is_program)?;
        fs::write(directory.join(format!("{name}.{}", manual.section)), text)?;
        rest.extend(subject.get_subcommands().filter(|command| !command.is_hide_set()).map(|c| (c, false)));
    }
    Ok(())
}

/// Building gives each command its display name, `patchctl-apply` for one. A page about `help` helps nobody.
fn built(command: Command) -> Command {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    command
}

fn render(subject: &Command, manual: &Manual, is_program: bool) -> io::Result<String> {
    let man = Man::new(subject.clone()).section(manual.section);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if subject.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut page)?;
    }
    if subject.get_subcommands().any(|command| !command.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    if is_program {
        further(subject, manual, &mut page)?;
    }
    String::from_utf8(page).map_err(io::Error::other)
}

/// The sections that only the program's own page has.
fn further(program: &Command, manual: &Manual, page: &mut impl Write) -> io::Result<()> {
    let mut roff = Roff::default();
    if let Some(codes) = program.get_after_help() {
        roff.control("SH", ["EXIT STATUS"]);
        roff.control("nf", []);
        for line in codes.to_string().lines().filter(|line| *line != "Exit codes:") {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
    }
    for (title, entries) in [("ENVIRONMENT", manual.environment), ("FILES", manual.files)] {
        if !entries.is_empty() {
            roff.control("SH", [title]);
        }
        for (name, meaning) in entries {
            roff.control("TP", []);
            roff.text([bold(*name)]);
            roff.text([roman(*meaning)]);
        }
    }
    if !manual.examples.is_empty() {
        roff.control("SH", ["EXAMPLES"]);
    }
    for (line, meaning) in manual.examples {
        roff.control("PP", []);
        roff.text([roman(*meaning)]);
        roff.control("PP", []);
        roff.control("RS", ["4"]);
        roff.text([bold(*line)]);
        roff.control("RE", []);
    }
    if !manual.see_also.is_empty() {
        roff.control("SH", ["SEE ALSO"]);
        roff.text([roman(manual.see_also.join(", "))]);
    }
    roff.to_writer(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANUAL: Manual = Manual {
        section: "8",
        environment: &[("TOOL_HOST", "The host.")],
        files: &[("/etc/tool", "What it reads.")],
        examples: &[("tool do --fast", "Does it fast.")],
        see_also: &["other(1)"],
    };

    fn tool() -> Command {
        Command::new("tool")
            .about("Does things")
            .after_help("Exit codes:\n  0    done\n  1    not done")
            .subcommand(Command::new("do").about("Do it").subcommand(Command::new("now").about("At once")))
            .subcommand(Command::new("secret").hide(true))
    }

    #[test]
    fn the_programs_page_has_all_sections() {
        let page = page(tool(), &MANUAL, None).unwrap().unwrap();
        for section in ["NAME", "EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"] {
            assert!(
                page.contains(&format!(".SH \"{section}\"")) || page.contains(&format!(".SH {section}")),
                "{page}"
            );
        }
        assert!(page.contains("1    not done") && page.contains("tool do \\-\\-fast"), "{page}");
        assert!(!page.contains("Exit codes:"), "{page}");
    }

    #[test]
    fn a_command_has_a_page_and_nothing_else_has() {
        let now = page(tool(), &MANUAL, Some("do now")).unwrap().unwrap();
        assert!(now.contains("tool\\-do\\-now") && !now.contains("EXAMPLES"), "{now}");
        assert!(page(tool(), &MANUAL, Some("nothing")).unwrap().is_none());
    }

    #[test]
    fn all_pages_are_written_but_hidden_ones() {
        let directory = std::env::temp_dir().join(format!("patch-manual-{}", std::process::id()));
        write_pages(tool(), &MANUAL, &directory).unwrap();
        let mut names: Vec<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(names, ["tool-do-now.8", "tool-do.8", "tool.8"]);
    }

    #[test]
    fn every_shell_has_completions() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            assert!(completions(tool(), shell).contains("tool"), "{shell}");
        }
    }
}
