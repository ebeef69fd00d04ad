//! Opening a bucket: which service, with which credentials, and never by way of anything but the addresses that may be dialed.

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
use crate::region::{
    self, Error, ObjectLocation, Provider,
    egress::{Egress, NotAdmitted},
    request_span,
};

/// How long nothing may come from a connection.
const STALL: Duration = Duration::from_secs(60);
/// How often, and for how long, a request is sent again after a trouble that may pass.
const RETRIES: usize = 4;
const RETRY: Duration = Duration::from_secs(20);

/// The largest answer that is no object, in bytes.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// How a bucket is accessed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// The service, if it is not the provider's own.
    pub endpoint: Option<String>,
    /// The service's region (S3).
    pub bucket_region: Option<String>,
    /// Who asks.
    pub keys: AccessKeys,
    /// The checksum that is sent with what is written (S3); nothing for none.
    pub checksum: Option<Checksum>,
    /// Whether a service without TLS will do.
    pub allow_http: bool,
}

/// Makes clients that dial only what a guard lets through.
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

/// A client each of whose requests is a span, and each of whose answers is bounded: the library reads whole what is no object, whatever its
/// size. A refusal becomes an error that says why.
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
        // It is an absolute one: the library has made it of a URL.
        let Ok(url) = request.uri().to_string().parse() else { return self.client.call(request).await };
        let action = Action::of(&method, request.uri().query(), request.headers());
        self.egress.admit(&url).await.map_err(|refused| match refused {
            NotAdmitted::Forbidden(forbidden) => HttpError::new(HttpErrorKind::Unknown, forbidden),
            unresolved @ NotAdmitted::Unresolved { .. } => HttpError::new(HttpErrorKind::Connect, unresolved),
        })?;
        let span = request_span::begin(&method, &url);
        let response = self.client.call(request).await;
        request_span::end(&span, &method, response.as_ref().map(|response| response.status()).map_err(|_| "transport"));
        // Of an object, its reader takes as much as it should have.
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

/// Opens a bucket.
pub fn open(location: ObjectLocation, access: &Access, egress: impl Into<Egress>) -> region::Result<ObjectStore> {
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
