//! Patterns with `*` (any run of characters, none too) and `?` (any one character).

/// How letters are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// As they are.
    Heeded,
    /// Those of ASCII without their case.
    Ignored,
}

impl Case {
    fn same(self, a: u8, b: u8) -> bool {
        match self {
            Self::Heeded => a == b,
            Self::Ignored => a.eq_ignore_ascii_case(&b),
        }
    }
}

/// Whether `text` matches `pattern`. Takes time in proportion to the product of their lengths at most, and no memory.
pub fn matches(pattern: &str, text: &str, case: Case) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on if what follows the last `*` turns out not to match: after the star, and the text it has not swallowed yet.
    let mut back: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                back = Some((p, t));
            }
            Some(b'?') => {
                p += 1;
                t += width(text[t]);
            }
            Some(&c) if case.same(c, text[t]) => {
                p += 1;
                t += 1;
            }
            _ => match back {
                Some((after, swallowed)) => {
                    p = after;
                    t = swallowed + width(text[swallowed]);
                    back = Some((after, t));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// How many bytes the character has that begins with this one (RFC 3629, section 3).
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

    /// The definition, as plainly as it can be written.
    fn plainly(pattern: &[char], text: &[char]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            (['*', rest @ ..], _) => plainly(rest, text) || (!text.is_empty() && plainly(pattern, &text[1..])),
            (['?', rest @ ..], [_, text @ ..]) => plainly(rest, text),
            ([c, rest @ ..], [d, text @ ..]) => c == d && plainly(rest, text),
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn it_is_the_definition(pattern in "[abé語😀*?]{0,8}", text in "[abé語😀]{0,8}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &text, Case::Heeded), plainly(&chars(&pattern), &chars(&text)));
            let shouted = text.to_ascii_uppercase();
            prop_assert_eq!(matches(&pattern, &shouted, Case::Ignored), matches(&pattern, &text, Case::Heeded));
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_time() {
        let (pattern, text) = ("a*".repeat(100) + "b", "a".repeat(5_000));
        assert!(!matches(&pattern, &text, Case::Heeded));
    }
}
