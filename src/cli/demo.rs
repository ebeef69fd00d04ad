//! `appferry demo`: the main job by itself.

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
    contract::v1::SynchronizeAppRequest,
    domain::ImageName,
    region::{Backend, Store, verify},
    service::{self, Role, Service},
};

/// The demo shows progress; logs would only disturb it.
pub const LOG: &str = "warn";

#[derive(Debug, Args)]
pub struct Arguments {
    /// A disk file to carry; without one, the program itself.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Exit when it is done, instead of going on to serve.
    #[arg(long)]
    exit: bool,
}

/// Starts the embedded service, adds an image, carries it to every region, and verifies it there.
pub async fn run(arguments: Arguments) -> Result<()> {
    let directory = DataDirectory::open(Path::new(data_dir::DIRECTORY))?;
    let mut config = directory.config()?;
    if arguments.exit {
        // Nobody else is going to call it.
        config.server.listen.set_port(0);
    }
    directory.migrate(&config).await?;
    let service = Service::start(&config, Role::ServerAndWorker).await.map_err(Error::local("starting"))?;
    let shown = show(&arguments, &directory, &config, &service).await;
    if shown.is_ok() && !arguments.exit {
        tokio::signal::ctrl_c().await.map_err(Error::local("signals"))?;
    }
    service.shutdown().await;
    shown
}

async fn show(
    arguments: &Arguments,
    directory: &DataDirectory,
    config: &crate::config::Config,
    service: &Service,
) -> Result<()> {
    let address = service.address().ok_or_else(|| Error::Ended("the service does not listen".to_owned()))?;
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
        None => std::env::current_exe().map_err(Error::local("the program's own file"))?,
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
    status::judge(&last)?;

    let Backend::Stores(stores) =
        service::backend(config, &crate::system_clock()).map_err(Error::local("the configuration"))?
    else {
        return Err(Error::Ended("the embedded regions are directories".to_owned()));
    };
    let image = ImageName(app_id.clone());
    for (region, store) in stores.iter() {
        let missing = || Error::Ended(format!("{region} does not show the image"));
        let failed = || Error::local(format!("verifying {region}"));
        let root = store.root(&image).await.map_err(failed())?.ok_or_else(missing)?;
        let found = verify(Arc::<dyn Store>::clone(store), &image, &root, &[]).await.map_err(failed())?;
        if !found.damages.is_empty() {
            return Err(Error::Ended(format!("{region}: {}", found.damages.join("; "))));
        }
        let path = directory.region(region.as_str()).join(&app_id);
        print::line(&format!("verified {region}: {} in {}", root.digest, path.display()))?;
    }
    if !arguments.exit {
        print::line(&format!(
            "\nTry it yourself (Ctrl-C ends it):\n  appferry image list\n  appferry status {request_id}\n  \
             grpcurl -plaintext -H \"authorization: Bearer $(cat {})\" {address} appferry.v1.ImageService/ListRegions",
            directory.token_file().display()
        ))?;
    }
    Ok(())
}
