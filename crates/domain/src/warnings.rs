//! Warnings of a copy.

use std::{fmt, str::FromStr};

use super::ForeignText;

/// Maximum number of warnings of a copy.
const MAX_WARNINGS: usize = 16;
/// Replaces further warnings.
const MORE: &str = "more warnings were omitted";

/// Parts that could not be copied although the image was: signatures that the source does not serve, layers that may
/// not be distributed, index entries that no store has. Each warning names the part and the reason. Holds at most 16
/// sentences of 512 bytes each, followed by a note if further ones were omitted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Warnings(Vec<ForeignText>);

impl Warnings {
    /// Adds a warning unless the list contains it.
    pub fn add(&mut self, warning: impl fmt::Display) {
        let warning = ForeignText::new(warning);
        if self.0.contains(&warning) {
            return;
        }
        match self.0.len() {
            0..MAX_WARNINGS => self.0.push(warning),
            MAX_WARNINGS => self.0.push(MORE.into()),
            _ => {}
        }
    }

    /// Adds the warnings of another list.
    pub fn extend(&mut self, others: &Self) {
        others.0.iter().for_each(|warning| self.add(warning.as_str()));
    }

    /// Whether there are no warnings.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the warnings in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(ForeignText::as_str)
    }

    /// Returns the warnings as strings.
    #[must_use]
    pub fn to_texts(&self) -> Vec<String> {
        self.iter().map(str::to_owned).collect()
    }
}

/// Formats one warning per line; warnings have no line breaks.
impl fmt::Display for Warnings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().collect::<Vec<_>>().join("\n"))
    }
}

impl FromStr for Warnings {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.lines().take(MAX_WARNINGS + 1).map(ForeignText::new).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_WARNINGS, Warnings};

    #[test]
    fn warnings_are_bounded_and_can_be_stored() {
        let mut warnings = Warnings::default();
        assert_eq!((warnings.to_string().as_str(), "".parse()), ("", Ok(warnings.clone())));
        for number in 0..1_000 {
            // A repeated warning is listed once.
            warnings.add(format_args!("{number}\n\u{202e}{}", "x".repeat(2_000)));
            warnings.add(format_args!("{number}\n\u{202e}{}", "x".repeat(2_000)));
        }
        let listed = warnings.to_texts();
        assert_eq!(listed.len(), MAX_WARNINGS + 1);
        assert!(listed[MAX_WARNINGS].contains("more warnings"), "{listed:?}");
        assert!(listed.iter().all(|warning| warning.len() <= 512 && !warning.contains(['\n', '\u{202e}'])));
        assert_eq!(warnings.to_string().parse(), Ok(warnings));
    }
}
