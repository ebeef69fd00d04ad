//! The range of a blob that a response contains: the header `Content-Range` (RFC 9110, section 14.4).

use http::{HeaderMap, header::CONTENT_RANGE};

/// A range of bytes of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRange {
    /// Offset of the first byte.
    pub first: u64,
    /// Offset of the last byte, inclusive.
    pub last: u64,
    /// Size of the whole blob in bytes; `None` if the response does not state it.
    pub size: Option<u64>,
}

impl ContentRange {
    /// Returns the range that the headers state, or `None` if they state no range or an invalid one.
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
