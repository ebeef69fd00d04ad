//! `appferry image add`: puts an image into the home region's store and registers it.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;

use super::{Error, Result, data_dir, local_image::LocalImage, moved_names, print, progress};
use crate::{
    app,
    cli::connection::Connection,
    client::{self, Client},
    config::Config,
    contract::v1::{
        AddImageRequest, ContainerImageSpec, ErrorCode, ImageType, VmImageSpec,
        add_image_request::ImageSpec as WireSpec,
    },
    domain::{ImageId, ImageKind, ImageName, Progress, with_causes},
    storage::{ImageSpec, Memory, Stage, Store, split_digest},
    worker::import,
};

#[derive(Debug, Args)]
pub struct Add {
    #[command(flatten)]
    connection: Connection,
    /// The name of the image.
    #[arg(long)]
    name: String,
    #[command(flatten)]
    origin: Origin,
    /// The id of the image. Default: a new one.
    #[arg(long)]
    id: Option<String>,
    /// The version of the image.
    #[arg(long, default_value = "")]
    image_version: String,
    /// A description of the image.
    #[arg(long, default_value = "")]
    description: String,
    /// The service's configuration file, which has the home region's store. Default: that of ./appferry-data.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Take the name over from an image with another digest, which is no longer copied.
    #[arg(long)]
    supersede: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Origin {
    /// A disk file of any format, or a block device.
    #[arg(long, value_name = "DISK")]
    file: Option<PathBuf>,
    /// An OCI image layout or an archive of `docker save`, with the name or digest of an image in it, or both.
    #[arg(long, value_name = "LAYOUT[:NAME][@DIGEST]")]
    oci: Option<String>,
    /// A virtual machine image that the home region has, by its name there; in a region of ECS, `m-…`.
    #[arg(long, value_name = "ID")]
    vm_image: Option<String>,
    /// A container image that the home region's registry has: HOST/NAMESPACE/REPOSITORY:TAG. With @DIGEST, the digest
    /// takes precedence over the tag.
    #[arg(long, value_name = "URL")]
    registry_url: Option<String>,
}

impl Add {
    /// Returns the arguments with which `demo` adds a disk file.
    pub fn disk(connection: Connection, name: String, file: PathBuf) -> Self {
        Self {
            connection,
            name,
            origin: Origin { file: Some(file), oci: None, vm_image: None, registry_url: None },
            id: None,
            image_version: env!("CARGO_PKG_VERSION").to_owned(),
            description: String::new(),
            config: None,
            supersede: false,
            json: false,
        }
    }

    /// Puts the image into the home region's store, unless the store has it, and registers it. Returns its id.
    pub async fn run(self) -> Result<String> {
        // Connects first: an image that can't be registered is not copied.
        let client = self.connection.client().await?;
        let id = match &self.id {
            Some(id) => Some(unregistered(&client, id).await?),
            None => None,
        };
        let mut stored = None;
        let (id, spec) = match (&self.origin.vm_image, &self.origin.registry_url) {
            (Some(name), _) => (id, ImageSpec::Vm(name.clone())),
            (None, Some(url)) => (id, ImageSpec::Container(url.clone())),
            (None, None) => {
                let image = stored.insert(self.store(id).await?);
                (Some(image.id.clone()), spec(image.kind, &image.id))
            }
        };
        let is_pinned = matches!(&spec, ImageSpec::Container(url) if matches!(split_digest(url), Ok((_, Some(_)))));
        let (image_type, spec) = match spec {
            ImageSpec::Vm(image_id) => (ImageType::Vm, WireSpec::VmImageSpec(VmImageSpec { image_id })),
            ImageSpec::Container(registry_url) => {
                (ImageType::Container, WireSpec::ContainerImageSpec(ContainerImageSpec { registry_url }))
            }
        };
        let request = AddImageRequest {
            name: self.name,
            image_version: self.image_version,
            description: self.description,
            image_type: image_type.into(),
            image_spec: Some(spec),
            image_id: id.map(|id| id.to_string()).unwrap_or_default(),
            supersede: self.supersede,
        };
        match client.add_image(request).await {
            Ok(id) => {
                if is_pinned {
                    warn_of_moved_name(&client, &id).await;
                }
                Ok(id)
            }
            Err(error) => {
                if let Some(stored) = stored.filter(|_| is_rejected(&error)) {
                    stored.discard().await;
                }
                Err(error.into())
            }
        }
    }

    /// Puts the image into the home region's store, under `id` or a new id.
    async fn store(&self, id: Option<ImageId>) -> Result<StoredImage> {
        let config = match &self.config {
            Some(file) => Config::load(file).map_err(invalid_config())?,
            None => data_dir::config(Path::new(data_dir::DIRECTORY))?,
        };
        let home = config.regions().map_err(invalid_config())?.home().clone();
        let clock = crate::system_clock();
        let backend = app::backend(&config, &clock).map_err(Error::local("failed to open the home region's store"))?;
        let store = backend.store(&home).ok_or_else(|| {
            Error::usage(format!("{home} is a region of ECS, which accepts no files"))
                .with_hint("use --vm-image with an image that the region has")
        })?;
        let image = LocalImage::open(self.origin.file.as_deref(), self.origin.oci.as_deref()).await?;
        let id = match id {
            Some(id) => id,
            None => image
                .kind
                .new_id(|bound| rand::random_range(0..bound))
                .map_err(|error| Error::usage(format!("failed to create an id: {error}")))?,
        };
        let is_terminal = std::io::stderr().is_terminal();
        let bar = if is_terminal { progress::bar(home.as_str()) } else { indicatif::ProgressBar::hidden() };
        let show = |progress: Progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.copied + progress.skipped);
        };
        // The time serves as the fence: a later attempt has a higher one and removes the leftovers of earlier attempts.
        let fence = clock.now().as_millis().unsigned_abs();
        let name = spec_name(&**store, image.kind, &id)?;
        let stage = Stage::new(name, fence, Arc::new(Memory::default()));
        // If the store can't be read, the import fails and reports the reason.
        let is_new = matches!(store.root(&stage.name).await, Ok(None));
        let (_, warnings) = import(image.source, image.name, home.clone(), Arc::clone(store), stage.clone(), show)
            .await
            .map_err(Error::local("failed to put the image into the home region's store"))?;
        bar.finish_and_clear();
        let moved = image.warning.as_deref();
        moved.into_iter().chain(warnings.iter()).for_each(|warning| print::note(&format!("warning: {warning}")));
        Ok(StoredImage { id, kind: image.kind, store: Arc::clone(store), stage, is_new })
    }
}

/// Warns if the image's name now refers to a digest other than the registered one. A caller without permission to read
/// the image gets no warning.
async fn warn_of_moved_name(client: &Client, id: &str) {
    let Ok(image) = client.get_image(id).await else { return };
    for line in moved_names(&image) {
        print::note(&format!("warning: {line}"));
    }
}

/// An image in the home region's store that is not registered yet.
struct StoredImage {
    id: ImageId,
    kind: ImageKind,
    store: Arc<dyn Store>,
    stage: Stage,
    /// Whether this command put the image into the store.
    is_new: bool,
}

impl StoredImage {
    /// Removes the image if this command put it into the store. No registration needs it then.
    async fn discard(self) {
        if !self.is_new {
            return;
        }
        let name = &self.stage.name;
        match self.store.discard(&self.stage).await {
            Ok(true) => {}
            Ok(false) => print::note(&format!("warning: {name} stays in the home region's store")),
            Err(error) => {
                print::note(&format!("warning: {name} stays in the home region's store: {}", with_causes(&error)));
            }
        }
    }
}

fn invalid_config() -> impl FnOnce(crate::config::Error) -> Error {
    Error::local("invalid configuration")
}

/// Returns whether it is certain that the service did not register the image. In other cases the bytes of the image may
/// be needed: the response may have been lost, or an image with that id may be registered.
fn is_rejected(error: &client::Error) -> bool {
    use tonic::Code;
    let is_final = |code| matches!(code, Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument);
    error.refusal().is_some_and(|refusal| refusal.error.is_some() && is_final(refusal.status.code()))
}

/// Returns the spec of an image that is in the home region's store under its id.
fn spec(kind: ImageKind, id: &ImageId) -> ImageSpec {
    match kind {
        ImageKind::Vm => ImageSpec::Vm(id.to_string()),
        ImageKind::Container => ImageSpec::Container(format!("oci:{id}")),
    }
}

/// Returns the name that the home region's store gives to an image with the given id.
fn spec_name(store: &dyn Store, kind: ImageKind, id: &ImageId) -> Result<ImageName> {
    let located = store.locate(&spec(kind, id)).map_err(|problem| Error::usage(format!("--id {id}: {problem}")))?;
    Ok(located.name)
}

/// Parses an image id. Fails if an image with that id is registered.
async fn unregistered(client: &Client, id: &str) -> Result<ImageId> {
    let id: ImageId = id.parse().map_err(|error| Error::usage(format!("--id: {error}")))?;
    match client.get_image(id.as_str()).await {
        Ok(_) => Err(Error::failed(format!("ImageAlreadyExists: an image with the id {id} is registered already"))),
        Err(error) if error.refusal().is_some_and(|r| r.error == Some(ErrorCode::ImageNotFound.into())) => Ok(id),
        Err(error) => Err(error.into()),
    }
}
