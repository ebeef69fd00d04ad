//! Starts the service that fuzz targets test.

use std::{net::SocketAddr, path::Path};

use appferry::{
    app::{Role, Service},
    config::Config,
    db,
};
use tokio::runtime::Runtime;

/// The token of a principal with all permissions.
#[allow(dead_code, reason = "not every target shows it")]
pub const TOKEN: &str = "fuzz";
/// The SHA-256 digest of [`TOKEN`].
const TOKEN_SHA256: &str = "93850b707585e404e4951a3ddc1f05a34b3d4f5fc081d616f46d8a2e8f1c8e68";

/// A running service, the runtime of the service and its clients, and the address to which a target connects.
pub struct Running {
    pub runtime: Runtime,
    pub address: SocketAddr,
    _service: Service,
}

impl Running {
    /// Starts a service whose files are in `directory`, and appends `more` to its configuration. `address` selects the
    /// listener.
    pub fn start(directory: &Path, more: &str, address: fn(&Service) -> Option<SocketAddr>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let service = runtime.block_on(service(directory, more));
        let address = address(&service).expect("it listens");
        Self { runtime, address, _service: service }
    }
}

async fn service(directory: &Path, more: &str) -> Service {
    let home = directory.join("home");
    std::fs::create_dir_all(&home).expect("a directory");
    let config = Config::parse(&format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[audit]\nto = \"/dev/null\"\n[database]\nurl = \"sqlite://{}\"\n\
         [home]\nregion = \"home\"\n[[region]]\nid = \"home\"\nstore = \"dir://{}\"\n\
         [[principal]]\narn = \"acs:ram::1:user/fuzz\"\ntoken_sha256 = \"{TOKEN_SHA256}\"\npolicies = [\"all\"]\n\
         [[policy]]\nname = \"all\"\n\
         document = '{{\"Version\":\"1\",\"Statement\":{{\"Effect\":\"Allow\",\"Action\":\"*\",\"Resource\":\"*\"}}}}'\n{more}",
        directory.join("state.db").display(),
        home.display(),
    ))
    .expect("a configuration");
    db::migrate(&config.database.settings()).await.expect("the schema");
    Service::start(&config, Role::Server).await.expect("it starts")
}
