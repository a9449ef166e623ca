//! `visit-pacer completions` and `visit-pacer man`: what shells and `man` know of the command line, from its own definition.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Cli;

/// Flags of `completions`.
#[derive(clap::Args)]
pub struct CompletionsArgs {
    /// Such as: source <(visit-pacer completions bash)
    shell: Shell,
}

/// Flags of `man`.
#[derive(clap::Args)]
pub struct ManArgs {
    /// A folder for visit-pacer.1, visit-pacer-run.1 and so on, such as /usr/local/share/man/man1
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints them.
pub fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "visit-pacer", &mut text);
    std::io::stdout().lock().write_all(&text)?;
    Ok(())
}

/// Prints the page, or writes all.
pub fn man(args: &ManArgs) -> anyhow::Result<()> {
    let command = Cli::command();
    match &args.out {
        Some(folder) => std::fs::create_dir_all(folder)
            .and_then(|()| clap_mangen::generate_to(command, folder))
            .with_context(|| format!("write the manual pages into {}", folder.display())),
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            std::io::stdout().lock().write_all(&page)?;
            Ok(())
        }
    }
}
