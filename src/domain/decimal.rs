//! Finite decimals as scaled integers: the text of a Postgres `numeric` in, an exact `i128` out. No floating point.

use thiserror::Error;

/// Why a text is not a decimal of the asked scale.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum DecimalError {
    /// `NaN`, `Infinity`, an empty text, or anything else that is no plain decimal.
    #[error("not a finite number")]
    NotFinite,
    /// More decimals than the scale holds, and they are not zeros.
    #[error("too many decimals")]
    TooManyDecimals,
    /// Beyond what 128 bits hold at this scale.
    #[error("too large")]
    TooLarge,
}

/// So many digits of any number fit into an `i64`, where arithmetic is cheap.
const DIGITS_IN_64_BITS: usize = 18;

/// Parses `text` into `value × 10^decimals`.
pub fn parse_scaled(text: &str, decimals: u32) -> Result<i128, DecimalError> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let fraction = fraction.trim_end_matches('0');
    let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return Err(DecimalError::NotFinite);
    }
    let places = u32::try_from(fraction.len()).map_err(|_| DecimalError::TooManyDecimals)?;
    let missing = decimals
        .checked_sub(places)
        .ok_or(DecimalError::TooManyDecimals)?;
    let value = number(whole, fraction)?;
    let scaled = 10_i128
        .checked_pow(missing)
        .and_then(|power| value.checked_mul(power))
        .ok_or(DecimalError::TooLarge)?;
    Ok(if negative { -scaled } else { scaled })
}

/// The number that has these digits, one part after the other.
fn number(whole: &str, fraction: &str) -> Result<i128, DecimalError> {
    let digits = whole.bytes().chain(fraction.bytes());
    let digits = digits.map(|digit| digit - b'0');
    if whole.len() + fraction.len() <= DIGITS_IN_64_BITS {
        return Ok(digits
            .fold(0_i64, |value, digit| value * 10 + i64::from(digit))
            .into());
    }
    let mut value: i128 = 0;
    for digit in digits {
        value = value
            .checked_mul(10)
            .and_then(|v| v.checked_add(i128::from(digit)))
            .ok_or(DecimalError::TooLarge)?;
    }
    Ok(value)
}

/// Writes `value / 10^decimals` as Postgres reads it.
pub fn format_scaled(value: i128, decimals: u32) -> String {
    let sign = if value < 0 { "-" } else { "" };
    let magnitude = value.unsigned_abs();
    let power = 10_u128.pow(decimals);
    let (whole, fraction) = (magnitude / power, magnitude % power);
    let width = usize::try_from(decimals).unwrap_or(0);
    if width == 0 {
        format!("{sign}{whole}")
    } else {
        format!("{sign}{whole}.{fraction:0width$}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_numeric_of_postgres_is_read_exactly() {
        assert_eq!(parse_scaled("33.33", 9), Ok(33_330_000_000));
        assert_eq!(parse_scaled("6250.00", 9), Ok(6_250_000_000_000));
        assert_eq!(parse_scaled("0.000000001", 9), Ok(1));
        assert_eq!(parse_scaled("1.0000000000000", 9), Ok(1_000_000_000));
        assert_eq!(parse_scaled("-5", 0), Ok(-5));
    }

    #[test]
    fn what_is_not_a_finite_decimal_of_the_scale_is_refused() {
        for text in [
            "NaN",
            "Infinity",
            "-Infinity",
            "",
            ".",
            "-",
            "1e5",
            "+1",
            "1.2.3",
            "１",
        ] {
            assert_eq!(
                parse_scaled(text, 9),
                Err(DecimalError::NotFinite),
                "{text:?}"
            );
        }
        assert_eq!(
            parse_scaled("0.0000000001", 9),
            Err(DecimalError::TooManyDecimals)
        );
        assert_eq!(
            parse_scaled(&"9".repeat(60), 9),
            Err(DecimalError::TooLarge)
        );
    }

    proptest! {
        #[test]
        fn formatting_and_parsing_are_inverse(value in -(10_i128.pow(30))..10_i128.pow(30), decimals in 0_u32..13) {
            prop_assert_eq!(parse_scaled(&format_scaled(value, decimals), decimals), Ok(value));
        }

        #[test]
        fn no_text_panics(text in ".*", decimals in 0_u32..13) {
            let _ = parse_scaled(&text, decimals);
        }
    }
}
