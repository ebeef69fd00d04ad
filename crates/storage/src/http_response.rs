//! Reads HTTP responses of registries and other services within limits, and converts failures into errors.

use std::time::Duration;

use bytes::Bytes;
use domain::ForeignText;
use http::{
    HeaderMap, HeaderName, StatusCode,
    header::{DATE, RETRY_AFTER},
};
use httpdate::parse_http_date;
use reqwest::Response;
use tokio::time::timeout;

use super::{Error, Result};

/// The time limit for the next chunk of a response.
const STALL: Duration = Duration::from_secs(60);
/// The time limit for a whole response.
const WHOLE: Duration = Duration::from_secs(120);
/// Upper bound for the delay of `Retry-After`. A longer delay is reduced to it.
const LONGEST_WAIT: Duration = Duration::from_secs(3_600);
/// Maximum size of the body of an error response, in bytes.
const MAX_ERROR_BYTES: u64 = 8 << 10;

/// Returns the error for a response whose status is a failure.
pub async fn refusal(what: &str, response: Response) -> Error {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let body = bounded(what, response, MAX_ERROR_BYTES).await.unwrap_or_default();
    Error::Status { what: what.into(), status, detail: detail(&body), retry_after }
}

/// Returns whether a status reports a transient failure.
pub fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502..=504)
}

/// Returns the delay that the header `Retry-After` requests (RFC 9110, section 10.2.3), as seconds or as a date. A date
/// is relative to the response's `Date` header. Without this header, the result is `None`.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let wanted = text(RETRY_AFTER)?;
    let wait = match wanted.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let (until, now) = (parse_http_date(wanted).ok()?, parse_http_date(text(DATE)?).ok()?);
            // A date in the past means no delay.
            until.duration_since(now).unwrap_or_default()
        }
    };
    Some(wait.min(LONGEST_WAIT))
}

/// Reads the body of a response. Fails if it has more than `limit` bytes or stalls.
pub async fn bounded(what: &str, response: Response, limit: u64) -> Result<Bytes> {
    let read = timeout(WHOLE, read_bounded(what, response, limit)).await;
    read.unwrap_or(Err(Error::Stalled("an answer")))
}

async fn read_bounded(what: &str, mut response: Response, limit: u64) -> Result<Bytes> {
    let too_large = || Error::malformed(what, format!("the answer has more than {limit} bytes"));
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut content = Vec::new();
    loop {
        let chunk = timeout(STALL, response.chunk()).await.map_err(|_| Error::Stalled("an answer"))?;
        let Some(chunk) = chunk.map_err(|error| transport(what, &error))? else { return Ok(content.into()) };
        if (content.len() + chunk.len()) as u64 > limit {
            return Err(too_large());
        }
        content.extend_from_slice(&chunk);
    }
}

/// Returns the error for a failed connection, with its innermost cause. `what` names the request without the URL's
/// query.
pub fn transport(what: impl Into<ForeignText>, error: &reqwest::Error) -> Error {
    let mut cause: &dyn std::error::Error = error;
    let what = what.into();
    while let Some(next) = cause.source() {
        if let Some(forbidden) = next.downcast_ref::<crate::ssrf_guard::Forbidden>() {
            return Error::Forbidden { what, source: forbidden.clone() };
        }
        cause = next;
    }
    Error::Transport { what, problem: ForeignText::new(cause) }
}

/// Extracts a registry's description of an error: the codes and messages in the format of the distribution
/// specification ("Error Codes"), or else the text of the body.
fn detail(body: &[u8]) -> ForeignText {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(errors) => errors.errors.iter().map(|e| format!("{} {}", e.code, e.message)).collect::<Vec<_>>().join("; "),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let text = text.trim();
    if text.is_empty() { ForeignText::default() } else { ForeignText::new(format_args!(": {text}")) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use futures_util::stream;
    use http::{
        HeaderMap, HeaderValue,
        header::{DATE, RETRY_AFTER},
    };
    use tokio::time::{Instant, sleep};

    use super::{bounded, retry_after};
    use crate::Error;

    /// The registry sends a byte just before each timeout, endlessly.
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_trickles_ends_after_two_minutes() {
        let trickle = stream::unfold((), |()| async {
            sleep(Duration::from_secs(59)).await;
            Some((std::io::Result::Ok(Bytes::from_static(b"x")), ()))
        });
        let response = http::Response::new(reqwest::Body::wrap_stream(trickle));
        let began = Instant::now();
        let error = bounded("a list", response.into(), 1_000).await.expect_err("it never ends");
        assert!(matches!(error, Error::Stalled(_)), "{error}");
        assert_eq!(began.elapsed(), Duration::from_secs(120));
    }

    #[test]
    fn waits_are_told_in_seconds_or_by_a_date() {
        const NOW: &str = "Fri, 27 Nov 2026 03:00:00 GMT";
        for (wanted, now, seconds) in [
            ("7", None, Some(7)),
            (" 0 ", None, Some(0)),
            ("99999", None, Some(3_600)),
            ("99999999999999999999", None, None),
            ("-1", None, None),
            ("1.5", None, None),
            ("Fri, 27 Nov 2026 03:01:15 GMT", Some(NOW), Some(75)),
            ("Friday, 27-Nov-26 03:01:15 GMT", Some(NOW), Some(75)),
            ("Fri Nov 27 03:01:15 2026", Some(NOW), Some(75)),
            ("Fri, 27 Nov 2026 02:59:00 GMT", Some(NOW), Some(0)),
            ("Fri, 27 Nov 2099 03:00:00 GMT", Some(NOW), Some(3_600)),
            ("Fri, 27 Nov 2026 03:01:15 GMT", None, None),
            ("Fri, 27 Nov 2026 03:01:15 GMT", Some("yesterday"), None),
            ("soon", Some(NOW), None),
        ] {
            let mut headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(wanted))]);
            headers.extend(now.map(|now| (DATE, HeaderValue::from_static(now))));
            assert_eq!(retry_after(&headers), seconds.map(Duration::from_secs), "{wanted} {now:?}");
        }
    }
}
