//! All attacks at once against one process with the default limits: the limits together keep the memory bounded and
//! leave capacity for the administrator.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use appferry::{
    config::Config,
    contract::v1::{AddImageRequest, ImageType, VmImageSpec, add_image_request},
    service::{Role, Service},
    state,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use super::{
    http2::{ACK, Connection, PING, frame, message},
    memory::peak,
};
use crate::harness::{
    address::free_address,
    images::{self, noise},
    process::Served,
    site::{ADMIN, HOME, READER, SYNC_ONLY, Site, images_client},
};

/// Limit for the resident memory of the process in MiB.
const MOST: u64 = 256;

/// Duration of the attacks.
const ATTACK: Duration = Duration::from_secs(12);

/// Pause before an attack is repeated: the attacks aim at memory and concurrency, not at the two processors that they
/// share with the service.
const REST: Duration = Duration::from_millis(500);

const SIGNED: &str = "ACS3-HMAC-SHA256 Credential=known,SignedHeaders=host,Signature=00";

/// A kind of attack. Each is repeated until the end.
#[derive(Debug, Clone, Copy)]
enum Attack {
    /// Reflection requests whose responses are not read.
    Reflection,
    /// Calls with a credential whose messages never end.
    HalfSent(&'static str),
    /// Connections that send nothing.
    Silent,
    /// Connections that watch the health service.
    Watching,
    /// Unfinished form requests to the HTTP API, over HTTP/2.
    Forms,
    /// Unfinished request heads on both HTTP listeners.
    Heads,
    /// Large lists whose responses are not read, by an authorized principal.
    Unread,
    /// Acknowledgements of pings that were not sent.
    Acknowledgements,
    /// Invalid tokens.
    Guessing,
}

const ATTACKS: [Attack; 11] = [
    Attack::Reflection,
    Attack::HalfSent("ACS3-HMAC-SHA256 Credential=x,SignedHeaders=host,Signature=00"),
    Attack::HalfSent(SIGNED),
    Attack::HalfSent(SYNC_ONLY),
    Attack::Silent,
    Attack::Watching,
    Attack::Forms,
    Attack::Heads,
    Attack::Unread,
    Attack::Acknowledgements,
    Attack::Guessing,
];

/// The addresses of a process.
#[derive(Debug, Clone, Copy)]
struct Doors {
    grpc: SocketAddr,
    form: SocketAddr,
    http: SocketAddr,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_attacks_at_once_keep_nobody_out_and_take_little_memory() {
    let mut site = Site::new();
    let (form, http) = (free_address(), free_address());
    let secret = site.directory.path().join("secret");
    std::fs::write(&secret, "secret").expect("it is written");
    site.more = format!(
        "[openapi]\nlisten = \"{form}\"\n[http]\nlisten = \"{http}\"\n\
         [[principal]]\narn = \"acs:ram::1234:role/signs\"\n[[principal.access_key]]\nid = \"known\"\nsecret_file = \"{}\"\n",
        secret.display()
    );
    let file = site.write_config();
    fill(&site, &file).await;
    let served = Served::configured(&file).await;
    let doors = Doors { grpc: served.address, form, http };

    let mut attackers = JoinSet::new();
    let end = Instant::now() + ATTACK;
    for attack in ATTACKS {
        attackers.spawn(async move {
            // Everything stays open until the end.
            let mut kept = Kept::default();
            while Instant::now() < end {
                attack.once(doors, &mut kept).await;
                tokio::time::sleep(REST).await;
            }
        });
    }
    let mut slowest = Duration::ZERO;
    while Instant::now() < end {
        let began = Instant::now();
        let list = async {
            let mut images = images_client(served.address, Some(ADMIN)).await;
            images.list_regions(appferry::contract::v1::ListRegionsRequest {}).await
        };
        let answer = tokio::time::timeout(Duration::from_secs(10), list).await.expect("it is answered");
        answer.expect("the administrator may ask");
        slowest = slowest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    while let Some(ended) = attackers.join_next().await {
        ended.expect("it attacks");
    }
    let most = peak(&served);
    println!("at most {most} MiB; the administrator waited for {slowest:?} at most");
    assert!(most < MOST, "{most} MiB");
    // The attackers and the service share the processors with other tests, and neither is optimized.
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

/// Registers images with long descriptions, so that lists are large.
async fn fill(site: &Site, file: &std::path::Path) {
    let config = Config::load(file).expect("it is one");
    state::migrate(&config.database.settings()).await.expect("the schema");
    let service = Service::start(&config, Role::Server).await.expect("it starts");
    let mut client = images_client(service.address().expect("it listens"), Some(ADMIN)).await;
    images::write(&site.image(HOME, "one"), &[noise(10, 1)]);
    for n in 0..600 {
        let image = AddImageRequest {
            name: format!("image-{n}"),
            description: "d".repeat(1_024),
            image_type: ImageType::Vm.into(),
            image_spec: Some(add_image_request::ImageSpec::VmImageSpec(VmImageSpec { image_id: "one".to_owned() })),
            ..AddImageRequest::default()
        };
        client.add_image(image).await.expect("it is registered");
    }
    service.shutdown().await;
}

/// The newest connections that an attacker keeps open.
#[derive(Default)]
struct Kept {
    connections: Vec<Connection>,
    sockets: Vec<TcpStream>,
}

impl Kept {
    fn connection(&mut self, connection: Connection) {
        self.connections.push(connection);
        let old = self.connections.len().saturating_sub(32);
        self.connections.drain(..old);
    }

    fn socket(&mut self, socket: TcpStream) {
        self.sockets.push(socket);
        let old = self.sockets.len().saturating_sub(256);
        self.sockets.drain(..old);
    }
}

impl Attack {
    async fn once(self, doors: Doors, kept: &mut Kept) {
        const SHORT: Duration = Duration::from_millis(20);
        match self {
            Self::Reflection => {
                let mut connection = Connection::open(doors.grpc, 0).await;
                let question = [&[0x0a, 0xf0, 0xff, 0x03][..], &vec![b'x'; 65_520]].concat();
                let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
                for _ in 0..64 {
                    let stream = connection.call(path, &[("x-long", &"y".repeat(14_000))]).await;
                    for piece in message(&question).chunks(16_000) {
                        connection.data(stream, piece, false).await;
                    }
                    connection.listen(Duration::from_millis(2), |_| false).await;
                }
                kept.connection(connection);
            }
            Self::HalfSent(credential) => {
                let mut connection = Connection::open(doors.grpc, 65_535).await;
                let bearer = format!("Bearer {credential}");
                let credential = if credential == SYNC_ONLY { &bearer } else { credential };
                for _ in 0..128 {
                    let headers = [("authorization", credential), ("grpc-timeout", "9999S")];
                    let stream = connection.call("/appferry.v1.ImageService/GetImage", &headers).await;
                    connection.data(stream, &[0, 0, 1, 0, 0, 1, 2, 3], false).await;
                }
                connection.listen(SHORT, |_| false).await;
                kept.connection(connection);
            }
            Self::Silent => {
                for _ in 0..10 {
                    if let Ok(socket) = TcpStream::connect(doors.grpc).await {
                        kept.socket(socket);
                    }
                }
            }
            Self::Watching => {
                for _ in 0..5 {
                    let mut connection = Connection::open(doors.grpc, 65_535).await;
                    let stream = connection.call("/grpc.health.v1.Health/Watch", &[]).await;
                    connection.data(stream, &[0, 0, 0, 0, 0], true).await;
                    connection.listen(SHORT, |_| false).await;
                    kept.connection(connection);
                }
            }
            Self::Forms => {
                let mut connection = Connection::open(doors.form, 65_535).await;
                for _ in 0..100 {
                    let stream = connection.call("/", &[("x-acs-action", "GetImage")]).await;
                    for piece in vec![b'a'; 48_000].chunks(16_000) {
                        connection.data(stream, piece, false).await;
                    }
                    connection.listen(Duration::from_millis(1), |_| false).await;
                }
                kept.connection(connection);
            }
            Self::Heads => {
                for address in [doors.form, doors.http].repeat(10) {
                    if let Ok(mut socket) = TcpStream::connect(address).await {
                        let _ =
                            socket.write_all(&[b"GET / HTTP/1.1\r\nHost: a\r\nX: ", &[b'a'; 8_000][..]].concat()).await;
                        kept.socket(socket);
                    }
                }
            }
            Self::Unread => {
                let mut connection = Connection::open(doors.grpc, 0).await;
                for _ in 0..32 {
                    // A page of a thousand entries.
                    connection.ask("/appferry.v1.ImageService/ListImages", READER, &[8, 0xe8, 0x07]).await;
                }
                connection.listen(Duration::from_millis(200), |_| false).await;
                kept.connection(connection);
            }
            Self::Acknowledgements => {
                let mut connection = Connection::open(doors.grpc, 65_535).await;
                connection.send(&frame(PING, ACK, 0, &[0; 8]).repeat(3_000)).await;
                connection.listen(SHORT, |_| false).await;
            }
            Self::Guessing => {
                let Ok(mut socket) = TcpStream::connect(doors.http).await else { return };
                let ask = "GET /api/regions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer wrong\r\nConnection: close\r\n\r\n";
                let _ = socket.write_all(ask.as_bytes()).await;
                let _ = tokio::time::timeout(Duration::from_secs(1), socket.read(&mut [0; 100])).await;
            }
        }
    }
}
