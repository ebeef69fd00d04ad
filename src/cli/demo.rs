//! `appferry demo`: synchronizes an image with a service of its own.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;

use super::{
    Error, Result,
    connection::Connection,
    data_dir::{self, DataDirectory},
    image::Add,
    print, status,
};
use crate::{
    app::{self, Role, Service},
    contract::v1::SynchronizeAppRequest,
    domain::ImageName,
    storage::{Backend, MovedName, Store, verify},
};

/// The log filter. More log lines would interrupt the progress bars.
pub const LOG: &str = "warn";

#[derive(Debug, Args)]
pub struct Arguments {
    /// The disk file to synchronize. Default: this program.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Exit after the verification instead of continuing to serve.
    #[arg(long)]
    exit: bool,
}

/// Starts a local service, adds an image, synchronizes it to every region, and verifies the copies.
pub async fn run(arguments: Arguments) -> Result<()> {
    let directory = DataDirectory::open(Path::new(data_dir::DIRECTORY))?;
    let mut config = directory.config()?;
    if arguments.exit {
        // Any free port will do, because no other program calls the service.
        config.server.listen.set_port(0);
    }
    directory.migrate(&config).await?;
    let service =
        Service::start(&config, Role::ServerAndWorker).await.map_err(Error::local("failed to start the service"))?;
    let result = show(&arguments, &directory, &config, &service).await;
    if result.is_ok() && !arguments.exit {
        tokio::signal::ctrl_c().await.map_err(Error::local("failed to wait for Ctrl-C"))?;
    }
    service.shutdown().await;
    result
}

async fn show(
    arguments: &Arguments,
    directory: &DataDirectory,
    config: &crate::config::Config,
    service: &Service,
) -> Result<()> {
    let address = service.address().ok_or_else(|| Error::failed("the service has no listener"))?;
    let connection = Connection {
        allow_plaintext: false,
        endpoint: format!("http://{address}"),
        token_file: None,
        ca_file: None,
        certificate_file: None,
        key_file: None,
        token: Some(directory.token().to_owned()),
    };
    let file = match &arguments.image {
        Some(file) => file.clone(),
        None => std::env::current_exe().map_err(Error::local("failed to find the file of this program"))?,
    };
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    print::line(&format!("serving at {address}; adding {}", file.display()))?;
    let app_id = Add::disk(connection.clone(), name, file).run().await?;
    print::line(&format!("added {app_id} in {}; synchronizing it to all regions", config.home.region))?;

    let request = SynchronizeAppRequest { app_id: app_id.clone(), ..Default::default() };
    let client = connection.client().await?;
    let request_id = client.synchronize_app(request).await?;
    let last = status::follow(&client, &request_id, true, |_| Ok(())).await?;
    print::line(&print::synchronization(&last))?;
    status::check_succeeded(&last)?;

    let Backend::Stores(stores) =
        app::backend(config, &crate::system_clock()).map_err(Error::local("failed to open the stores"))?
    else {
        return Err(Error::failed("the local regions are not directories"));
    };
    let image = ImageName(app_id.clone());
    for (region, store) in stores.iter() {
        let missing = || Error::failed(format!("{region} does not have the image"));
        let failed = || Error::local(format!("failed to verify the image in {region}"));
        let root = store.root(&image).await.map_err(failed())?.ok_or_else(missing)?;
        let report =
            verify(Arc::<dyn Store>::clone(store), &image, &root, &[], MovedName::Damages).await.map_err(failed())?;
        if !report.damages.is_empty() {
            return Err(Error::failed(format!("the image is damaged in {region}: {}", report.damages.join("; "))));
        }
        let path = directory.region(region.as_str()).join(&app_id);
        print::line(&format!("verified {region}: {} in {}", root.digest, path.display()))?;
    }
    if !arguments.exit {
        print::line(&format!(
            "\nTry it (Ctrl-C stops the service):\n  appferry image list\n  appferry status {request_id}\n  \
             grpcurl -plaintext -H \"authorization: Bearer $(cat {})\" {address} appferry.v1.ImageService/ListRegions",
            directory.token_file().display()
        ))?;
    }
    Ok(())
}
