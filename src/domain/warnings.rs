//! What an image arrived without.

use std::{fmt, str::FromStr};

use super::ForeignText;

/// The most warnings that are listed of one copy.
const MAX_WARNINGS: usize = 16;
/// What stands in the list for those beyond.
const MORE: &str = "there were more warnings than are listed";

/// What could not be carried, although the image itself was: signatures that the source does not give out, layers that may not be
/// distributed, entries of an index that no store has. Each names what is missing, and why. At most 16 sentences of 512 bytes are kept;
/// one more says that there were others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Warnings(Vec<ForeignText>);

impl Warnings {
    /// Adds one, unless it is listed already.
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

    /// Adds those of another list.
    pub fn extend(&mut self, others: &Self) {
        others.0.iter().for_each(|warning| self.add(warning.as_str()));
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The warnings, in the order in which they arose.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(ForeignText::as_str)
    }

    /// The warnings as texts of their own.
    #[must_use]
    pub fn to_texts(&self) -> Vec<String> {
        self.iter().map(str::to_owned).collect()
    }
}

/// A line a warning: no warning has a line break.
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
    fn warnings_are_bounded_and_survive_being_stored() {
        let mut warnings = Warnings::default();
        assert_eq!((warnings.to_string().as_str(), "".parse()), ("", Ok(warnings.clone())));
        for number in 0..1_000 {
            // Once, however often it arises.
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
