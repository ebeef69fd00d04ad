//! Patterns with `*` (any number of characters) and `?` (one character).

/// Case sensitivity of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// `a` and `A` differ.
    Sensitive,
    /// `a` and `A` are equal; ASCII only.
    Insensitive,
}

impl Case {
    fn same(self, a: u8, b: u8) -> bool {
        match self {
            Self::Sensitive => a == b,
            Self::Insensitive => a.eq_ignore_ascii_case(&b),
        }
    }
}

/// Whether `text` matches `pattern`. The time is at most proportional to the product of their lengths. Does not
/// allocate.
pub fn matches(pattern: &str, text: &str, case: Case) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to backtrack to: the pattern after the last `*`, and the text after the part that the `*` matches so far.
    let mut backtrack: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                backtrack = Some((p, t));
            }
            Some(b'?') => {
                p += 1;
                t += width(text[t]);
            }
            Some(&c) if case.same(c, text[t]) => {
                p += 1;
                t += 1;
            }
            _ => match backtrack {
                Some((after, unmatched)) => {
                    p = after;
                    t = unmatched + width(text[unmatched]);
                    backtrack = Some((after, t));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// Returns the length in bytes of the character with this first byte (RFC 3629, section 3).
fn width(first: u8) -> usize {
    match first {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Case, matches};

    /// A naive implementation of the definition.
    fn naive_matches(pattern: &[char], text: &[char]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            (['*', rest @ ..], _) => {
                naive_matches(rest, text) || (!text.is_empty() && naive_matches(pattern, &text[1..]))
            }
            (['?', rest @ ..], [_, text @ ..]) => naive_matches(rest, text),
            ([c, rest @ ..], [d, text @ ..]) => c == d && naive_matches(rest, text),
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn matches_agrees_with_the_definition(pattern in "[abé語😀*?]{0,8}", text in "[abé語😀]{0,8}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &text, Case::Sensitive), naive_matches(&chars(&pattern), &chars(&text)));
            let shouted = text.to_ascii_uppercase();
            prop_assert_eq!(matches(&pattern, &shouted, Case::Insensitive), matches(&pattern, &text, Case::Sensitive));
        }
    }

    #[test]
    fn matching_takes_polynomial_time() {
        let (pattern, text) = ("a*".repeat(100) + "b", "a".repeat(5_000));
        assert!(!matches(&pattern, &text, Case::Sensitive));
    }
}
