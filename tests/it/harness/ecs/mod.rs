//! Alibaba Cloud's ECS, as far as its documentation says how images are copied (API 2014-05-26: `CopyImage`, `DescribeImages`,
//! `CancelCopyImage`, `DeleteImage`), and `AssumeRole` of STS (2015-04-01): the states that an image goes through, the queue of a
//! region, names that are taken, client tokens, lists that come in pages and lag behind, and every signature verified.
//!
//! The official client drives it too (`tests/it/ecs`), and so shows that it is what that client takes it for.

mod signature;
pub mod world;

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
use serde_json::{Value, json};

use super::http_server::HttpServer;
use world::World;

/// The access key that it knows.
pub const KEY: [&str; 2] = ["LTAI-ecs", "the-ecs-secret"];

/// What a request meets instead of its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The connection ends before anything was done.
    Cut,
    /// It is carried out, and the connection ends without an answer.
    CutAfter,
    /// It is carried out, and the answer does not come.
    Hang,
    /// It is refused with that status, code and `Retry-After` in seconds.
    Refuse(u16, &'static str, Option<u64>),
}

/// Troubles to come.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What has to be asked for.
    pub action: &'static str,
    /// The region that it has to be about: of a copy, the destination.
    pub region: String,
    /// What is met.
    pub trouble: Trouble,
    /// How often.
    pub times: usize,
}

/// A request that was made.
#[derive(Debug, Clone)]
pub struct Call {
    /// What was asked for.
    pub action: String,
    /// The region that it was about: of a copy, the destination.
    pub region: String,
    /// The code of the answer; `OK` if it was a good one.
    pub code: String,
    /// When, since the server started.
    pub at: Duration,
    /// All that a signature covers, and the signature.
    pub signed: Value,
}

/// The server.
pub struct Ecs {
    pub address: SocketAddr,
    world: Arc<Mutex<World>>,
    _server: HttpServer,
}

impl Ecs {
    /// A server with some regions, whose copies take as long.
    pub async fn start(regions: &[&str], takes: Duration) -> Self {
        let world = Arc::new(Mutex::new(World::new(regions, takes)));
        let serving = Arc::clone(&world);
        let server = HttpServer::start(move |request| answer(Arc::clone(&serving), request)).await;
        Self { address: server.address, world, _server: server }
    }

    /// What it knows.
    pub fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    /// Has requests meet troubles.
    pub fn plan(&self, action: &'static str, region: &str, trouble: Trouble, times: usize) {
        self.world().plans.push(Plan { action, region: region.to_owned(), trouble, times });
    }

    /// How many requests for that were answered with that code, in a region or in all.
    pub fn count(&self, action: &str, region: Option<&str>, code: &str) -> usize {
        let is = |call: &&Call| {
            call.action == action && call.code == code && region.is_none_or(|region| call.region == region)
        };
        self.world().calls.iter().filter(is).count()
    }
}

fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().expect("no panic")
}

/// A refusal in the provider's form.
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

/// Why there is no answer at all.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut")]
struct Cut;

async fn answer(world: Arc<Mutex<World>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Cut> {
    let (parts, body) = request.into_parts();
    let content = body.collect().await.map_err(|_| Cut)?.to_bytes();
    let (told, trouble) = {
        let mut world = lock(&world);
        let at = world.started.elapsed();
        let parameters = signature::parameters(parts.uri.query().unwrap_or_default(), &content);
        let action = signature::header(&parts.headers, "x-acs-action");
        let get = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let region = get("DestinationRegionId").or_else(|| get("RegionId")).unwrap_or_default();
        let trouble = world.trouble(&action, &region);
        let told = match &trouble {
            Some(Trouble::Cut) => Err(Refused::new(0, "CUT", "")),
            Some(Trouble::Refuse(status, code, retry_after)) => {
                Err(Refused { retry_after: *retry_after, ..Refused::new(*status, code, "It was planned.") })
            }
            _ => world.verify(&parts, &content).and_then(|()| world.carry_out(&action, &parameters)),
        };
        let code = told.as_ref().map_or_else(|refused| refused.code.clone(), |_| "OK".to_owned());
        let signed = signature::told(&parts);
        world.calls.push(Call { action, region, code, at, signed });
        (told, trouble)
    };
    match trouble {
        Some(Trouble::Cut | Trouble::CutAfter) => return Err(Cut),
        Some(Trouble::Hang) => std::future::pending().await,
        Some(Trouble::Refuse(..)) | None => {}
    }
    let request_id = uuid::Uuid::now_v7().to_string().to_uppercase();
    let (status, retry_after, mut body) = match told {
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

/// Never: it is only here because a service has to have an error.
impl From<Infallible> for Cut {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
