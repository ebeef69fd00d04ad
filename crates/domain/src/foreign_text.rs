//! Untrusted text, such as a message of a store, a provider or a caller, made safe for errors, rows, log lines, headers
//! and terminals.

use std::{
    borrow::Cow,
    fmt::{self, Display, Write as _},
    ops::Deref,
};

/// Maximum length of a sentence, in bytes of UTF-8.
const MAX_SENTENCE: usize = 512;
/// Maximum length of a whole error, in bytes of UTF-8. An error response contains the text once percent-encoded in its
/// message and three times in its Base64 details. Together they fit into 8 KiB of headers, which every gRPC client
/// accepts.
const MAX_MESSAGE: usize = 768;
/// Maximum length of a value in an error, in bytes of UTF-8.
const MAX_VALUE: usize = 160;
/// Replaces the rest of a truncated text.
const ELLIPSIS: char = '…';

/// Untrusted text of bounded length on one line. Characters that move the cursor, hide text or change its direction are
/// escaped in the form `\u{202e}`. Limits are in bytes.
///
/// `Debug` quotes the text, for errors that repeat a value.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ForeignText(String);

impl ForeignText {
    /// Creates a sentence or line of at most 512 bytes.
    pub fn new(text: impl Display) -> Self {
        Self::limited(MAX_SENTENCE, text)
    }

    /// Creates a whole error message of at most 768 bytes.
    pub fn message(text: impl Display) -> Self {
        Self::limited(MAX_MESSAGE, text)
    }

    /// Creates a value for an error message, of at most 160 bytes.
    pub fn value(text: impl Display) -> Self {
        Self::limited(MAX_VALUE, text)
    }

    /// Creates a text of at most `limit` bytes. Formatting stops at the limit.
    pub fn limited(limit: usize, text: impl Display) -> Self {
        let mut bounded = Bounded { text: String::new(), limit, is_truncated: false };
        // Fails only where the text is truncated.
        let _ = write!(bounded, "{text}");
        bounded.finish()
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the text is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Writer that stops at a limit.
struct Bounded {
    text: String,
    limit: usize,
    is_truncated: bool,
}

impl Bounded {
    fn finish(mut self) -> ForeignText {
        if self.is_truncated {
            while self.text.len() + ELLIPSIS.len_utf8() > self.limit && self.text.pop().is_some() {}
            self.text.push(ELLIPSIS);
        }
        ForeignText(self.text)
    }
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let before = self.text.len();
            if is_unprintable(c) {
                write_escaped(&mut self.text, c);
            } else {
                self.text.push(c);
            }
            if self.text.len() > self.limit {
                self.text.truncate(before);
                self.is_truncated = true;
                return Err(fmt::Error);
            }
        }
        Ok(())
    }
}

fn write_escaped(text: &mut String, c: char) {
    match c {
        '\n' => text.push_str("\\n"),
        '\r' => text.push_str("\\r"),
        '\t' => text.push_str("\\t"),
        c => text.extend(c.escape_unicode()),
    }
}

/// Whether a character controls a terminal, or reorders or hides text: control characters (Unicode general category
/// Cc), line and paragraph separators, bidirectional controls (UAX #9, section 2), the byte order mark, interlinear
/// annotations and tags.
#[must_use]
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Escapes the unprintable characters of a text except allowed ones. Does not truncate it.
pub fn printable(text: &str, is_allowed: impl Fn(char) -> bool) -> Cow<'_, str> {
    escaped(text, |c| is_unprintable(c) && !is_allowed(c), write_escaped)
}

/// Like [`printable`], keeping line breaks.
#[must_use]
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    printable(text, |c| c == '\n')
}

/// Returns equivalent JSON that is printable: unprintable characters become `\uXXXX` escapes (RFC 8259, section 7).
/// Outside strings, JSON has no unprintable characters except line breaks.
#[must_use]
pub fn printable_json(json: &str) -> Cow<'_, str> {
    escaped(
        json,
        |c| c != '\n' && is_unprintable(c),
        |text, c| {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(text, "\\u{unit:04x}");
            }
        },
    )
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool, escape: impl Fn(&mut String, char)) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if is_escaped(c) { escape(&mut printable, c) } else { printable.push(c) }
    }
    Cow::Owned(printable)
}

impl Display for ForeignText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ForeignText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

impl Deref for ForeignText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ForeignText {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for ForeignText {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<ForeignText> for String {
    fn from(text: ForeignText) -> Self {
        text.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{ForeignText, is_unprintable, printable_json, printable_lines};

    #[test]
    fn characters_that_act_on_a_terminal_are_escaped() {
        let text = "\u{1b}]0;x\u{7}\u{1b}[2Jred\u{202e}\u{9b}32m\r\nFAKE\u{8}\t\u{2066}\u{feff}\u{e0041}";
        assert_eq!(
            ForeignText::new(text).as_str(),
            "\\u{1b}]0;x\\u{7}\\u{1b}[2Jred\\u{202e}\\u{9b}32m\\r\\nFAKE\\u{8}\\t\\u{2066}\\u{feff}\\u{e0041}"
        );
        assert_eq!(ForeignText::new("größe 力学 👩‍💻 é").as_str(), "größe 力学 👩‍💻 é");
        assert_eq!(format!("{:?}", ForeignText::value("a\"b\n")), "\"a\"b\\n\"");
        assert_eq!(printable_lines("a\nb\u{1b}c"), "a\nb\\u{1b}c");
        assert_eq!(printable_json("{\"a\":\"\u{202e}\u{e0041}\u{7f}\"}"), "{\"a\":\"\\u202e\\udb40\\udc41\\u007f\"}");
    }

    #[test]
    fn a_text_is_truncated_to_its_limit() {
        assert_eq!(ForeignText::limited(5, "12345").as_str(), "12345");
        assert_eq!(ForeignText::limited(5, "123456").as_str(), "12…");
        assert_eq!(ForeignText::limited(8, "1\u{1b}2").as_str(), "1\\u{1b}2");
        assert_eq!(ForeignText::limited(7, "1\u{1b}2").as_str(), "1\\u{…");
        assert_eq!(ForeignText::new("x".repeat(4 << 20)).len(), 512);
        assert_eq!(ForeignText::value("力".repeat(400)).chars().count(), 53);
    }

    proptest! {
        #[test]
        fn a_text_is_bounded_printable_and_stable(text in any::<String>(), limit in 3_usize..600) {
            let once = ForeignText::limited(limit, &text);
            prop_assert!(once.len() <= limit && !once.contains(is_unprintable));
            prop_assert_eq!(&ForeignText::limited(limit, &once), &once);
            if text.len() <= limit && !text.contains(is_unprintable) {
                prop_assert_eq!(once.as_str(), text);
            }
        }

        #[test]
        fn printable_json_is_equivalent(text in any::<String>()) {
            let json = serde_json::Value::from(text);
            let printed = printable_json(&json.to_string()).into_owned();
            prop_assert!(!printed.contains(is_unprintable));
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&printed).expect("JSON"), json);
        }
    }
}
