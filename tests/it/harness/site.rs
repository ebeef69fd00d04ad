//! A site: a directory with regions and a database. A service in this process or in another one can use the site.

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

use super::{
    images,
    process::{self, Served},
};

/// The token of a principal with all permissions.
pub const ADMIN: &str = "the-administrators-token";
/// The token of a principal that may only synchronize.
pub const SYNC_ONLY: &str = "the-pipelines-token";
/// The token of a principal with read permissions only.
pub const READER: &str = "the-readers-token";

/// Lease duration of a site's workers. It exceeds the time by which a busy disk may delay a heartbeat.
pub const LEASE: Duration = Duration::from_secs(10);

pub const HOME: &str = "cn-hangzhou";
pub const TARGETS: [&str; 3] = ["cn-beijing", "cn-shanghai", "cn-shenzhen"];

/// An interceptor that adds a token, if any, to every call.
#[derive(Debug, Clone)]
pub struct Token(Option<String>);

impl Token {
    /// Returns an interceptor that adds `token`.
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

/// A home region, three other regions, and a database. The directory is removed when this value is dropped.
#[derive(Debug)]
pub struct Site {
    pub directory: tempfile::TempDir,
    /// The database URL; `None` for a SQLite file in the directory.
    pub url: Option<String>,
    /// Additional lines of `[database]`.
    pub database: String,
    /// Additional lines of `[audit]`.
    pub audit_more: String,
    /// Additional sections of the configuration file.
    pub more: String,
    /// Lines of `[server]`.
    pub server: String,
    /// Lines of `[worker]`.
    pub worker: String,
    /// Stores that replace the directories of regions.
    pub stores: Vec<(&'static str, String)>,
    /// Additional lines of the sections of regions.
    pub keys: Vec<(&'static str, String)>,
    /// ECS regions that replace all other regions, the home region first; none by default.
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

    /// Sets the database URL.
    pub fn on(mut self, url: &str) -> Self {
        self.url = Some(url.to_owned());
        self
    }

    /// Replaces a region's directory by another store, and adds lines to the region's section.
    pub fn with(mut self, region: &'static str, store: impl Into<String>, keys: impl Into<String>) -> Self {
        self.stores.push((region, store.into()));
        self.keys.push((region, keys.into()));
        self
    }

    /// Returns a region's directory.
    pub fn region(&self, region: &str) -> PathBuf {
        self.directory.path().join(region)
    }

    /// Returns the path of an image in a region.
    pub fn image(&self, region: &str, image: &str) -> PathBuf {
        self.region(region).join(image)
    }

    pub fn file(&self) -> PathBuf {
        self.directory.path().join("state.db")
    }

    /// Returns the path of the audit log.
    pub fn audit(&self) -> PathBuf {
        self.directory.path().join("audit.log")
    }

    /// Returns the configuration file's content.
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
            let directory_store = if self.ecs.is_empty() {
                format!("dir://{}", self.region(region).display())
            } else {
                format!("ecs://{region}")
            };
            let store =
                self.stores.iter().find(|(r, _)| r == region).map_or(directory_store, |(_, store)| store.clone());
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

    /// Returns the path of the configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.directory.path().join("appferry.toml")
    }

    /// Writes the configuration file, and returns its path.
    pub fn write_config(&self) -> PathBuf {
        let path = self.config_file();
        fs::write(&path, self.config()).expect("the configuration is written");
        path
    }

    /// Writes the configuration file, migrates the database, and starts a service in its own process.
    pub async fn serve(&self) -> Served {
        let config = self.write_config();
        process::migrate(&config);
        Served::configured(&config).await
    }

    /// Starts a service with workers in this process.
    pub async fn start(self) -> Running {
        self.start_as(Role::ServerAndWorker).await
    }

    pub async fn start_as(self, role: Role) -> Running {
        // Loads the configuration from a file, because the service reloads the file when it changes.
        let config = Config::load(&self.write_config()).expect("the configuration");
        db::migrate(&config.database.settings()).await.expect("the schema");
        let service = Service::start(&config, role).await.expect("the service starts");
        let address = service.address().expect("it listens");
        Running { site: self, service, address }
    }
}

/// A running service and its site.
#[derive(Debug)]
pub struct Running {
    pub site: Site,
    service: Service,
    pub address: SocketAddr,
}

impl Running {
    /// Shuts the service down and returns the site.
    pub async fn stop(self) -> Site {
        self.service.shutdown().await;
        self.site
    }

    /// Returns the address of the HTTP API.
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

    /// Writes an image with these layers to the home region, and registers it.
    pub async fn add(&self, name: &str, layers: &[Vec<u8>]) -> String {
        images::write(&self.site.image(HOME, name), layers);
        register(&mut self.images().await, name).await
    }

    /// Synchronizes an image to these regions, or to all regions if the list is empty. Returns the request id.
    pub async fn synchronize(&self, app: &str, regions: &[&str]) -> Result<String, Status> {
        let response = self.app_sync().await.synchronize_app(ask(app, regions)).await?;
        Ok(response.into_inner().request_id)
    }

    pub async fn get(&self, request_id: &str) -> Synchronization {
        get(&mut self.app_sync().await, request_id).await
    }

    /// Watches a synchronization until it has ended, and returns its final state.
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

/// Returns a client that connects only on its first call, because the service may have exited by then.
pub fn app_sync_lazy(address: SocketAddr) -> AppSync {
    let channel = Endpoint::from_shared(format!("http://{address}")).expect("an address").connect_lazy();
    AppSyncServiceClient::with_interceptor(channel, Token(Some(ADMIN.to_owned())))
}

pub async fn images_client(address: SocketAddr, token: Option<&str>) -> Images {
    ImageServiceClient::with_interceptor(channel(address).await, Token(token.map(str::to_owned)))
}

/// Returns a request to synchronize an image to these regions, or to all regions if the list is empty.
pub fn ask(app: &str, regions: &[&str]) -> SynchronizeAppRequest {
    SynchronizeAppRequest {
        app_id: app.to_owned(),
        target_region_ids: regions.iter().map(|&r| r.to_owned()).collect(),
        ..Default::default()
    }
}

/// Returns a request to register an image whose name and id in the home region's store are both `name`.
pub fn registration(name: &str) -> AddImageRequest {
    AddImageRequest {
        name: name.to_owned(),
        image_type: ImageType::Vm.into(),
        image_spec: Some(add_image_request::ImageSpec::VmImageSpec(VmImageSpec { image_id: name.to_owned() })),
        image_id: name.to_owned(),
        ..Default::default()
    }
}

/// Returns a request to register a container image by its URL.
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

/// Watches a synchronization until it has ended, and returns its final state. Waits for `patience` at most.
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
