//! Texts of others, made fit to be shown: what a store, a provider, a caller or a service says, in an error, a row, a log line, a header
//! or on a terminal.

use std::{
    borrow::Cow,
    fmt::{self, Display, Write as _},
    ops::Deref,
};

/// How much of a sentence is kept, in bytes of UTF-8.
const SENTENCE: usize = 512;
/// How much of a whole error is kept: what was tried, and what was said about it. A refusal repeats it in its message, percent-encoded, and
/// three times in its details, in Base64; with it, they fit into the 8 KiB of headers that gRPC clients take at the least.
const MESSAGE: usize = 768;
/// How much of a single value is kept that an error repeats, in bytes of UTF-8.
const VALUE: usize = 160;
/// What stands for the rest of a text that is cut.
const CUT: char = '…';

/// A text of somebody else's: of bounded length, on one line, and without characters that move the cursor, hide text or change its
/// direction. Those stand there as `\u{202e}` does. Bytes are counted, so there are no more characters than that either.
///
/// `Debug` shows it in quotation marks, for errors that repeat a value.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ForeignText(String);

impl ForeignText {
    /// A sentence or a line, of 512 bytes at most.
    pub fn new(text: impl Display) -> Self {
        Self::limited(SENTENCE, text)
    }

    /// A whole error, of 768 bytes at most.
    pub fn message(text: impl Display) -> Self {
        Self::limited(MESSAGE, text)
    }

    /// A value that an error repeats, of 160 bytes at most.
    pub fn value(text: impl Display) -> Self {
        Self::limited(VALUE, text)
    }

    /// A text of at most `limit` bytes. What is beyond is not even formatted.
    pub fn limited(limit: usize, text: impl Display) -> Self {
        let mut bounded = Bounded { text: String::new(), limit, cut: false };
        // It ends with an error where the text is cut, and that is all it can end with.
        let _ = write!(bounded, "{text}");
        bounded.finish()
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether nothing is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Takes what fits.
struct Bounded {
    text: String,
    limit: usize,
    cut: bool,
}

impl Bounded {
    fn finish(mut self) -> ForeignText {
        if self.cut {
            while self.text.len() + CUT.len_utf8() > self.limit && self.text.pop().is_some() {}
            self.text.push(CUT);
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
                self.cut = true;
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

/// Whether a character is one that a terminal acts on, or that shows others in another order or not at all: control characters (Unicode
/// general category Cc), line and paragraph separators, the bidirectional controls (UAX #9, section 2), the byte order mark, interlinear
/// annotations and tags.
#[must_use]
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A text in which everything is escaped that is not printable, but for what is allowed. It is not shortened.
pub fn printable(text: &str, is_allowed: impl Fn(char) -> bool) -> Cow<'_, str> {
    escaped(text, |c| is_unprintable(c) && !is_allowed(c), write_escaped)
}

/// The same, with line breaks.
#[must_use]
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    printable(text, |c| c == '\n')
}

/// JSON that says the same and is printable: characters that are not are written by their numbers (RFC 8259, section 7). Outside of
/// strings, there are none but line breaks.
#[must_use]
pub fn printable_json(json: &str) -> Cow<'_, str> {
    escaped(
        json,
        |c| c != '\n' && is_unprintable(c),
        |text, c| {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(text, "\\u{unit:04x}");
            }
        },
    )
}

fn escaped(text: &str, wanted: impl Fn(char) -> bool, escape: impl Fn(&mut String, char)) -> Cow<'_, str> {
    if !text.contains(&wanted) {
        return Cow::Borrowed(text);
    }
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if wanted(c) { escape(&mut printable, c) } else { printable.push(c) }
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
    fn what_a_terminal_would_act_on_is_escaped() {
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
    fn it_is_cut_to_its_limit() {
        assert_eq!(ForeignText::limited(5, "12345").as_str(), "12345");
        assert_eq!(ForeignText::limited(5, "123456").as_str(), "12…");
        assert_eq!(ForeignText::limited(8, "1\u{1b}2").as_str(), "1\\u{1b}2");
        assert_eq!(ForeignText::limited(7, "1\u{1b}2").as_str(), "1\\u{…");
        assert_eq!(ForeignText::new("x".repeat(4 << 20)).len(), 512);
        assert_eq!(ForeignText::value("力".repeat(400)).chars().count(), 53);
    }

    proptest! {
        #[test]
        fn it_is_bounded_and_printable_and_stays_so(text in any::<String>(), limit in 3_usize..600) {
            let once = ForeignText::limited(limit, &text);
            prop_assert!(once.len() <= limit && !once.contains(is_unprintable));
            prop_assert_eq!(&ForeignText::limited(limit, &once), &once);
            if text.len() <= limit && !text.contains(is_unprintable) {
                prop_assert_eq!(once.as_str(), text);
            }
        }

        #[test]
        fn json_says_the_same(text in any::<String>()) {
            let json = serde_json::Value::from(text);
            let printed = printable_json(&json.to_string()).into_owned();
            prop_assert!(!printed.contains(is_unprintable));
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&printed).expect("JSON"), json);
        }
    }
}
