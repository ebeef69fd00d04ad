//! Connects to the service: endpoint, credentials, TLS, deadline and retries.

use std::time::Duration;

use opentelemetry::propagation::{Injector, TextMapPropagator as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue},
    service::Interceptor,
    transport::{Channel, ClientTlsConfig, Endpoint, Identity},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::{Client, Error};
use crate::{domain::Backoff, storage::server_trust};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The time limit of a call, including its retries.
const DEADLINE: Duration = Duration::from_secs(30);
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(10), attempts: 8 };

/// Builds a [`Client`].
#[derive(Debug, Clone)]
pub struct Builder {
    endpoint: String,
    token: Option<String>,
    tls: ClientTlsConfig,
    /// Certificates in PEM form that are trusted in addition to the system's.
    trusted: Option<Vec<u8>>,
    pub(super) deadline: Duration,
    pub(super) backoff: Backoff,
}

impl Builder {
    /// Creates a builder for the service at an `http://` or `https://` URL.
    #[must_use]
    pub fn new(endpoint: impl Into<String>) -> Self {
        let tls = ClientTlsConfig::new();
        Self { endpoint: endpoint.into(), token: None, tls, trusted: None, deadline: DEADLINE, backoff: BACKOFF }
    }

    /// Sets the bearer token: an opaque one, or a JSON Web Token.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Trusts certificates in PEM form in addition to the system's. They may be certificates of authorities or of
    /// servers.
    #[must_use]
    pub fn ca_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.trusted = Some(pem.into());
        self
    }

    /// Sets the client certificate and its private key, in PEM form.
    #[must_use]
    pub fn identity(mut self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        self.tls = self.tls.identity(Identity::from_pem(certificate, key));
        self
    }

    /// Sets the time limit of a call, including its retries; 30 s by default. Watching has no limit.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the number of attempts and the waits between them. The service may ask for longer waits. The default is 8
    /// attempts, with waits from 0.2 s to 10 s.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Connects a channel for any gRPC client. The channel reconnects by itself, and does not send the token.
    pub async fn channel(&self) -> Result<Channel, Error> {
        let refused = |source| Error::Endpoint { endpoint: self.endpoint.clone(), source };
        let mut endpoint = Endpoint::from_shared(self.endpoint.clone()).map_err(refused)?;
        if endpoint.uri().scheme_str() == Some("https") {
            let tls = self.tls.clone();
            endpoint = match &self.trusted {
                None => endpoint.tls_config(tls.with_enabled_roots()).map_err(refused)?,
                Some(pem) => {
                    let verifier = server_trust::verifier(pem).map_err(|error| Error::Trusted(Box::new(error)))?;
                    endpoint.tls_config_with_verifier(tls, verifier).map_err(refused)?
                }
            };
        }
        let connected = endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await;
        connected.map_err(|source| Error::Unreachable { endpoint: self.endpoint.clone(), source })
    }

    /// Connects to the service, and returns a client.
    pub async fn connect(self) -> Result<Client, Error> {
        let channel = self.channel().await?;
        self.over(channel)
    }

    /// Returns a client on an existing channel.
    pub fn over(self, channel: Channel) -> Result<Client, Error> {
        let caller = AuthInterceptor::new(self.token.as_deref())?;
        Ok(Client::new(channel, caller, &self))
    }
}

/// Adds the token and the current trace context to every call.
#[derive(Clone)]
pub struct AuthInterceptor(Option<MetadataValue<Ascii>>);

impl AuthInterceptor {
    fn new(token: Option<&str>) -> Result<Self, Error> {
        let value = token.map(|token| format!("Bearer {}", token.trim()).parse::<MetadataValue<Ascii>>());
        let mut value = value.transpose().map_err(|_| Error::Token)?;
        if let Some(value) = &mut value {
            value.set_sensitive(true);
        }
        Ok(Self(value))
    }
}

impl Interceptor for AuthInterceptor {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        TraceContextPropagator::new().inject_context(&Span::current().context(), &mut Metadata(request.metadata_mut()));
        Ok(request)
    }
}

struct Metadata<'a>(&'a mut MetadataMap);

impl Injector for Metadata<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}
