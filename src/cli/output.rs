//! Standard output of the commands. What a command did is reported even if its output cannot be written.

use std::fmt::Arguments;
use std::io::{self, Write as _};

/// Prints a line; the text goes to standard error instead where a full disk refuses it.
pub fn print_line(line: Arguments<'_>) -> io::Result<()> {
    let written = writeln!(io::stdout(), "{line}").and_then(|()| io::stdout().flush());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            // Where that fails as well, nobody can be told.
            let _told = writeln!(io::stderr(), "{line}").is_ok();
            Err(io::Error::new(
                error.kind(),
                format!("standard output cannot be written: {error}"),
            ))
        }
        written => written,
    }
}

/// `println!` that returns an error where `println!` panics: on a closed pipe or a full disk.
macro_rules! output {
    ($($text:tt)*) => {
        $crate::cli::output::print_line(format_args!($($text)*))
    };
}
pub(crate) use output;
