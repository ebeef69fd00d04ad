//! The way in: the tower stack, and the handlers behind it. Everything that a caller sends is read here and becomes a domain
//! type, or is refused.

mod app_sync;
mod call_timer;
mod connections;
mod door;
mod gather;
pub mod health;
mod held;
mod http;
mod image;
mod layer;
mod listener;
mod openapi;
mod operations;
mod origin;
mod page;
mod paths;
mod peer;
mod permit;
mod proxy;
mod rate;
mod refusals;
mod source_pool;
mod status;
mod tls;
mod verify;
mod wire;

use std::{convert::Infallible, sync::Arc, time::Duration};

use ::http::Request;
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, service::Routes};
use tower::{ServiceBuilder, util::BoxCloneSyncService};

pub use layer::{AuthenticateLayer, AuthorizeLayer, Deadlines, LimitLayer, QuotaLayer};
pub use listener::{Listener, ListenerSettings};
pub use proxy::{ForwardedHeader, Proxies};
pub use status::StatusPage;
pub use tls::{Tls, TlsError, TlsSettings};

use crate::{
    audit::Audit,
    contract::{Contract, DESCRIPTORS, longrunning::operations_server, v1},
    db::Db,
    domain::Clock,
    identity::CurrentDirectory,
    region::Backend,
};
use layer::{
    AmendLayer, Authentication, Authorization, CatchPanic, Conform, DeadlineLayer, LimitBodyLayer, OpenLayer,
    RequestIdLayer, TraceLayer, UnreadableLayer,
};
use openapi::OpenApi;
use paths::{Methods, Paths};
pub use refusals::Refusals;
use source_pool::SourcePool;

/// The largest message that a caller may send, in bytes; and the largest answer of reflection.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// How long the one message of a call may take to arrive.
const MESSAGE_ARRIVAL: Duration = Duration::from_secs(10);
/// How long the questions of a call that reflects may take, all together.
const REFLECTION_ARRIVAL: Duration = Duration::from_secs(60);
/// Messages of callers that have proved nothing that are read at the same time, and those of one source.
const UNPROVEN: (usize, usize) = (256, 32);

/// The services whose health is told: those of the contract, and, by the empty name, the whole.
const SERVICES: [&str; 4] = [
    "",
    v1::app_sync_service_server::SERVICE_NAME,
    v1::image_service_server::SERVICE_NAME,
    operations_server::SERVICE_NAME,
];

/// What the stack needs.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The contract's tables.
    pub contract: &'static Contract,
    /// Who may call, as the configuration has it now.
    pub directory: Arc<CurrentDirectory>,
    /// Counts the calls whose credentials prove nothing.
    pub refusals: Arc<Refusals>,
    /// Takes decisions down.
    pub audit: Audit,
    /// The state.
    pub state: Db,
    /// The stores, in which images to be registered are looked up.
    pub backend: Backend,
    /// Tells when an image was registered, and whether a credential has expired.
    pub clock: Clock,
    /// Calls that are carried out at the same time.
    pub max_in_flight: usize,
    /// The deadlines of calls.
    pub deadlines: Deadlines,
    /// Whether credentials may come over connections that others could read.
    pub plaintext: bool,
    /// Canceled when the service stops: streams end then, so that their clients go elsewhere.
    pub stop: CancellationToken,
}

/// The whole service, as a connection needs it.
pub type Entrance = BoxCloneSyncService<Request<Incoming>, ::http::Response<Body>, Infallible>;

/// The ways in.
#[derive(Debug)]
pub struct Doors {
    /// By gRPC.
    pub grpc: Entrance,
    /// In the original's HTTP form.
    pub openapi: Entrance,
    /// The page that shows what is where.
    pub page: StatusPage,
    /// What is told of the health of all.
    pub health: Health,
}

/// The way in for probes and for Prometheus, and to the status page, if there is one.
#[must_use]
pub fn http(readiness: watch::Receiver<health::Readiness>, page: Option<StatusPage>) -> Entrance {
    Entrance::new(http::Http::new(readiness, page))
}

/// The health of the service, to be set.
pub type Health = tonic_health::server::HealthReporter;

/// The whole service: every path, with everything that stands before it.
pub async fn service(parts: Parts) -> Result<Doors, tonic_reflection::server::Error> {
    let contract = parts.contract;
    let synchronizations = Arc::new(app_sync::AppSync::new(&parts));
    let app_sync = v1::app_sync_service_server::AppSyncServiceServer::from_arc(Arc::clone(&synchronizations))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let images = v1::image_service_server::ImageServiceServer::new(image::Images::new(&parts))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let operations =
        operations_server::OperationsServer::from_arc(synchronizations).max_decoding_message_size(MAX_MESSAGE_BYTES);

    let (reporter, health_service) = tonic_health::server::health_reporter();
    health::set(&reporter, tonic_health::ServingStatus::Serving).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that clients which ask the service for types, like grpcurl, can show the details of an error.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };

    // Health and reflection stand outside of the limits of the methods, and need no credential: a busy service is not a dead one. What they
    // may take is bounded by itself.
    let open = Routes::new(health_service.max_decoding_message_size(MAX_MESSAGE_BYTES))
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
    let open = ServiceBuilder::new()
        .layer(LimitBodyLayer::new(MAX_MESSAGE_BYTES, REFLECTION_ARRIVAL, contract))
        .layer(OpenLayer::new(contract))
        .layer(DeadlineLayer::new(parts.deadlines, contract))
        .service(open.prepare());
    let unproven = SourcePool::new(UNPROVEN.0, UNPROVEN.1);
    // What stands before the methods of the contract, outermost first.
    let guarded = ServiceBuilder::new()
        // Before a byte of the body is read by anybody.
        .layer(LimitBodyLayer::new(MAX_MESSAGE_BYTES, MESSAGE_ARRIVAL, contract))
        // Around whatever may wait, for the caller or for anything else.
        .layer(DeadlineLayer::new(parts.deadlines, contract))
        .layer(gate_with(&parts, unproven.clone()))
        // Behind it: what is wrong with a request is told to those who may make it.
        .layer(UnreadableLayer(contract))
        .service(Methods { app_sync, images, operations });

    // Every call, outermost first.
    let entrance = ServiceBuilder::new()
        // Before anything that can refuse or that writes something down: it names the request.
        .layer(RequestIdLayer)
        // Sees everything that happens to a call, rejections too.
        .layer(TraceLayer(contract))
        // Around whatever may fail in a way that nobody foresaw.
        .layer(AmendLayer::<CatchPanic>::new(contract))
        // Around everything that may refuse in words that are not the contract's.
        .layer(AmendLayer::<Conform>::new(contract))
        .service(Paths { guarded, open });
    let inner = door::Inner::new(entrance.clone());
    let openapi = Entrance::new(OpenApi::new(inner.clone(), unproven));
    let page = StatusPage::new(inner, parts.plaintext);
    Ok(Doors { grpc: Entrance::new(entrance), openapi, page, health: reporter })
}

/// Who is it, is there room, not too much of one caller, and may they? Decided before anything is decoded, validated or looked up; and
/// nobody takes a place who has not proved who it is.
pub type Gate = (AuthenticateLayer, LimitLayer, QuotaLayer, AuthorizeLayer);

/// What lets calls in. Clones of it count calls together.
#[must_use]
pub fn gate(parts: &Parts) -> Gate {
    gate_with(parts, SourcePool::new(UNPROVEN.0, UNPROVEN.1))
}

fn gate_with(parts: &Parts, unproven: SourcePool) -> Gate {
    let Parts { contract, directory, refusals, state, clock, audit, max_in_flight, .. } = parts.clone();
    let authorization = Authorization { contract, clock: clock.clone(), audit: audit.clone() };
    let authentication = Authentication { directory, refusals, unproven, state, clock, audit, contract };
    (
        AuthenticateLayer(Arc::new(authentication)),
        LimitLayer::new(max_in_flight, contract),
        QuotaLayer::new(contract),
        AuthorizeLayer(Arc::new(authorization)),
    )
}

/// How long a caller should wait before it repeats a call that found the service overloaded.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);
