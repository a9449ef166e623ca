//! Lengths of time as people write and read them: `1d12h`, `3 h 12 min`.

use anyhow::{Context as _, ensure};

use crate::domain::time::SECOND_US;

/// Letter, name and seconds of each unit, the longest first.
const UNITS: [(char, &str, i64); 4] = [
    ('d', "d", 86_400),
    ('h', "h", 3_600),
    ('m', "min", 60),
    ('s', "s", 1),
];

/// Microseconds of a text such as `24h`, `90m` or `1d12h`; more than 0.
pub fn parse(text: &str) -> anyhow::Result<i64> {
    const EXPECTED: &str = "use numbers with d, h, m or s, such as 24h, 90m or 1d12h";
    let mut seconds: i64 = 0;
    for part in text.split_inclusive(|c: char| !c.is_ascii_digit()) {
        let unit = |(letter, _, size)| Some((part.strip_suffix(letter)?, size));
        let (number, size): (&str, i64) = UNITS.into_iter().find_map(unit).context(EXPECTED)?;
        let part = number.parse::<i64>().ok().and_then(|n| n.checked_mul(size));
        let sum = part.and_then(|part| seconds.checked_add(part));
        seconds = sum.context(EXPECTED)?;
    }
    let micros = seconds.checked_mul(SECOND_US).context(EXPECTED)?;
    ensure!(micros > 0, EXPECTED);
    Ok(micros)
}

/// The two largest units of a time, such as `3 h 12 min`.
pub fn words(seconds: i64) -> String {
    let mut left = seconds.max(0);
    let parts = UNITS.map(|(_, name, size)| {
        let number = left / size;
        left %= size;
        (number, name)
    });
    let first = parts.iter().position(|(number, _)| *number > 0);
    let words: Vec<String> = (parts.iter().skip(first.unwrap_or(3)).take(2))
        .filter(|(number, name)| *number > 0 || (first.is_none() && *name == "s"))
        .map(|(number, name)| format!("{number} {name}"))
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_numbers_with_units() {
        let seconds = |text| parse(text).map(|micros| micros / SECOND_US).ok();
        assert_eq!(seconds("24h"), Some(86_400));
        assert_eq!(seconds("1d12h"), Some(129_600));
        assert_eq!(seconds("90m30s"), Some(5_430));
        for bad in [
            "",
            "24",
            "h",
            "0s",
            "1w",
            "-1h",
            "1.5h",
            "１h",
            "99999999999999999d",
        ] {
            assert_eq!(seconds(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn words_are_the_two_largest_units() {
        assert_eq!(words(-3), "0 s");
        assert_eq!(words(59), "59 s");
        assert_eq!(words(60), "1 min");
        assert_eq!(words(150), "2 min 30 s");
        assert_eq!(words(11_520), "3 h 12 min");
        assert_eq!(words(3_600 * 24 * 4 + 3_700), "4 d 1 h");
        assert_eq!(words(86_400 + 60), "1 d");
    }
}
