//! `appferry image`: manages images.

mod add;
mod local_image;
mod verify;

use clap::{Args, Subcommand};

pub use self::add::Add;
use super::{Error, Result, connection::Connection, data_dir, print, progress};
use crate::{
    contract::v1::{Image, ListImagesRequest, RegionState},
    domain::ForeignText,
};

/// The page size of list requests.
const PAGE_SIZE: i32 = 200;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Put an image into the home region's store and register it.
    Add(Box<Add>),
    /// List the images.
    List(ListArguments),
    /// Show an image and its state in each region.
    Show(ImageArguments),
    /// Read an image in its regions and compare all digests.
    Verify(verify::Arguments),
    /// Remove the registration of an image; its bytes stay in the stores.
    Remove(ImageArguments),
}

#[derive(Debug, Args)]
pub struct ListArguments {
    #[command(flatten)]
    connection: Connection,
    /// Print JSON, one line per image.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct ImageArguments {
    #[command(flatten)]
    connection: Connection,
    /// The id of the image.
    image_id: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs a subcommand.
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
        Command::List(arguments) => list(arguments).await,
        Command::Show(arguments) => show(arguments).await,
        Command::Verify(arguments) => verify::run(arguments).await,
        Command::Remove(arguments) => {
            let response = arguments.connection.client().await?.remove_image(arguments.image_id).await?;
            if arguments.json { print::message("RemoveImageResponse", &response) } else { Ok(()) }
        }
    }
}

async fn list(arguments: ListArguments) -> Result<()> {
    let client = arguments.connection.client().await?;
    let mut images: Vec<Image> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListImagesRequest { page_size: PAGE_SIZE, page_token, ..Default::default() };
        let page = client.list_images(request).await?;
        images.extend(page.images);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if arguments.json {
        return images.iter().try_for_each(|image| print::message("Image", image));
    }
    let rows: Vec<_> = images.into_iter().map(row).collect();
    print::line(&print::table(["IMAGE", "NAME", "VERSION", "SIZE", "AVAILABLE IN"], &rows))
}

fn row(image: Image) -> [String; 5] {
    let available = image.additional_regions_info.iter().filter(|info| info.status() == RegionState::Available);
    let available = available.map(|info| info.region_id.clone()).collect::<Vec<_>>().join(" ");
    [image.image_id, image.name, image.image_version, print::bytes(image.size_bytes), available]
}

async fn show(arguments: ImageArguments) -> Result<()> {
    let image = arguments.connection.client().await?.get_image(arguments.image_id).await?;
    if arguments.json {
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
    let head = [
        &image.image_id,
        &format!("{} {}", image.name, image.image_version),
        &print::bytes(image.size_bytes),
        // An ECS image has no digest.
        &image.digest,
    ];
    let head = head.map(ForeignText::new).into_iter().filter(|part| !part.trim().is_empty());
    let head = head.map(String::from).collect::<Vec<_>>().join("  ");
    let mut text = format!("{head}\n{}", print::table(["REGION", "STATE", "IMAGE"], &regions));
    if !image.superseded_by.is_empty() {
        text = format!("{text}\nsuperseded by {}, which has its name now", ForeignText::value(&image.superseded_by));
    }
    for line in moved_names(&image) {
        text = format!("{text}\n{line}");
    }
    for info in &image.additional_regions_info {
        for warning in print::warnings(&info.region_id, &info.warnings) {
            text = format!("{text}\n{warning}");
        }
    }
    print::line(&text)
}

/// Returns a line for each region in which the image's name now refers to another digest.
fn moved_names(image: &Image) -> impl Iterator<Item = String> {
    image.additional_regions_info.iter().filter(|info| !info.shown_digest.is_empty()).map(|info| {
        let (region, shown) = (ForeignText::value(&info.region_id), ForeignText::value(&info.shown_digest));
        format!("its name in {region} has digest {shown} now; the image is copied by its own digest")
    })
}
