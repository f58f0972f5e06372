//! What the program says about itself: completions and manual pages.

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::{args::Cli, exit::Exit, screen::Screen};

pub(crate) fn completions(screen: &mut Screen, shell: Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "linux-patch-host", &mut script);
    screen.raw(&String::from_utf8(script)?);
    Ok(Exit::Done)
}

pub(crate) fn man(screen: &mut Screen, command: Option<&str>) -> anyhow::Result<Exit> {
    screen.raw(&page(command)?);
    Ok(Exit::Done)
}

fn page(command: Option<&str>) -> anyhow::Result<String> {
    let mut program = Cli::command();
    program.build();
    let subject = match command {
        None => program,
        Some(name) => {
            program.find_subcommand(name).with_context(|| format!("there is no command {name}"))?.clone()
        }
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(subject).section("8").render(&mut page)?;
    Ok(String::from_utf8(page)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_exist_for_the_program_and_its_commands() {
        let main = page(None).unwrap();
        assert!(main.contains(".TH linux-patch-host 8") && main.contains("Exit codes"), "{main}");
        assert!(page(Some("rollback")).unwrap().contains("force"));
        assert!(page(Some("nothing")).is_err());
    }
}
