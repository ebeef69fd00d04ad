//! Patterns with `*` (any run of characters) and `?` (any one character).

/// Whether `text` matches `pattern`. Takes time in proportion to the product of their lengths at most.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on if what follows the last `*` turns out not to match: the star, and the text it has not swallowed yet.
    let mut back: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                back = Some((p, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match back {
                Some((star, swallowed)) => {
                    p = star + 1;
                    t = swallowed + 1;
                    back = Some((star, t));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::matches;

    /// The definition, as plainly as it can be written.
    fn plainly(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => plainly(rest, text) || (!text.is_empty() && plainly(pattern, &text[1..])),
            ([b'?', rest @ ..], [_, text @ ..]) => plainly(rest, text),
            ([c, rest @ ..], [d, text @ ..]) => c == d && plainly(rest, text),
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn it_is_the_definition(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            prop_assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), plainly(pattern.as_bytes(), text.as_bytes()));
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_time() {
        let (pattern, text) = ("a*".repeat(100) + "b", "a".repeat(5_000));
        assert!(!matches(pattern.as_bytes(), text.as_bytes()));
    }
}
