//! HTTP client for Alibaba Cloud's RPC-style APIs: signs requests, limits their time and response size, and contacts
//! only admitted addresses.

use std::{fmt, time::Duration};

use acs3::{CONTENT_SHA256, DATE, NONCE, SignedRequest, encode};
use domain::{Clock, ForeignText, Timestamp};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{ACCEPT, AUTHORIZATION},
};
use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use tracing::{Instrument as _, Level, Span, field::Empty};
use url::Url;

use super::{credentials::Keys, error::Error};
use crate::{
    egress::{Egress, NotAdmitted},
    http_response::{bounded, retry_after, transport},
    location::authority,
};

/// Maximum size of a response, in bytes: enough for a page of 100 images with their tags.
const MAX_ANSWER_BYTES: u64 = 4 << 20;

/// The Alibaba Cloud product that a request is sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// Elastic Compute Service.
    Ecs,
    /// Security Token Service.
    Sts,
}

impl Product {
    /// Returns the version of the product's API that this client uses.
    const fn version(self) -> &'static str {
        match self {
            Self::Ecs => "2014-05-26",
            Self::Sts => "2015-04-01",
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ecs => "ECS",
            Self::Sts => "STS",
        })
    }
}

/// A request to the API, before it is signed.
#[derive(Debug)]
pub struct Call<'a> {
    pub product: Product,
    /// The endpoint of the product in a region.
    pub base: &'a Url,
    pub action: &'static str,
    pub parameters: Vec<(String, String)>,
}

/// Sends signed requests.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    egress: Egress,
    clock: Clock,
    patience: Duration,
}

/// The body of an error response.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Refusal {
    code: String,
    message: String,
    request_id: String,
}

impl Client {
    /// Creates a client whose requests time out after `patience`.
    pub fn new(egress: Egress, clock: Clock, patience: Duration) -> crate::Result<Self> {
        let http = egress.client().and_then(reqwest::ClientBuilder::build);
        let http = http.map_err(|error| transport("the HTTP client", &error))?;
        Ok(Self { http, egress, clock, patience })
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Sends a request once, without retries.
    pub async fn call<T: DeserializeOwned>(&self, keys: &Keys, call: Call<'_>) -> Result<T, Error> {
        let product = call.product;
        let failed = |source: crate::Error| Error::NoAnswer { product, source: Box::new(source) };
        let span = span(&call);
        let answer = timeout(self.patience, self.send(keys, call))
            .instrument(span.clone())
            .await
            .unwrap_or_else(|_| Err(failed(crate::Error::Stalled("an answer"))));
        if let Err(error) = &answer {
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", error.to_string());
        }
        answer
    }

    async fn send<T: DeserializeOwned>(&self, keys: &Keys, call: Call<'_>) -> Result<T, Error> {
        let Call { product, action, .. } = call;
        let failed = |source: crate::Error| Error::NoAnswer { product, source: Box::new(source) };
        let what = format!("{action} at {}", authority(call.base));
        let forbidden = |source| failed(crate::Error::Forbidden { what: what.as_str().into(), source });
        self.egress.check(call.base).map_err(forbidden)?;
        self.egress.admit(call.base).await.map_err(|refused| match refused {
            NotAdmitted::Forbidden(source) => forbidden(source),
            unresolved @ NotAdmitted::Unresolved { .. } => {
                let problem = ForeignText::new(unresolved);
                failed(crate::Error::Transport { what: what.as_str().into(), problem })
            }
        })?;
        let (url, headers) = self.signed(keys, &call)?;
        let sent = self.http.post(url).headers(headers).send().await;
        let response = sent.map_err(|error| failed(transport(what.as_str(), &error)))?;
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        let body = bounded(&what, response, MAX_ANSWER_BYTES).await.map_err(failed)?;
        if !status.is_success() {
            // A gateway may send an error body in another format, or none.
            let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
            let code = if refusal.code.is_empty() { status.as_str() } else { &refusal.code };
            let (code, request_id) = (ForeignText::value(code), ForeignText::value(&refusal.request_id));
            let message = ForeignText::new(&refusal.message);
            return Err(Error::Refused { product, action, status, code, message, request_id, retry_after });
        }
        serde_json::from_slice(&body).map_err(|error| failed(crate::Error::malformed(what, error)))
    }

    /// Returns the URL and the headers of a signed request.
    fn signed(&self, keys: &Keys, call: &Call<'_>) -> Result<(Url, HeaderMap), Error> {
        let malformed = |reason: &dyn fmt::Display| Error::NoAnswer {
            product: call.product,
            source: Box::new(crate::Error::malformed(call.action, reason)),
        };
        let seconds = Timestamp::from_millis(self.clock.now().as_millis().div_euclid(1_000) * 1_000);
        let mut all = vec![
            ("x-acs-action", call.action.to_owned()),
            ("x-acs-version", call.product.version().to_owned()),
            (DATE, seconds.to_string()),
            (NONCE, uuid::Uuid::now_v7().simple().to_string()),
            (CONTENT_SHA256, hex::encode(Sha256::digest(b""))),
        ];
        all.extend(keys.security_token.as_ref().map(|token| ("x-acs-security-token", token.0.clone())));
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            let mut value = HeaderValue::try_from(value).map_err(|error| malformed(&error))?;
            value.set_sensitive(name == "x-acs-security-token");
            headers.insert(HeaderName::from_static(name), value);
        }
        let pair =
            |(name, value): &(String, String)| format!("{}={}", encode(name.as_bytes()), encode(value.as_bytes()));
        let query = call.parameters.iter().map(pair).collect::<Vec<_>>().join("&");
        let authority = authority(call.base);
        let request =
            SignedRequest { method: "POST", path: "/", query: &query, headers: &headers, authority: Some(&authority) };
        let authorization =
            acs3::authorize(&request, &keys.id, &keys.secret).map_err(|error| malformed(&format!("{error:?}")))?;
        let mut authorization = HeaderValue::try_from(authorization).map_err(|error| malformed(&error))?;
        authorization.set_sensitive(true);
        headers.insert(AUTHORIZATION, authorization);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let mut url = call.base.clone();
        url.set_query(Some(&query));
        Ok((url, headers))
    }
}

/// Creates the span of a request. `DescribeImages` polls the state of copies and is frequent, so its spans have level
/// DEBUG.
fn span(call: &Call<'_>) -> Span {
    let name = format!("{} {}", call.product, call.action);
    macro_rules! span {
        ($level:expr) => {
            tracing::span!(
                $level,
                "provider",
                otel.name = name,
                otel.kind = "client",
                otel.status_code = Empty,
                otel.status_description = Empty,
                server.address = call.base.host_str(),
                server.port = call.base.port_or_known_default(),
                rpc.method = call.action,
            )
        };
    }
    if call.action == "DescribeImages" { span!(Level::DEBUG) } else { span!(Level::INFO) }
}
