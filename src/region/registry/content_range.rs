//! Which part of a blob an answer holds: the header `Content-Range` (RFC 9110, section 14.4).

use http::{HeaderMap, header::CONTENT_RANGE};

/// A part of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRange {
    /// Its first byte.
    pub first: u64,
    /// Its last byte.
    pub last: u64,
    /// How many bytes the whole has, if the answer says so.
    pub size: Option<u64>,
}

impl ContentRange {
    /// The part that an answer says to hold; nothing if it says none that can be.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
        let (unit, text) = text.trim().split_once(' ')?;
        let (range, size) = text.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let (first, last) = (number(first)?, number(last)?);
        let size = if size.trim() == "*" { None } else { Some(number(size)?) };
        let fits = unit.eq_ignore_ascii_case("bytes") && first <= last && size.is_none_or(|size| last < size);
        fits.then_some(Self { first, last, size })
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header::CONTENT_RANGE};

    use super::ContentRange;

    #[test]
    fn parts_are_read() {
        let part = |first, last, size| Some(ContentRange { first, last, size });
        for (text, range) in [
            ("bytes 0-9/10", part(0, 9, Some(10))),
            ("Bytes 5-9/*", part(5, 9, None)),
            ("bytes */10", None),
            ("bytes 9-5/10", None),
            ("bytes 0-10/10", None),
            ("items 0-9/10", None),
            ("bytes 0-18446744073709551616/*", None),
            ("0-9", None),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_RANGE, HeaderValue::from_static(text))]);
            assert_eq!(ContentRange::of(&headers), range, "{text}");
        }
        assert_eq!(ContentRange::of(&HeaderMap::new()), None);
    }
}
