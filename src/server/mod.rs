//! The way in: the tower stack, and the handlers behind it. Everything that a caller sends is read here and becomes a domain
//! type, or is refused.

mod app_sync;
mod identity;
mod image;
mod layer;
mod listener;
mod page;
mod permit;
mod verify;
mod wire;

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::Request;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    server::NamedService,
    service::{LayerExt as _, Routes},
};
use tower::{Service, ServiceBuilder, limit::GlobalConcurrencyLimitLayer, util::BoxCloneSyncService};

pub use identity::{Identities, Identity};
pub use layer::Deadlines;
pub use listener::{Listener, ListenerSettings};

use crate::{
    contract::{Contract, DESCRIPTORS, v1},
    domain::Clock,
    region::Stores,
    state::State,
};
use layer::{
    AmendLayer, AuthenticateLayer, AuthorizeLayer, CatchPanic, Conform, DeadlineLayer, LimitBodyLayer, RequestIdLayer,
    Shed, TraceLayer,
};

/// The largest message that a caller may send, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// The services whose health is told: both of the contract, and, by the empty name, the whole.
pub const SERVICES: [&str; 3] = ["", v1::app_sync_service_server::SERVICE_NAME, v1::image_service_server::SERVICE_NAME];

/// What the stack needs.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The contract's tables.
    pub contract: Arc<Contract>,
    /// Who may call.
    pub identities: Arc<Identities>,
    /// The state.
    pub state: State,
    /// The stores, in which images to be registered are looked up.
    pub stores: Stores,
    /// Tells when an image was registered.
    pub clock: Clock,
    /// Calls that are carried out at the same time.
    pub max_in_flight: usize,
    /// The deadlines of calls.
    pub deadlines: Deadlines,
    /// Canceled when the service stops: streams end then, so that their clients go elsewhere.
    pub stop: CancellationToken,
}

/// The whole service, as a connection needs it.
pub type Entrance = BoxCloneSyncService<Request<Incoming>, http::Response<Body>, Infallible>;

/// The health of the service, to be set.
pub type Health = tonic_health::server::HealthReporter;

/// The whole service: every path, with everything that stands before it.
pub async fn service(parts: Parts) -> Result<(Entrance, Health), tonic_reflection::server::Error> {
    let contract = Arc::clone(&parts.contract);
    let app_sync = v1::app_sync_service_server::AppSyncServiceServer::new(app_sync::AppSync::new(&parts))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let images = v1::image_service_server::ImageServiceServer::new(image::Images::new(&parts))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);

    let (health, health_service) = tonic_health::server::health_reporter();
    for service in SERVICES {
        health.set_service_status(service, tonic_health::ServingStatus::Serving).await;
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that clients which ask the service for types, like grpcurl, can show the details of an error.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };

    // Health and reflection stand outside of every limit and need no credential: a busy service is not a dead one.
    let limit = GlobalConcurrencyLimitLayer::new(parts.max_in_flight);
    let routes = Routes::new(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(guarded(app_sync, &parts, limit.clone()))
        .add_service(guarded(images, &parts, limit));

    // Every call, outermost first.
    let entrance = ServiceBuilder::new()
        // Sees everything that happens to a call, rejections too.
        .layer(TraceLayer)
        // Before anything that can refuse: a refusal names the request.
        .layer(RequestIdLayer)
        // Around whatever may fail in a way that nobody foresaw.
        .layer(AmendLayer::<CatchPanic>::new(Arc::clone(&contract)))
        // Around everything that may refuse in words that are not the contract's.
        .layer(AmendLayer::<Conform>::new(contract))
        .service(routes.prepare());
    Ok((Entrance::new(entrance), health))
}

/// What stands before the methods of the contract, outermost first.
fn guarded<S>(
    service: S,
    parts: &Parts,
    limit: GlobalConcurrencyLimitLayer,
) -> impl Service<Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send>
+ NamedService
+ Clone
+ Send
+ Sync
+ use<S>
where
    S: Service<Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
{
    let contract = &parts.contract;
    ServiceBuilder::new()
        // Before a byte of the body is read by anybody.
        .layer(LimitBodyLayer::new(MAX_MESSAGE_BYTES, Arc::clone(contract)))
        // Turns the overload that is found further in into an answer.
        .layer(AmendLayer::<Shed>::new(Arc::clone(contract)))
        .load_shed()
        .layer(limit)
        // Inside of the limit: a call that waits for its turn does not exist, it is refused at once.
        .layer(DeadlineLayer::new(parts.deadlines, Arc::clone(contract)))
        // Who is it?
        .layer(AuthenticateLayer::new(Arc::clone(&parts.identities), Arc::clone(contract)))
        // May they? Decided before anything is decoded, validated or looked up.
        .layer(AuthorizeLayer::new(Arc::clone(contract)))
        .named_layer(service)
}

/// How long a caller should wait before it repeats a call that found the service overloaded.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);
