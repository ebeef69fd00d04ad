//! Opens a bucket with the provider's client, its credentials, and the egress that limits the addresses to connect to.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use object_store::{
    ClientOptions, RetryConfig,
    aws::{AmazonS3Builder, Checksum},
    azure::MicrosoftAzureBuilder,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    },
    gcp::GoogleCloudStorageBuilder,
};

use super::{
    AccessKeys, Bucket, ObjectStore,
    credentials::{AzureKey, GoogleAccount, S3Key},
    refusal::{self, Action},
};
use crate::{
    Error, ObjectLocation, Provider,
    egress::{Egress, NotAdmitted},
    request_span,
};

/// How long a connection may be idle while a response is read.
const STALL: Duration = Duration::from_secs(60);
/// The maximum number of retries of a request after a transient error, and their time limit.
const RETRIES: usize = 4;
const RETRY: Duration = Duration::from_secs(20);

/// Maximum size of a response that is not an object, in bytes.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// The settings for access to a bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Access {
    /// The URL of the service, if it is not the provider's own.
    pub endpoint: Option<String>,
    /// The service's region (S3).
    pub bucket_region: Option<String>,
    pub keys: AccessKeys,
    /// The checksum that is sent with written data (S3).
    pub checksum: Option<Checksum>,
    /// Whether to allow a service without TLS.
    pub allow_http: bool,
}

/// Creates HTTP clients that connect only to admitted addresses.
#[derive(Debug)]
struct Guarded {
    egress: Egress,
    provider: Provider,
}

impl HttpConnector for Guarded {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = self.egress.client();
        let client = client.and_then(|client| client.read_timeout(STALL).http1_only().tcp_nodelay(true).build());
        let failed = |error| object_store::Error::Generic { store: "HTTP client", source: Box::new(error) };
        client
            .map(|client| HttpClient::new(Traced { client, egress: self.egress.clone(), provider: self.provider }))
            .map_err(failed)
    }
}

/// An HTTP client that traces each request as a span, limits the size of each response, and converts refusals into
/// errors. The limit is needed because the library reads every response that is not an object into memory.
#[derive(Debug)]
struct Traced {
    client: reqwest::Client,
    egress: Egress,
    provider: Provider,
}

#[async_trait]
impl HttpService for Traced {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let method = request.method().clone();
        // The URI is absolute, because the library created it from a URL.
        let Ok(url) = request.uri().to_string().parse() else { return self.client.call(request).await };
        let action = Action::of(&method, request.uri().query(), request.headers());
        self.egress.admit(&url).await.map_err(|refused| match refused {
            NotAdmitted::Forbidden(forbidden) => HttpError::new(HttpErrorKind::Unknown, forbidden),
            unresolved @ NotAdmitted::Unresolved { .. } => HttpError::new(HttpErrorKind::Connect, unresolved),
        })?;
        let span = request_span::begin(&method, &url);
        let response = self.client.call(request).await;
        request_span::end(&span, &method, response.as_ref().map(|response| response.status()).map_err(|_| "transport"));
        // The reader of an object checks its size.
        let is_object = |status: StatusCode| method == Method::GET && status.is_success();
        let response = response?;
        let response = if is_object(response.status()) { response } else { response.map(bounded) };
        refusal::read(self.provider, action, response).await
    }
}

fn bounded(body: HttpResponseBody) -> HttpResponseBody {
    let too_large = |error| HttpError::new_boxed(HttpErrorKind::Decode, error);
    HttpResponseBody::new(Limited::new(body, MAX_ANSWER_BYTES).map_err(too_large))
}

/// Opens a bucket. Fails if the endpoint is forbidden or the settings are invalid.
pub fn open(location: ObjectLocation, access: &Access, egress: impl Into<Egress>) -> crate::Result<ObjectStore> {
    let egress = egress.into();
    let what = format!("{}://{}", location.provider.scheme(), location.bucket);
    if let Some(endpoint) = &access.endpoint {
        let url = endpoint.parse().map_err(|error| Error::malformed(format!("the endpoint {endpoint}"), error))?;
        egress.check(&url).map_err(|source| Error::Forbidden { what: what.as_str().into(), source })?;
    }
    let bucket = bucket(&location, access, egress).map_err(|error| super::failed(&what, &error))?;
    Ok(ObjectStore::new(location, access.endpoint.clone(), bucket))
}

fn bucket(location: &ObjectLocation, access: &Access, egress: Egress) -> object_store::Result<Arc<dyn Bucket>> {
    let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY, ..RetryConfig::default() };
    let connector = Guarded { egress, provider: location.provider };
    match location.provider {
        Provider::S3 => {
            let mut builder = AmazonS3Builder::from_env()
                .with_bucket_name(&location.bucket)
                .with_http_connector(connector)
                .with_retry(retry)
                .with_allow_http(access.allow_http)
                .with_skip_signature(access.keys == AccessKeys::Anonymous);
            if let Some(endpoint) = &access.endpoint {
                builder = builder.with_endpoint(endpoint);
            }
            if let Some(region) = &access.bucket_region {
                builder = builder.with_region(region);
            }
            if let Some(checksum) = access.checksum {
                builder = builder.with_checksum_algorithm(checksum);
            }
            builder = match &access.keys {
                AccessKeys::Key { id, secret } => {
                    builder.with_credentials(Arc::new(S3Key { id: id.clone(), secret: secret.clone() }))
                }
                AccessKeys::Profile(profile) => builder.with_credentials(Arc::new(profile.clone())),
                _ => builder,
            };
            Ok(Arc::new(builder.build()?))
        }
        Provider::Gcs => {
            let mut builder = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(&location.bucket)
                .with_http_connector(connector)
                .with_client_options(ClientOptions::new().with_allow_http(access.allow_http))
                .with_retry(retry)
                .with_skip_signature(access.keys == AccessKeys::Anonymous);
            if let Some(endpoint) = &access.endpoint {
                builder = builder.with_base_url(endpoint);
            }
            if let AccessKeys::ServiceAccount(path) = &access.keys {
                let account = GoogleAccount::new(path.clone(), builder.clone());
                builder = builder.with_credentials(Arc::new(account));
            }
            Ok(Arc::new(builder.build()?))
        }
        Provider::Azure => {
            let mut builder = MicrosoftAzureBuilder::from_env()
                .with_container_name(&location.bucket)
                .with_http_connector(connector)
                .with_retry(retry)
                .with_allow_http(access.allow_http)
                .with_skip_signature(access.keys == AccessKeys::Anonymous);
            if let Some(endpoint) = &access.endpoint {
                builder = builder.with_endpoint(endpoint.clone());
            }
            if let AccessKeys::Key { id, secret } = &access.keys {
                builder = builder.with_account(id).with_credentials(Arc::new(AzureKey(secret.clone())));
            }
            Ok(Arc::new(builder.build()?))
        }
    }
}
