//! A directory with regions and a database, and a service in this process on it.

use std::{fmt::Write as _, fs, net::SocketAddr, path::PathBuf, time::Duration};

use appferry::{
    app::{Role, Service},
    config::Config,
    contract::v1::{
        AddImageRequest, ContainerImageSpec, GetSynchronizationRequest, ImageType, Synchronization,
        SynchronizationState, SynchronizeAppRequest, VmImageSpec, WatchSynchronizationRequest, add_image_request,
        app_sync_service_client::AppSyncServiceClient, image_service_client::ImageServiceClient,
    },
    db,
};
use sha2::{Digest as _, Sha256};
use tonic::{
    Request, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::images;

/// The token of somebody who may do everything.
pub const ADMIN: &str = "the-administrators-token";
/// The token of somebody who may synchronize, and nothing else.
pub const SYNC_ONLY: &str = "the-pipelines-token";
/// The token of somebody who may look, and nothing else.
pub const READER: &str = "the-readers-token";

/// The lease of a site's workers: longer than a busy disk may take to write down that they are alive.
pub const LEASE: Duration = Duration::from_secs(10);

pub const HOME: &str = "cn-hangzhou";
pub const TARGETS: [&str; 3] = ["cn-beijing", "cn-shanghai", "cn-shenzhen"];

/// Puts a token on every call, or none.
#[derive(Debug, Clone)]
pub struct Token(Option<String>);

impl Token {
    /// Puts this token on every call.
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(Some(token.to_owned()))
    }
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let value = format!("Bearer {token}").parse().map_err(|_| Status::internal("the test's token"))?;
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

pub type AppSync = AppSyncServiceClient<InterceptedService<Channel, Token>>;
pub type Images = ImageServiceClient<InterceptedService<Channel, Token>>;

/// A home region, three others, and a database, in a directory that goes with it.
#[derive(Debug)]
pub struct Site {
    pub directory: tempfile::TempDir,
    /// The database, if it is not a file of the directory.
    pub url: Option<String>,
    /// Lines of `[database]`.
    pub database: String,
    /// Lines of `[audit]`.
    pub audit_more: String,
    /// Sections that follow the configuration.
    pub more: String,
    /// Lines of `[server]`.
    pub server: String,
    /// Lines of `[worker]`.
    pub worker: String,
    /// A store that takes the place of a region's directory.
    pub stores: Vec<(&'static str, String)>,
    /// Further lines of a region.
    pub keys: Vec<(&'static str, String)>,
    /// Regions of ECS instead of all others, the home region first.
    pub ecs: Vec<&'static str>,
}

impl Site {
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("appferry-").tempdir().expect("a directory");
        for region in [HOME].iter().chain(&TARGETS) {
            fs::create_dir(directory.path().join(region)).expect("a region's directory");
        }
        let lease = LEASE.as_millis();
        let worker = format!("heartbeat_ms = 50\nlease_ms = {lease}\npoll_ms = 100\nretry_first_ms = 50\nattempts = 3");
        Self {
            directory,
            url: None,
            database: String::new(),
            audit_more: String::new(),
            more: String::new(),
            server: String::new(),
            worker,
            stores: Vec::new(),
            keys: Vec::new(),
            ecs: Vec::new(),
        }
    }

    /// Keeps the state in another database.
    pub fn on(mut self, url: &str) -> Self {
        self.url = Some(url.to_owned());
        self
    }

    /// Puts another store in the place of a region's directory.
    pub fn with(mut self, region: &'static str, store: impl Into<String>, keys: impl Into<String>) -> Self {
        self.stores.push((region, store.into()));
        self.keys.push((region, keys.into()));
        self
    }

    /// A region's directory.
    pub fn region(&self, region: &str) -> PathBuf {
        self.directory.path().join(region)
    }

    /// Where the service finds an image of a region.
    pub fn image(&self, region: &str, image: &str) -> PathBuf {
        self.region(region).join(image)
    }

    pub fn file(&self) -> PathBuf {
        self.directory.path().join("state.db")
    }

    /// The audit log.
    pub fn audit(&self) -> PathBuf {
        self.directory.path().join("audit.log")
    }

    /// The configuration as its file has it.
    pub fn config(&self) -> String {
        let mut text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n{}\n[audit]\nto = \"{}\"\n{}\n[worker]\n{}\n[database]\nurl = \"{}\"\n{}\n\
             [home]\nregion = \"{HOME}\"\n",
            self.server,
            self.audit().display(),
            self.audit_more,
            self.worker,
            self.url.clone().unwrap_or_else(|| format!("sqlite://{}", self.file().display())),
            self.database
        );
        let ours: Vec<_> = [HOME].into_iter().chain(TARGETS).collect();
        for region in if self.ecs.is_empty() { &ours } else { &self.ecs } {
            let own = if self.ecs.is_empty() {
                format!("dir://{}", self.region(region).display())
            } else {
                format!("ecs://{region}")
            };
            let store = self.stores.iter().find(|(r, _)| r == region).map_or(own, |(_, store)| store.clone());
            write!(text, "[[region]]\nid = \"{region}\"\nstore = \"{store}\"\n").expect("memory");
            for (_, lines) in self.keys.iter().filter(|(r, _)| r == region) {
                writeln!(text, "{lines}").expect("memory");
            }
        }
        for (name, token, actions) in [
            ("user/admin", ADMIN, "\"ehpc:*\""),
            ("role/pipeline", SYNC_ONLY, "\"ehpc:SynchronizeApp\""),
            ("user/reader", READER, "\"ehpc:Get*\",\"ehpc:List*\",\"ehpc:WatchSynchronization\""),
        ] {
            let digest = hex::encode(Sha256::digest(token));
            write!(
                text,
                "[[principal]]\narn = \"acs:ram::1234:{name}\"\ntoken_sha256 = \"{digest}\"\npolicies = [\"{name}\"]\n\
                 [[policy]]\nname = \"{name}\"\n\
                 document = '{{\"Version\":\"1\",\"Statement\":[{{\"Effect\":\"Allow\",\"Action\":[{actions}],\"Resource\":\"*\"}}]}}'\n"
            )
            .expect("memory");
        }
        text + &self.more
    }

    /// Writes the configuration down for a process.
    pub fn write_config(&self) -> PathBuf {
        let path = self.directory.path().join("appferry.toml");
        fs::write(&path, self.config()).expect("the configuration is written");
        path
    }

    /// Starts a service that answers calls and carries images.
    pub async fn start(self) -> Running {
        self.start_as(Role::ServerAndWorker).await
    }

    pub async fn start_as(self, role: Role) -> Running {
        // From its file, which is read again when it changes.
        let config = Config::load(&self.write_config()).expect("the configuration");
        db::migrate(&config.database.settings()).await.expect("the schema");
        let service = Service::start(&config, role).await.expect("the service starts");
        let address = service.address().expect("it listens");
        Running { site: self, service, address }
    }
}

/// A running service, its site, and clients for it.
#[derive(Debug)]
pub struct Running {
    pub site: Site,
    service: Service,
    pub address: SocketAddr,
}

impl Running {
    /// Shuts the service down and leaves the site.
    pub async fn stop(self) -> Site {
        self.service.shutdown().await;
        self.site
    }

    /// Where it listens for the original's HTTP form.
    pub fn openapi(&self) -> SocketAddr {
        self.service.openapi_address().expect("it listens")
    }

    pub async fn channel(&self) -> Channel {
        channel(self.address).await
    }

    pub async fn app_sync(&self) -> AppSync {
        app_sync(self.address, Some(ADMIN)).await
    }

    pub async fn images(&self) -> Images {
        images_client(self.address, Some(ADMIN)).await
    }

    /// Puts an image of some layers into the home region and registers it by the name.
    pub async fn add(&self, name: &str, layers: &[Vec<u8>]) -> String {
        images::write(&self.site.image(HOME, name), layers);
        register(&mut self.images().await, name).await
    }

    /// Synchronizes an image; no regions are all regions.
    pub async fn synchronize(&self, app: &str, regions: &[&str]) -> Result<String, Status> {
        let response = self.app_sync().await.synchronize_app(ask(app, regions)).await?;
        Ok(response.into_inner().request_id)
    }

    pub async fn get(&self, request_id: &str) -> Synchronization {
        get(&mut self.app_sync().await, request_id).await
    }

    /// Watches a synchronization to its end.
    pub async fn finished(&self, request_id: &str) -> Synchronization {
        finished(&mut self.app_sync().await, request_id).await
    }
}

pub async fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).expect("an address").connect().await.expect("it listens")
}

pub async fn app_sync(address: SocketAddr, token: Option<&str>) -> AppSync {
    AppSyncServiceClient::with_interceptor(channel(address).await, Token(token.map(str::to_owned)))
}

/// A client that connects when it is used: the service may be gone by then.
pub fn app_sync_lazy(address: SocketAddr) -> AppSync {
    let channel = Endpoint::from_shared(format!("http://{address}")).expect("an address").connect_lazy();
    AppSyncServiceClient::with_interceptor(channel, Token(Some(ADMIN.to_owned())))
}

pub async fn images_client(address: SocketAddr, token: Option<&str>) -> Images {
    ImageServiceClient::with_interceptor(channel(address).await, Token(token.map(str::to_owned)))
}

/// A request to synchronize.
pub fn ask(app: &str, regions: &[&str]) -> SynchronizeAppRequest {
    SynchronizeAppRequest {
        app_id: app.to_owned(),
        target_region_ids: regions.iter().map(|&r| r.to_owned()).collect(),
        ..Default::default()
    }
}

/// A request to register what the home region's store has by `name`, by that id.
pub fn registration(name: &str) -> AddImageRequest {
    AddImageRequest {
        name: name.to_owned(),
        image_type: ImageType::Vm.into(),
        image_spec: Some(add_image_request::ImageSpec::VmImageSpec(VmImageSpec { image_id: name.to_owned() })),
        image_id: name.to_owned(),
        ..Default::default()
    }
}

/// A request to register a container image by its URL, by that id.
pub fn container(id: &str, url: &str) -> AddImageRequest {
    let spec = ContainerImageSpec { registry_url: url.to_owned() };
    AddImageRequest {
        image_type: ImageType::Container.into(),
        image_spec: Some(add_image_request::ImageSpec::ContainerImageSpec(spec)),
        ..registration(id)
    }
}

pub async fn register(client: &mut Images, name: &str) -> String {
    client.add_image(registration(name)).await.expect("it is registered").into_inner().image_id
}

pub async fn get(client: &mut AppSync, request_id: &str) -> Synchronization {
    let request = GetSynchronizationRequest { request_id: request_id.to_owned() };
    let response = client.get_synchronization(request).await.expect("it is known");
    response.into_inner().synchronization.expect("a synchronization")
}

pub async fn finished(client: &mut AppSync, request_id: &str) -> Synchronization {
    finished_within(client, request_id, super::PATIENCE).await
}

/// Watches a synchronization to its end, which must come in time.
pub async fn finished_within(client: &mut AppSync, request_id: &str, patience: Duration) -> Synchronization {
    let watch = async {
        let request = WatchSynchronizationRequest { request_id: request_id.to_owned() };
        let mut stream = client.watch_synchronization(request).await.expect("it can be watched").into_inner();
        let mut last = None;
        while let Some(message) = stream.message().await.expect("the stream goes on") {
            last = message.synchronization;
        }
        last.expect("a snapshot")
    };
    let last = tokio::time::timeout(patience, watch).await.expect("it ends");
    assert_ne!(last.state(), SynchronizationState::Running, "the stream ended early");
    last
}
