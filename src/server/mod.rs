//! The gRPC and HTTP server: listeners, the middleware stack, the handlers, and the admin endpoints. Requests are
//! parsed into domain types here, and invalid requests are rejected.

mod admin;
mod auth_throttle;
mod grpc;
pub mod health;
mod http_api;
mod listener;
mod middleware;
mod rate;
mod source_pool;

use std::{convert::Infallible, sync::Arc, time::Duration};

use ::http::{Request, Response};
use grpc::{ImageHandlers, SyncHandlers};
use http_api::{HttpApi, grpc_bridge::GrpcStack};
use hyper::body::Incoming;
use middleware::{
    BodyLimitLayer, ContractServices, DeadlineLayer, NormalizeErrorsLayer, PublicMethodsLayer, RejectMalformedLayer,
    RequestAuthenticator, RequestAuthorizer, RequestIdLayer, Router, TraceLayer, response_for_panic,
};
use source_pool::SourcePool;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, service::Routes};
use tower::{ServiceBuilder, util::BoxCloneSyncService};
use tower_http::catch_panic::CatchPanicLayer;

pub use admin::StatusPage;
pub use auth_throttle::AuthThrottle;
pub use listener::{
    Listener, ListenerSettings,
    proxy::{ForwardedHeader, Proxies},
    tls::{Tls, TlsError, TlsSettings},
};
pub use middleware::{AuthenticateLayer, AuthorizeLayer, Deadlines, InFlightLimitLayer, QuotaLayer};

use crate::{
    audit::Audit,
    contract::{Contract, DESCRIPTORS, longrunning::operations_server, v1},
    db::Db,
    domain::Clock,
    identity::CurrentAuthenticator,
    storage::Backend,
};

/// Largest request message, and largest response of the reflection service, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// Retry delay sent with responses that report an overloaded service.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Longest time for a request's message to arrive.
const MESSAGE_ARRIVAL: Duration = Duration::from_secs(10);
/// Longest time for all requests of a reflection stream to arrive.
const REFLECTION_ARRIVAL: Duration = Duration::from_secs(60);
/// Maximum numbers of buffered messages of unauthenticated callers, in total and per source address.
const UNAUTHENTICATED_MESSAGES: (usize, usize) = (256, 32);

/// Service names with a health status: the contract's services, and the empty name for the server as a whole.
const SERVICES: [&str; 4] = [
    "",
    v1::app_sync_service_server::SERVICE_NAME,
    v1::image_service_server::SERVICE_NAME,
    operations_server::SERVICE_NAME,
];

/// The collaborators and limits that [`endpoints`] builds the server from.
#[derive(Debug, Clone)]
pub struct Dependencies {
    /// Authorization and error tables of the contract.
    pub contract: &'static Contract,
    /// Credentials and policies of the configuration in force.
    pub authenticator: Arc<CurrentAuthenticator>,
    /// Throttles addresses after repeated authentication failures.
    pub auth_throttle: Arc<AuthThrottle>,
    /// Audit log that records every decision.
    pub audit: Audit,
    /// Database.
    pub state: Db,
    /// Stores in which new images are looked up.
    pub backend: Backend,
    /// Source of creation times, and of the time that credentials are checked against.
    pub clock: Clock,
    /// Maximum number of calls in flight.
    pub max_in_flight: usize,
    /// Default and maximum deadlines of calls.
    pub deadlines: Deadlines,
    /// Whether credentials are accepted over unencrypted connections that are not local.
    pub plaintext: bool,
    /// Canceled at shutdown: open streams then end with UNAVAILABLE, and clients reconnect elsewhere.
    pub stop: CancellationToken,
}

/// The boxed service that a [`Listener`] runs for its connections.
pub type Frontend = BoxCloneSyncService<Request<Incoming>, Response<Body>, Infallible>;

/// The entry points that listeners serve.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Endpoints {
    pub grpc: Frontend,
    /// HTTP form of the original API.
    pub openapi: Frontend,
    /// Status page, served by the admin listener.
    pub page: StatusPage,
    /// Publishes the status of the gRPC health service.
    pub health: Health,
}

/// Publishes the status of the gRPC health service.
pub type Health = tonic_health::server::HealthReporter;

/// Creates the admin service: probes, metrics and, on servers, the status page.
#[must_use]
pub fn admin(readiness: watch::Receiver<health::Readiness>, page: Option<StatusPage>) -> Frontend {
    let router = admin::router(readiness, page);
    let to_frontend = |response: Response<axum::body::Body>| response.map(Body::new);
    Frontend::new(ServiceBuilder::new().map_response(to_frontend).service(router))
}

/// Creates the services of all entry points; they share one middleware stack.
///
/// # Errors
///
/// Fails if the reflection service can't read the descriptors.
pub async fn endpoints(dependencies: Dependencies) -> Result<Endpoints, tonic_reflection::server::Error> {
    let contract = dependencies.contract;
    let (health, public) = public_services().await?;
    let public = ServiceBuilder::new()
        .layer(BodyLimitLayer::new(MAX_MESSAGE_BYTES, REFLECTION_ARRIVAL, contract))
        .layer(PublicMethodsLayer::new(contract))
        .layer(DeadlineLayer::new(dependencies.deadlines, contract))
        .service(public);

    let message_slots = unauthenticated_messages();
    // Layers of the contract's methods, outermost first.
    let guarded = ServiceBuilder::new()
        // First, so that every later reader of the body is bounded.
        .layer(BodyLimitLayer::new(MAX_MESSAGE_BYTES, MESSAGE_ARRIVAL, contract))
        // Outside of every layer that may wait for the caller or for a resource.
        .layer(DeadlineLayer::new(dependencies.deadlines, contract))
        .layer(access_layers_with(&dependencies, message_slots.clone()))
        // After authorization: only permitted callers learn why their request is malformed.
        .layer(RejectMalformedLayer(contract))
        .service(contract_services(&dependencies));

    // Layers of every call, outermost first.
    let stack = ServiceBuilder::new()
        // First: rejections, logs and spans of all other layers carry the request id.
        .layer(RequestIdLayer)
        // Outside of every layer that rejects calls, so that rejections are traced and counted.
        .layer(TraceLayer(contract))
        // Outside of the panic guard and of the gRPC library, whose errors do not have the contract's form.
        .layer(NormalizeErrorsLayer(contract))
        .map_response(|response: Response<_>| response.map(Body::new))
        // Outside of all code that may panic.
        .layer(CatchPanicLayer::custom(response_for_panic))
        .service(Router { guarded, public });
    let bridged = GrpcStack::new(stack.clone());
    let openapi = Frontend::new(HttpApi::new(bridged.clone(), message_slots));
    let page = StatusPage::new(bridged, dependencies.plaintext);
    Ok(Endpoints { grpc: Frontend::new(stack), openapi, page, health })
}

/// Creates the handlers of the contract's methods.
fn contract_services(dependencies: &Dependencies) -> ContractServices {
    let synchronizations = Arc::new(SyncHandlers::new(dependencies));
    ContractServices {
        app_sync: v1::app_sync_service_server::AppSyncServiceServer::from_arc(Arc::clone(&synchronizations))
            .max_decoding_message_size(MAX_MESSAGE_BYTES),
        images: v1::image_service_server::ImageServiceServer::new(ImageHandlers::new(dependencies))
            .max_decoding_message_size(MAX_MESSAGE_BYTES),
        operations: operations_server::OperationsServer::from_arc(synchronizations)
            .max_decoding_message_size(MAX_MESSAGE_BYTES),
    }
}

/// Creates the health and reflection services. They need no credential and stand outside the limits of the contract's
/// methods, so that a busy server still answers its probes. [`PublicMethodsLayer`] limits them separately.
async fn public_services() -> Result<(Health, Routes), tonic_reflection::server::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    health::set(&reporter, tonic_health::ServingStatus::Serving).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // Lets clients such as grpcurl decode the details of errors.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = Routes::new(health.max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(
            reflection()
                .build_v1()?
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            reflection()
                .build_v1alpha()?
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        );
    Ok((reporter, routes.prepare()))
}

/// Authentication, limit of calls in flight, quota and authorization, outermost first. All of them run before the body
/// is decoded and validated, and only authenticated callers use capacity of the limits.
pub type AccessLayers = (AuthenticateLayer, InFlightLimitLayer, QuotaLayer, AuthorizeLayer);

/// Creates the access layers. Clones share the limits.
#[must_use]
pub fn access_layers(dependencies: &Dependencies) -> AccessLayers {
    access_layers_with(dependencies, unauthenticated_messages())
}

fn access_layers_with(dependencies: &Dependencies, message_slots: SourcePool) -> AccessLayers {
    let Dependencies { contract, authenticator, auth_throttle, state, clock, audit, max_in_flight, .. } =
        dependencies.clone();
    let authorizer = RequestAuthorizer { contract, clock: clock.clone(), audit: audit.clone() };
    let authenticator =
        RequestAuthenticator { authenticator, auth_throttle, message_slots, state, clock, audit, contract };
    (
        AuthenticateLayer(Arc::new(authenticator)),
        InFlightLimitLayer::new(max_in_flight, contract),
        QuotaLayer::new(contract),
        AuthorizeLayer(Arc::new(authorizer)),
    )
}

fn unauthenticated_messages() -> SourcePool {
    SourcePool::new(UNAUTHENTICATED_MESSAGES.0, UNAUTHENTICATED_MESSAGES.1)
}
