//! Settings behind the flags. clap reads `VISIT_PACER_<FLAG>` of the process; this adds those of `.env`, and reports malformed
//! values of both as settings (exit code 78), not as usage.

use std::error::Error as _;
use std::ffi::OsStr;

use clap::Command;
use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue};

use crate::settings::{Environment, SettingError};

/// Makes the values of `.env` the defaults of flags that have a variable. An empty variable counts as unset.
pub fn with_env_file(command: Command, environment: &Environment) -> Command {
    command.mut_subcommands(|subcommand| {
        subcommand.mut_args(|flag| {
            let variable = flag.get_env().and_then(OsStr::to_str);
            match variable.and_then(|name| environment.variable(name)) {
                Some("") => flag.env(Resettable::Reset),
                Some(value) => flag.default_value(value.to_owned()),
                None => flag,
            }
        })
    })
}

/// The setting that an error is about, if the value did not come from the command line.
pub fn malformed_setting(error: &clap::Error) -> Option<SettingError> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        Some(_) | None => None,
    };
    let flag = text(ContextKind::InvalidArg)?.split([' ', '[']).next()?;
    let is_flag = |argument: &str| argument.split('=').next() == Some(flag);
    if std::env::args_os().any(|argument| is_flag(&argument.to_string_lossy())) {
        return None;
    }
    let name = flag.strip_prefix("--")?.to_uppercase().replace('-', "_");
    let value = text(ContextKind::InvalidValue)?;
    let cause = error.source().map(|cause| format!(": {cause}"));
    Some(SettingError::new(format!(
        "VISIT_PACER_{name} is '{value}', which is not valid{}; see `visit-pacer help run`",
        cause.unwrap_or_default()
    )))
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    /// What `--listen` of a command `run` is with these values in the environment and in `.env`.
    fn listen(process: &[(&str, &str)], file: &[(&str, &str)]) -> String {
        let flag = Arg::new("listen").long("listen");
        let flag = flag.env("VISIT_PACER_LISTEN").default_value("default");
        let command = Command::new("test").subcommand(Command::new("run").arg(flag));
        let command = with_env_file(command, &Environment::of(process, file));
        let matches = command.get_matches_from(["test", "run"]);
        let (_, run) = matches.subcommand().unwrap();
        run.get_one::<String>("listen").unwrap().clone()
    }

    #[test]
    fn a_value_of_the_env_file_is_the_default_unless_the_environment_has_one() {
        let name = "VISIT_PACER_LISTEN";
        assert_eq!(listen(&[], &[]), "default");
        assert_eq!(listen(&[], &[(name, "file")]), "file");
        assert_eq!(listen(&[(name, "process")], &[(name, "file")]), "process");
        assert_eq!(listen(&[(name, "")], &[(name, "file")]), "default");
        assert_eq!(listen(&[], &[("VISIT_PACER_LISTEN_BY", "file")]), "default");
    }
}
