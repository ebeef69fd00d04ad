//! `appferry image`.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, Subcommand};

use super::{Error, Result, connection::Connection, data_dir, origin::Origin, print, progress, verify};
use crate::{
    client::{self, Client},
    config::Config,
    contract::v1::{
        AddImageRequest, ContainerImageSpec, ErrorCode, Image, ImageType, ListImagesRequest, RegionState, VmImageSpec,
        add_image_request,
    },
    domain::{ForeignText, ImageId, ImageKind, ImageName, with_causes},
    region::{ImageSpec, Memory, Stage, Store},
    service,
    worker::import,
};

/// Entries that are asked for at once.
const PAGE: i32 = 200;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Put an image into the home region's store and register it.
    Add(Box<Add>),
    /// List the images.
    List(Plain),
    /// Show an image and its regions.
    Show(One),
    /// Read an image again where it should be, and say where it is not whole.
    Verify(verify::Arguments),
    /// Forget an image; its bytes stay where they are.
    Remove(One),
}

#[derive(Debug, Args)]
pub struct Add {
    #[command(flatten)]
    connection: Connection,
    /// What people call it.
    #[arg(long)]
    name: String,
    #[command(flatten)]
    from: From,
    /// The id to register it by; without it, one is made.
    #[arg(long)]
    id: Option<String>,
    /// Its version.
    #[arg(long, default_value = "")]
    image_version: String,
    /// What it is for.
    #[arg(long, default_value = "")]
    description: String,
    /// The service's configuration file, which says where the home region's store is; without one, ./appferry-data.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Take the name over from an image that has it with another digest; that one is copied nowhere any more.
    #[arg(long)]
    supersede: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct From {
    /// A disk file, of any kind, or a block device.
    #[arg(long, value_name = "DISK")]
    file: Option<PathBuf>,
    /// An OCI image layout, or an archive of images as `docker save` writes it, and the name or the digest of the image in it.
    #[arg(long, value_name = "LAYOUT[:NAME]")]
    oci: Option<String>,
    /// A virtual machine's image that the home region has already, by its name there: in a region of ECS, `m-…`.
    #[arg(long, value_name = "ID")]
    vm_image: Option<String>,
    /// A container image that the home region's registry has already, by what people pull it by: HOST/NAMESPACE/REPOSITORY:TAG.
    #[arg(long, value_name = "URL")]
    registry_url: Option<String>,
}

#[derive(Debug, Args)]
pub struct Plain {
    #[command(flatten)]
    connection: Connection,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct One {
    #[command(flatten)]
    connection: Connection,
    /// The image.
    image_id: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs one of the commands.
pub async fn run(command: Command) -> Result<()> {
    match command {
        Command::Add(add) => {
            let json = add.json;
            let id = add.run().await?;
            if json {
                print::line(&serde_json::json!({ "imageId": id }).to_string())
            } else {
                print::line(&ForeignText::value(id))
            }
        }
        Command::List(plain) => list(plain).await,
        Command::Show(one) => show(one).await,
        Command::Verify(arguments) => verify::run(arguments).await,
        Command::Remove(one) => {
            let response = one.connection.client().await?.remove_image(one.image_id).await?;
            if one.json { print::message("RemoveImageResponse", &response) } else { Ok(()) }
        }
    }
}

impl Add {
    /// What `demo` adds.
    pub fn disk(connection: Connection, name: String, file: PathBuf) -> Self {
        Self {
            connection,
            name,
            from: From { file: Some(file), oci: None, vm_image: None, registry_url: None },
            id: None,
            image_version: env!("CARGO_PKG_VERSION").to_owned(),
            description: String::new(),
            config: None,
            supersede: false,
            json: false,
        }
    }

    /// Puts the image into the store, if it is not there, registers it, and returns its id.
    pub async fn run(self) -> Result<String> {
        // Asked first: bytes that nobody can register need not be carried.
        let client = self.connection.client().await?;
        let chosen = match &self.id {
            Some(id) => Some(unregistered(&client, id).await?),
            None => None,
        };
        let mut placed = None;
        let (id, spec) = match (&self.from.vm_image, &self.from.registry_url) {
            (Some(name), _) => (chosen, ImageSpec::Vm(name.clone())),
            (None, Some(url)) => (chosen, ImageSpec::Container(url.clone())),
            (None, None) => {
                let put = placed.insert(self.put(chosen).await?);
                (Some(put.id.clone()), spec(put.kind, &put.id))
            }
        };
        let (image_type, spec) = match spec {
            ImageSpec::Vm(image_id) => {
                (ImageType::Vm, add_image_request::ImageSpec::VmImageSpec(VmImageSpec { image_id }))
            }
            ImageSpec::Container(registry_url) => {
                let spec = ContainerImageSpec { registry_url };
                (ImageType::Container, add_image_request::ImageSpec::ContainerImageSpec(spec))
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
            Ok(id) => Ok(id),
            Err(error) => {
                if let Some(placed) = placed.filter(|_| is_rejected(&error)) {
                    placed.discard().await;
                }
                Err(error.into())
            }
        }
    }

    /// Puts the image into the home region's store, by the id that was chosen or one that is made.
    async fn put(&self, chosen: Option<ImageId>) -> Result<Placed> {
        let config = match &self.config {
            Some(file) => Config::load(file),
            None => data_dir::config(Path::new(data_dir::DIRECTORY)).map(Ok)?,
        };
        let config = config.map_err(Error::local("the configuration"))?;
        let home = config.regions().map_err(Error::local("the configuration"))?.home().clone();
        let clock = crate::system_clock();
        let backend = service::backend(&config, &clock).map_err(Error::local("the configuration"))?;
        let store = backend.store(&home).ok_or_else(|| {
            Error::Usage(format!("{home} is a region of ECS, which takes no files; name an image of it by --vm-image"))
        })?;
        let origin = Origin::open(self.from.file.as_deref(), self.from.oci.as_deref()).await?;
        let id = match chosen {
            Some(id) => id,
            None => origin
                .kind
                .new_id(|bound| rand::random_range(0..bound))
                .map_err(|error| Error::Usage(format!("an id can't be made: {error}")))?,
        };
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal { progress::bar(home.as_str()) } else { indicatif::ProgressBar::hidden() };
        let show = |progress: crate::domain::Progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.copied + progress.skipped);
        };
        // A later attempt has a higher fence, and clears away what an earlier one left.
        let fence = clock.now().as_millis().unsigned_abs();
        let name = spec_name(&**store, origin.kind, &id)?;
        let stage = Stage::new(name, fence, Arc::new(Memory::default()));
        // What can't be looked at can't be written either: the import says why.
        let is_new = matches!(store.root(&stage.name).await, Ok(None));
        let (_, warnings) = import(origin.source, origin.name, home.clone(), Arc::clone(store), stage.clone(), show)
            .await
            .map_err(Error::local("the image could not be put into the home region's store"))?;
        bar.finish_and_clear();
        warnings.iter().for_each(|warning| print::note(&format!("warning: {warning}")));
        Ok(Placed { id, kind: origin.kind, store: Arc::clone(store), stage, is_new })
    }
}

/// An image that was put into the home region's store.
struct Placed {
    id: ImageId,
    kind: ImageKind,
    store: Arc<dyn Store>,
    stage: Stage,
    /// Whether it was not there before.
    is_new: bool,
}

impl Placed {
    /// Removes the image again, if this command has put it there: nothing is registered that needs it.
    async fn discard(self) {
        if !self.is_new {
            return;
        }
        let name = &self.stage.name;
        match self.store.discard(&self.stage).await {
            Ok(true) => {}
            Ok(false) => print::note(&format!("{name} stays in the home region's store")),
            Err(error) => print::note(&format!("{name} stays in the home region's store: {}", with_causes(&error))),
        }
    }
}

/// Whether the service has certainly not registered the image, and will not. Where the answer was lost, or an image of that id is
/// registered already, the bytes may be needed.
fn is_rejected(error: &client::Error) -> bool {
    use tonic::Code;
    let is_final = |code| matches!(code, Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument);
    error.refusal().is_some_and(|refusal| refusal.error.is_some() && is_final(refusal.status.code()))
}

/// How an image is described that lies in the home region's store by its id.
fn spec(kind: ImageKind, id: &ImageId) -> ImageSpec {
    match kind {
        ImageKind::Vm => ImageSpec::Vm(id.to_string()),
        ImageKind::Container => ImageSpec::Container(format!("oci:{id}")),
    }
}

/// What the home region's store calls an image that is registered by its id.
fn spec_name(store: &dyn Store, kind: ImageKind, id: &ImageId) -> Result<ImageName> {
    store.locate(&spec(kind, id)).map_err(|problem| Error::Usage(format!("--id {id}: {problem}")))
}

/// The id, if no image is registered by it yet.
async fn unregistered(client: &Client, id: &str) -> Result<ImageId> {
    let id: ImageId = id.parse().map_err(|error| Error::Usage(format!("--id: {error}")))?;
    match client.get_image(id.as_str()).await {
        Ok(_) => Err(Error::Ended(format!("ImageAlreadyExists: an image {id} is registered already"))),
        Err(error) if error.refusal().is_some_and(|r| r.error == Some(ErrorCode::ImageNotFound.into())) => Ok(id),
        Err(error) => Err(error.into()),
    }
}

async fn list(plain: Plain) -> Result<()> {
    let client = plain.connection.client().await?;
    let mut images: Vec<Image> = Vec::new();
    let mut page_token = String::new();
    loop {
        let page = client.list_images(ListImagesRequest { page_size: PAGE, page_token, ..Default::default() }).await?;
        images.extend(page.images);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if plain.json {
        return images.iter().try_for_each(|image| print::message("Image", image));
    }
    let rows: Vec<_> = images.into_iter().map(row).collect();
    print::line(&print::table(["IMAGE", "NAME", "VERSION", "SIZE", "AVAILABLE IN"], &rows))
}

fn row(image: Image) -> [String; 5] {
    let there = image.additional_regions_info.iter().filter(|i| i.status() == RegionState::Available);
    let there = there.map(|i| i.region_id.clone()).collect::<Vec<_>>().join(" ");
    [image.image_id, image.name, image.image_version, print::bytes(image.size_bytes), there]
}

async fn show(one: One) -> Result<()> {
    let image = one.connection.client().await?.get_image(one.image_id).await?;
    if one.json {
        return print::message("Image", &image);
    }
    let regions: Vec<_> = image
        .additional_regions_info
        .iter()
        .map(|info| {
            let state = match info.status() {
                RegionState::Unspecified => "-".to_owned(),
                state => print::available_as(state, info.verification()),
            };
            [info.region_id.clone(), state, info.image_id.clone()]
        })
        .collect();
    // What ECS keeps has no digest.
    let head = [
        &image.image_id,
        &format!("{} {}", image.name, image.image_version),
        &print::bytes(image.size_bytes),
        &image.digest,
    ];
    let head = head.map(ForeignText::new).into_iter().filter(|part| !part.trim().is_empty());
    let head = head.map(String::from).collect::<Vec<_>>().join("  ");
    let mut text = format!("{head}\n{}", print::table(["REGION", "STATE", "IMAGE"], &regions));
    if !image.superseded_by.is_empty() {
        text = format!("{text}\nsuperseded by {}, which has its name now", ForeignText::value(&image.superseded_by));
    }
    for info in image.additional_regions_info.iter().filter(|info| !info.shown_digest.is_empty()) {
        let (region, shown) = (ForeignText::value(&info.region_id), ForeignText::value(&info.shown_digest));
        text = format!("{text}\nits name in {region} shows {shown} now; it is copied by its own digest");
    }
    for info in &image.additional_regions_info {
        for warning in print::warnings(&info.region_id, &info.warnings) {
            text = format!("{text}\n{warning}");
        }
    }
    print::line(&text)
}
