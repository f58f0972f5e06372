//! What the program says about itself: completions and manual pages.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{
    args::Cli,
    exit::{Exit, Misconfigured},
    output::Output,
};

pub(super) fn completions(out: &Output, shell: Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "patchctl", &mut script);
    out.print(&String::from_utf8(script)?)?;
    Ok(Exit::Done)
}

pub(super) fn man(out: &Output, command: Option<&str>) -> anyhow::Result<Exit> {
    out.print(&page(command)?)?;
    Ok(Exit::Done)
}

fn page(command: Option<&str>) -> anyhow::Result<String> {
    let mut program = Cli::command();
    program.build();
    let subject = match command {
        None => program,
        Some(name) => match program.find_subcommand(name) {
            // Building has given it its display name, `patchctl-NAME`.
            Some(found) => found.clone(),
            None => return Err(Misconfigured(format!("there is no command {name}")).into()),
        },
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(subject).render(&mut page)?;
    Ok(String::from_utf8(page)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_exist_for_the_program_and_its_commands() {
        let main = page(None).unwrap();
        assert!(main.contains(".TH patchctl 1") && main.contains("Exit codes"), "{main}");
        assert!(page(Some("apply")).unwrap().contains("security\\-only"));
        assert!(page(Some("nothing")).is_err());
    }
}
