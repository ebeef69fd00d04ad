//! `appferry image verify`: verifies an image in its regions.

use clap::Args;

use super::{Connection, Error, Result, print};
use crate::{
    contract::v1::{Intactness, VerifyImageRequest},
    domain::ForeignText,
};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// The id of the image.
    image_id: String,
    /// The region to verify; may be repeated. Default: every region that should have the image.
    #[arg(long, value_name = "REGION")]
    region: Vec<String>,
    /// Print JSON, one line per region.
    #[arg(long)]
    json: bool,
}

/// Verifies an image in its regions and prints each result as it arrives. Fails if the image is not intact everywhere.
pub async fn run(arguments: Arguments) -> Result<()> {
    let Arguments { connection, image_id, region, json } = arguments;
    let request = VerifyImageRequest { image_id: image_id.clone(), region_ids: region };
    let mut stream = connection.client().await?.images().verify_image(request).await?.into_inner();
    let mut unintact = Vec::new();
    while let Some(result) = stream.message().await? {
        let intactness = result.intactness();
        if intactness != Intactness::Intact {
            unintact.push((String::from(ForeignText::value(&result.region_id)), intactness));
        }
        if json {
            print::message("VerifyImageResponse", &result)?;
            continue;
        }
        let name = intactness.as_str_name().trim_start_matches("INTACTNESS_");
        print::line(&format!(
            "{}  {name}  {}",
            ForeignText::value(&result.region_id),
            print::bytes(result.bytes_read)
        ))?;
        for problem in &result.problems {
            print::line(&format!("  {}", ForeignText::message(problem)))?;
        }
        for warning in &result.warnings {
            print::line(&format!("  warning: {}", ForeignText::message(warning)))?;
        }
    }
    if unintact.is_empty() { Ok(()) } else { Err(Error::failed(advice(&image_id, &unintact))) }
}

/// The problem and the remedy for each region in which the image is not intact.
fn advice(image_id: &str, unintact: &[(String, Intactness)]) -> String {
    let regions_with = |matches: &dyn Fn(Intactness) -> bool| {
        let regions = unintact.iter().filter(|(_, intactness)| matches(*intactness)).map(|(region, _)| region.as_str());
        regions.collect::<Vec<_>>()
    };
    let absent = regions_with(&|intactness| intactness == Intactness::Absent);
    let damaged = regions_with(&|intactness| intactness == Intactness::Damaged);
    let unreadable = regions_with(&|intactness| !matches!(intactness, Intactness::Absent | Intactness::Damaged));
    let sync = |regions: &[&str]| format!("`appferry sync {image_id} --to {}`", regions.join(" --to "));
    let mut parts = Vec::new();
    if !absent.is_empty() {
        parts.push(format!("{image_id} is not in {}; copy it with {}", absent.join(", "), sync(&absent)));
    }
    if !damaged.is_empty() {
        parts.push(format!(
            "{image_id} is damaged in {}; repair it with {}, and --overwrite where its name has another image now; in the \
             home region, add the lost parts again",
            damaged.join(", "),
            sync(&damaged)
        ));
    }
    if !unreadable.is_empty() {
        let regions = unreadable.join(", ");
        parts.push(format!(
            "{image_id} could not be read in {regions} and may be intact; fix the problems above and verify again"
        ));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::{Intactness, advice};

    #[test]
    fn the_advice_has_a_remedy_for_each_region() {
        let unintact = |region: &str, intactness| (region.to_owned(), intactness);
        let text = advice(
            "app",
            &[
                unintact("a", Intactness::Absent),
                unintact("b", Intactness::Damaged),
                unintact("c", Intactness::Unreadable),
                unintact("d", Intactness::Damaged),
            ],
        );
        for expected in [
            "app is not in a; copy it with `appferry sync app --to a`",
            "app is damaged in b, d; repair it with `appferry sync app --to b --to d`",
            "app could not be read in c and may be intact",
        ] {
            assert!(text.contains(expected), "{text}");
        }
        assert!(!advice("app", &[unintact("c", Intactness::Unreadable)]).contains("sync"), "a copy would not help");
    }
}
