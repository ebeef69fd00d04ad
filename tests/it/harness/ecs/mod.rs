//! An emulation of two Alibaba Cloud services, written from their documentation: the image copying of ECS (API
//! 2014-05-26: `CopyImage`, `DescribeImages`, `CancelCopyImage`, `DeleteImage`) and `AssumeRole` of STS (2015-04-01).
//! It covers the states of an image, the queue of a region, duplicate names, client tokens, paginated and delayed
//! lists, and the verification of every signature.
//!
//! To check the emulation itself, `tests/it/ecs` also runs the official client against it.

pub mod provider;
mod signature;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use provider::Provider;
use serde_json::{Value, json};

use super::http_server::HttpServer;

/// The access key id and secret that the provider accepts.
pub const KEY: [&str; 2] = ["LTAI-ecs", "the-ecs-secret"];

/// A fault that the provider injects into a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InjectedFault {
    /// The connection is cut before the request is executed.
    Cut,
    /// The request is executed, but the connection is cut before the response.
    CutAfter,
    /// The request is executed, but never answered.
    Hang,
    /// The request is rejected with this HTTP status, error code, and `Retry-After` in seconds.
    Refuse(u16, &'static str, Option<u64>),
}

/// A fault to inject into future requests.
#[derive(Debug, Clone)]
pub struct PlannedFault {
    /// The action whose requests are affected, such as `CopyImage`.
    pub action: &'static str,
    /// The affected region; for a copy, the destination. `*` stands for all regions.
    pub region: String,
    pub fault: InjectedFault,
    /// The number of requests still to be affected.
    pub times: usize,
}

/// A received request.
#[derive(Debug, Clone)]
pub struct Call {
    pub action: String,
    /// The region of the request; for a copy, the destination.
    pub region: String,
    /// The error code of the response; `OK` on success.
    pub code: String,
    /// Time from the start of the server to the request.
    pub at: Duration,
    /// The signature, and all parts of the request that it may cover.
    pub signed: Value,
}

/// The emulated provider.
pub struct Ecs {
    pub address: SocketAddr,
    provider: Arc<Mutex<Provider>>,
    _server: HttpServer,
}

impl Ecs {
    /// Starts a server with these regions. A copy takes `takes`.
    pub async fn start(regions: &[&str], takes: Duration) -> Self {
        let provider = Arc::new(Mutex::new(Provider::new(regions, takes)));
        let serving = Arc::clone(&provider);
        let server = HttpServer::start(move |request| answer(Arc::clone(&serving), request)).await;
        Self { address: server.address, provider, _server: server }
    }

    /// Locks and returns the provider's state.
    pub fn provider(&self) -> MutexGuard<'_, Provider> {
        lock(&self.provider)
    }

    /// Injects a fault into the next `times` requests for this action and region.
    pub fn inject(&self, action: &'static str, region: &str, fault: InjectedFault, times: usize) {
        self.provider().planned_faults.push(PlannedFault { action, region: region.to_owned(), fault, times });
    }

    /// Returns the number of requests for an action that were answered with `code`, in one region or in all.
    pub fn count(&self, action: &str, region: Option<&str>, code: &str) -> usize {
        let is = |call: &&Call| {
            call.action == action && call.code == code && region.is_none_or(|region| call.region == region)
        };
        self.provider().calls.iter().filter(is).count()
    }
}

fn lock(provider: &Mutex<Provider>) -> MutexGuard<'_, Provider> {
    provider.lock().expect("no panic")
}

/// An error response in the provider's format.
#[derive(Debug, Clone)]
pub struct Refused {
    pub status: u16,
    pub code: String,
    pub message: String,
    pub retry_after: Option<u64>,
}

impl Refused {
    pub fn new(status: u16, code: &str, message: &str) -> Self {
        Self { status, code: code.to_owned(), message: message.to_owned(), retry_after: None }
    }
}

/// The error with which a request handler makes the server cut the connection.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut")]
struct Cut;

async fn answer(provider: Arc<Mutex<Provider>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Cut> {
    let (parts, body) = request.into_parts();
    let content = body.collect().await.map_err(|_| Cut)?.to_bytes();
    let (result, fault) = {
        let mut provider = lock(&provider);
        let at = provider.started.elapsed();
        let parameters = signature::parameters(parts.uri.query().unwrap_or_default(), &content);
        let action = signature::header(&parts.headers, "x-acs-action");
        let get = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let region = get("DestinationRegionId").or_else(|| get("RegionId")).unwrap_or_default();
        let fault = provider.fault(&action, &region);
        let result = match &fault {
            Some(InjectedFault::Cut) => Err(Refused::new(0, "CUT", "")),
            Some(InjectedFault::Refuse(status, code, retry_after)) => {
                Err(Refused { retry_after: *retry_after, ..Refused::new(*status, code, "It was planned.") })
            }
            _ => provider.verify(&parts, &content).and_then(|()| provider.execute(&action, &parameters)),
        };
        let code = result.as_ref().map_or_else(|refused| refused.code.clone(), |_| "OK".to_owned());
        let signed = signature::signed_fields(&parts);
        provider.calls.push(Call { action, region, code, at, signed });
        (result, fault)
    };
    match fault {
        Some(InjectedFault::Cut | InjectedFault::CutAfter) => return Err(Cut),
        Some(InjectedFault::Hang) => std::future::pending().await,
        Some(InjectedFault::Refuse(..)) | None => {}
    }
    let request_id = uuid::Uuid::now_v7().to_string().to_uppercase();
    let (status, retry_after, mut body) = match result {
        Ok(body) => (200, None, body),
        Err(refused) => {
            let body = json!({"Code": refused.code, "Message": refused.message, "HostId": "ecs.aliyuncs.com"});
            (refused.status, refused.retry_after, body)
        }
    };
    body["RequestId"] = request_id.into();
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response.headers_mut().insert("content-type", "application/json;charset=utf-8".parse().expect("a value"));
    if let Some(seconds) = retry_after {
        response.headers_mut().insert("retry-after", seconds.into());
    }
    Ok(response)
}

/// Unreachable: hyper requires a conversion from every error type.
impl From<Infallible> for Cut {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
