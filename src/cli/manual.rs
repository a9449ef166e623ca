//! `visit-pacer completions` and `visit-pacer man`: shell completions and manual pages, generated from the definition of the flags.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Command;
use clap_complete::Shell;

/// Flags of `completions`.
#[derive(clap::Args)]
pub struct CompletionsArgs {
    /// Shell, as in: source <(visit-pacer completions bash)
    shell: Shell,
}

/// Flags of `man`.
#[derive(clap::Args)]
pub struct ManArgs {
    /// Folder for visit-pacer.1, visit-pacer-run.1 and so on, such as /usr/local/share/man/man1
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints the completions.
pub fn completions(args: &CompletionsArgs, mut command: Command) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "visit-pacer", &mut text);
    std::io::stdout().lock().write_all(&text)?;
    Ok(())
}

/// Prints one page, or writes all.
pub fn man(args: &ManArgs, command: Command) -> anyhow::Result<()> {
    match &args.out {
        Some(folder) => std::fs::create_dir_all(folder)
            .and_then(|()| clap_mangen::generate_to(command, folder))
            .with_context(|| format!("cannot write the manual pages into {}", folder.display())),
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            std::io::stdout().lock().write_all(&page)?;
            Ok(())
        }
    }
}
