//! The lines of a `.env`: `NAME=value`, taken literally. There is no `$` substitution, since a password may contain a `$`.
//!
//! A project's `.env` is shared with other programs, whose lines may have a syntax of their own: a line that cannot be parsed is
//! skipped and its number kept for a warning, unless it sets a name of ours.

use std::collections::BTreeMap;

/// The values of a `.env`, and the lines that were skipped.
#[derive(Default)]
pub(super) struct EnvFile {
    pub(super) values: BTreeMap<String, String>,
    /// Numbers of lines, from 1, that are not `NAME=value`.
    pub(super) skipped: Vec<usize>,
}

/// A line that sets a name of ours and cannot be parsed. The line itself may hold a secret and is not repeated.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "line {line} of .env sets {name} and cannot be parsed; expected NAME=value, or NAME='value' where the value has spaces, quotes or #"
)]
pub(super) struct EnvLineError {
    line: usize,
    name: String,
}

impl EnvFile {
    /// Parses the text of a file; `is_ours` tells which names must be readable. Bytes that are not UTF-8 make a line unparsable.
    pub(super) fn parse(text: &[u8], is_ours: impl Fn(&str) -> bool) -> Result<Self, EnvLineError> {
        let mut file = Self::default();
        let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
        for (index, bytes) in text.split(|byte| *byte == b'\n').enumerate() {
            let number = index + 1;
            let line = String::from_utf8_lossy(bytes);
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let name = name(line);
            match (name, name.and_then(|_| value(line))) {
                (Some(name), Some(value)) if !value.contains('\u{FFFD}') => {
                    file.values.insert(name.to_owned(), value);
                }
                (Some(name), _) if is_ours(name) => {
                    let name = name.to_owned();
                    return Err(EnvLineError { line: number, name });
                }
                (Some(_) | None, _) => file.skipped.push(number),
            }
        }
        Ok(file)
    }
}

fn name(line: &str) -> Option<&str> {
    let (name, _) = line.split_once('=')?;
    let name = name.strip_prefix("export ").unwrap_or(name).trim();
    let is_name = |text: &str| {
        text.chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
    };
    (!name.is_empty() && is_name(name)).then_some(name)
}

/// A value in single quotes is taken as it is; in double quotes `\"` and `\\` are escapes; without quotes it ends at ` #`.
fn value(line: &str) -> Option<String> {
    let (_, text) = line.split_once('=')?;
    let text = text.trim();
    let is_rest = |rest: &str| {
        let rest = rest.trim_start();
        rest.is_empty() || rest.starts_with('#')
    };
    if let Some(quoted) = text.strip_prefix('\'') {
        let (value, rest) = quoted.split_once('\'')?;
        return is_rest(rest).then(|| value.to_owned());
    }
    let Some(quoted) = text.strip_prefix('"') else {
        let comment = text
            .char_indices()
            .zip(text.chars().skip(1))
            .find_map(|((at, c), next)| (c.is_whitespace() && next == '#').then_some(at));
        let value = comment.map_or(text, |at| text.get(..at).unwrap_or(text));
        let is_comment = text.starts_with('#');
        return Some(if is_comment { "" } else { value.trim_end() }.to_owned());
    };
    let mut value = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => return is_rest(characters.as_str()).then_some(value),
            '\\' => match characters.next()? {
                escaped @ ('"' | '\\') => value.push(escaped),
                other => value.extend(['\\', other]),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> EnvFile {
        EnvFile::parse(text.as_bytes(), |name| name == "DATABASE_URL").expect("parsed")
    }

    #[test]
    fn values_are_literal() {
        let file = parse(concat!(
            "# a comment\n",
            "\n",
            "A=pa$$word$HOME\n",
            "export B = 'it''s'\n",
            "C=\"a \\\" \\\\ \\n $x # no comment\" # a comment\r\n",
            "D=a#b # a comment\n",
            "E=\n",
            "F=#nothing\n",
            "G=postgres://u:p%23@h/d?sslmode=require&x=y\n",
            "H='#1 $2'",
        ));
        let values: Vec<(&str, &str)> = file
            .values
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            values,
            [
                ("A", "pa$$word$HOME"),
                ("C", "a \" \\ \\n $x # no comment"),
                ("D", "a#b"),
                ("E", ""),
                ("F", ""),
                ("G", "postgres://u:p%23@h/d?sslmode=require&x=y"),
                ("H", "#1 $2"),
            ]
        );
        assert_eq!(file.skipped, [4]);
    }

    #[test]
    fn a_line_of_another_program_is_skipped_and_its_number_kept() {
        let file = parse("just words\nA=1\nKEY=\"-----BEGIN\nabc/+==\n-----END\"\n=x\nB=2\n");
        assert_eq!(file.skipped, [1, 3, 4, 5, 6]);
        assert_eq!(file.values.len(), 2);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_name() {
        assert!(
            parse("\u{FEFF}DATABASE_URL=x")
                .values
                .contains_key("DATABASE_URL")
        );
    }

    #[test]
    fn a_line_of_ours_that_cannot_be_parsed_is_an_error_that_names_it_and_repeats_nothing() {
        for line in ["DATABASE_URL=\"hunter2", "export DATABASE_URL='hunter2' x"] {
            let error = EnvFile::parse(format!("A=1\n{line}\n").as_bytes(), |name| {
                name == "DATABASE_URL"
            });
            let text = error.err().expect("refused").to_string();
            assert!(text.contains("line 2 of .env sets DATABASE_URL"), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
