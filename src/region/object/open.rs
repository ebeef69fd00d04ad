//! Opening a bucket: which service, with which credentials, and never by way of anything but the addresses that may be dialed.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use object_store::{
    ClientOptions, RetryConfig,
    aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    },
    gcp::GoogleCloudStorageBuilder,
};

use super::{Bucket, ObjectStore};
use crate::{
    domain::Secret,
    region::{self, Error, ObjectLocation, Provider, guard::Guard, request_span},
};

/// How long a connection may take to be made, and nothing may come from it.
const CONNECT: Duration = Duration::from_secs(10);
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
    /// The access key (S3) or the account (Azure). Without one, that of the provider's usual environment variables.
    pub access_key_id: Option<String>,
    /// The secret of it.
    pub secret: Option<Secret>,
    /// The service account's file (Google).
    pub service_account_file: Option<PathBuf>,
    /// Whether nothing is shown (public buckets).
    pub anonymous: bool,
    /// Whether a service without TLS will do.
    pub allow_http: bool,
}

/// Makes clients that dial only what a guard lets through.
#[derive(Debug)]
struct Guarded(Guard);

impl HttpConnector for Guarded {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("appferry/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT)
            .read_timeout(STALL)
            .http1_only()
            .tcp_nodelay(true)
            .dns_resolver(self.0.clone())
            .build();
        let failed = |error| object_store::Error::Generic { store: "HTTP client", source: Box::new(error) };
        client.map(|client| HttpClient::new(Traced(client))).map_err(failed)
    }
}

/// A client each of whose requests is a span, and each of whose answers is bounded: the library reads whole what is no object, whatever its
/// size.
#[derive(Debug)]
struct Traced(reqwest::Client);

#[async_trait]
impl HttpService for Traced {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let method = request.method().clone();
        // It is an absolute one: the library has made it of a URL.
        let Ok(url) = request.uri().to_string().parse() else { return self.0.call(request).await };
        let span = request_span::begin(&method, &url);
        let response = self.0.call(request).await;
        request_span::end(&span, &method, response.as_ref().map(|response| response.status()).map_err(|_| "transport"));
        // Of an object, its reader takes as much as it should have.
        let is_object = |status: StatusCode| method == Method::GET && status.is_success();
        response.map(|response| if is_object(response.status()) { response } else { response.map(bounded) })
    }
}

fn bounded(body: HttpResponseBody) -> HttpResponseBody {
    let too_large = |error| HttpError::new_boxed(HttpErrorKind::Decode, error);
    HttpResponseBody::new(Limited::new(body, MAX_ANSWER_BYTES).map_err(too_large))
}

/// Opens a bucket.
pub fn open(location: ObjectLocation, access: &Access, guard: Guard) -> region::Result<ObjectStore> {
    let what = format!("{}://{}", location.provider.scheme(), location.bucket);
    if let Some(endpoint) = &access.endpoint {
        let url = endpoint.parse().map_err(|error| Error::malformed(format!("the endpoint {endpoint}"), error))?;
        guard.check(&url).map_err(|source| Error::Forbidden { what: what.as_str().into(), source })?;
    }
    let bucket = bucket(&location, access, guard).map_err(|error| super::failed(&what, &error))?;
    Ok(ObjectStore::new(location, access.endpoint.clone(), bucket))
}

fn bucket(location: &ObjectLocation, access: &Access, guard: Guard) -> object_store::Result<Arc<dyn Bucket>> {
    let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY, ..RetryConfig::default() };
    let connector = Guarded(guard);
    match location.provider {
        Provider::S3 => {
            let mut builder = AmazonS3Builder::from_env()
                .with_bucket_name(&location.bucket)
                .with_http_connector(connector)
                .with_retry(retry)
                .with_allow_http(access.allow_http)
                .with_skip_signature(access.anonymous);
            if let Some(endpoint) = &access.endpoint {
                builder = builder.with_endpoint(endpoint);
            }
            if let Some(region) = &access.bucket_region {
                builder = builder.with_region(region);
            }
            if let (Some(id), Some(Secret(secret))) = (&access.access_key_id, &access.secret) {
                builder = builder.with_access_key_id(id).with_secret_access_key(secret);
            }
            Ok(Arc::new(builder.build()?))
        }
        Provider::Gcs => {
            let mut builder = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(&location.bucket)
                .with_http_connector(connector)
                .with_client_options(ClientOptions::new().with_allow_http(access.allow_http))
                .with_retry(retry)
                .with_skip_signature(access.anonymous);
            if let Some(endpoint) = &access.endpoint {
                builder = builder.with_base_url(endpoint);
            }
            if let Some(file) = &access.service_account_file {
                builder = builder.with_service_account_path(file.to_string_lossy());
            }
            Ok(Arc::new(builder.build()?))
        }
        Provider::Azure => {
            let mut builder = MicrosoftAzureBuilder::from_env()
                .with_container_name(&location.bucket)
                .with_http_connector(connector)
                .with_retry(retry)
                .with_allow_http(access.allow_http)
                .with_skip_signature(access.anonymous);
            if let Some(endpoint) = &access.endpoint {
                builder = builder.with_endpoint(endpoint.clone());
            }
            if let Some(account) = &access.access_key_id {
                builder = builder.with_account(account);
            }
            if let Some(Secret(secret)) = &access.secret {
                builder = builder.with_access_key(secret);
            }
            Ok(Arc::new(builder.build()?))
        }
    }
}
