//! Whole numbers that people type, each with its bounds in its type, and the one sentence that refuses what is none.
//! Knows no flag and no setting.

use std::fmt;
use std::str::FromStr;

/// A number from `MIN` to `MAX`. Read from text, it is refused by a half-sentence that says what it may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Whole<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Whole<MIN, MAX> {
    /// One that is written in the program: outside its bounds it does not get past the first test.
    pub const fn of(number: u64) -> Self {
        assert!(MIN <= number && number <= MAX, "a number outside the bounds of its type");
        Whole(number)
    }

    /// The number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The same where a length or a count is wanted.
    pub const fn size(self) -> usize {
        self.0 as usize
    }
}

impl<const MIN: u64, const MAX: u64> FromStr for Whole<MIN, MAX> {
    type Err = NoSuchNumber;

    fn from_str(text: &str) -> Result<Self, NoSuchNumber> {
        let number = text.parse().ok().filter(|number| (MIN..=MAX).contains(number));
        number.map(Whole).ok_or(NoSuchNumber { min: MIN, max: MAX })
    }
}

/// What was expected of a text that is no such number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{EXPECTED}a whole number from {min} to {max}")]
pub struct NoSuchNumber {
    min: u64,
    max: u64,
}

/// What a half-sentence that names what was expected begins with, so that it is told from other complaints.
pub const EXPECTED: &str = "expected: ";

/// What a reader of command lines says of a value that it cannot take, as settings say it: `--limit "x" is not a whole
/// number from 0 to 100000`. None: it speaks of something else.
pub fn refusal(complaint: &str) -> Option<String> {
    let rest = complaint.trim_end().strip_prefix("Error parsing option '")?;
    let (flag, rest) = rest.split_once("' with value '")?;
    // The value may hold anything, the reason holds no such thing.
    let (value, reason) = rest.rsplit_once("': ")?;
    Some(match reason.strip_prefix(EXPECTED) {
        Some(expected) => format!("{flag} {value:?} is not {expected}"),
        None if reason.starts_with("duplicate values") => format!("{flag} is given more than once"),
        None => format!("{flag} {value:?}: {reason}"),
    })
}

impl<const MIN: u64, const MAX: u64> fmt::Display for Whole<MIN, MAX> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_within_its_bounds_is_read_and_another_is_refused_with_them() {
        assert_eq!("7".parse::<Whole<0, 10>>().map(Whole::number), Ok(7));
        assert_eq!("10".parse::<Whole<0, 10>>().map(Whole::size), Ok(10));
        for text in ["", "x", "-1", "11", "1.5", " 7", "99999999999999999999999"] {
            let refused = text.parse::<Whole<0, 10>>().unwrap_err();
            assert_eq!(refused.to_string(), "expected: a whole number from 0 to 10", "{text}");
        }
    }

    #[test]
    fn a_complaint_becomes_a_sentence_whatever_the_value_holds() {
        let complaint = |value: &str, reason: &str| {
            refusal(&format!("Error parsing option '--n' with value '{value}': {reason}\n"))
        };
        assert_eq!(complaint("x", "expected: a path"), Some("--n \"x\" is not a path".to_owned()));
        assert_eq!(complaint("', '': \n", "expected: a path"), Some("--n \"', '': \\n\" is not a path".to_owned()));
        assert_eq!(complaint("5", "duplicate values provided"), Some("--n is given more than once".to_owned()));
        assert_eq!(complaint("5", "it is odd"), Some("--n \"5\": it is odd".to_owned()));
        assert_eq!(refusal("Required options not provided:\n    --n\n"), None);
    }
}
