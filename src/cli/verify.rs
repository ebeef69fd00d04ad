//! `appferry image verify`.

use clap::Args;

use super::{Error, Result, connection::Connection, print};
use crate::{
    contract::v1::{Intactness, VerifyImageRequest},
    domain::ForeignText,
};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// The image.
    image_id: String,
    /// The region to read it in; given several times, all of them; without any, every region that should have it.
    #[arg(long, value_name = "REGION")]
    region: Vec<String>,
    /// Print JSON, a line a region.
    #[arg(long)]
    json: bool,
}

/// Reads an image again where it should be, tells of each region as soon as that is done, and fails if it is not whole everywhere.
pub async fn run(arguments: Arguments) -> Result<()> {
    let Arguments { connection, image_id, region, json } = arguments;
    let request = VerifyImageRequest { image_id: image_id.clone(), region_ids: region };
    let mut stream = connection.client().await?.images().verify_image(request).await?.into_inner();
    let mut wrong = Vec::new();
    while let Some(found) = stream.message().await? {
        let intactness = found.intactness();
        if intactness != Intactness::Intact {
            wrong.push(String::from(ForeignText::value(&found.region_id)));
        }
        if json {
            print::message("VerifyImageResponse", &found)?;
            continue;
        }
        let name = intactness.as_str_name().trim_start_matches("INTACTNESS_");
        print::line(&format!("{}  {name}  {}", ForeignText::value(&found.region_id), print::bytes(found.bytes_read)))?;
        for problem in &found.problems {
            print::line(&format!("  {}", ForeignText::message(problem)))?;
        }
        for warning in &found.warnings {
            print::line(&format!("  warning: {}", ForeignText::message(warning)))?;
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(Error::Ended(format!(
            "{image_id} is not whole in {}; synchronize it again to make it good, with --overwrite where another image is shown by its \
             name; what its home region has lost is put back where it was put first",
            wrong.join(", ")
        )))
    }
}
