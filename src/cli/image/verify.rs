//! `appferry image verify`: verifies an image in its regions.

use clap::Args;

use super::{Connection, Error, Result, print};
use crate::{
    client::Client,
    contract::v1::{Intactness, RegionState, VerifyImageRequest},
    domain::ForeignText,
};

/// The maximum number of successors that are followed.
const MAX_SUCCESSORS: usize = 16;

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
    let client = connection.client().await?;
    let mut stream = client.images().verify_image(request).await?.into_inner();
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
    if unintact.is_empty() {
        return Ok(());
    }
    let context = Context::load(&client, &image_id).await;
    Err(Error::failed(advice(&image_id, &unintact, &context)))
}

/// The facts that the remedy depends on. If the caller may not read the image, there are none, and the advice is
/// general.
#[derive(Debug, Default)]
struct Context {
    /// The home region, to which nothing is copied.
    home: Option<String>,
    /// The image that superseded this one, and the regions in which that image is available. A superseded image is no
    /// longer copied.
    successor: Option<(String, Vec<String>)>,
}

impl Context {
    async fn load(client: &Client, image_id: &str) -> Self {
        let Ok(image) = client.get_image(image_id).await else { return Self::default() };
        let home = Some(image.home_region_id).filter(|home| !home.is_empty());
        let (mut successor, mut next) = (None, image.superseded_by);
        for _ in 0..MAX_SUCCESSORS {
            if next.is_empty() {
                break;
            }
            let Ok(image) = client.get_image(next.as_str()).await else {
                successor = Some((next, Vec::new()));
                break;
            };
            let available = image.additional_regions_info.iter().filter(|info| info.status() == RegionState::Available);
            successor = Some((next, available.map(|info| info.region_id.clone()).collect()));
            next = image.superseded_by;
        }
        Self { home, successor }
    }
}

/// Describes the problem and the remedy for the regions in which the image is not intact.
fn advice(image_id: &str, unintact: &[(String, Intactness)], context: &Context) -> String {
    let regions_with = |matches: &dyn Fn(&str, Intactness) -> bool| {
        let regions = unintact.iter().filter(|(region, intactness)| matches(region, *intactness));
        regions.map(|(region, _)| region.as_str()).collect::<Vec<_>>()
    };
    let is_home = |region: &str| context.home.as_deref() == Some(region);
    let absent = regions_with(&|_, intactness| intactness == Intactness::Absent);
    let damaged = regions_with(&|region, intactness| intactness == Intactness::Damaged && !is_home(region));
    let damaged_home = regions_with(&|region, intactness| intactness == Intactness::Damaged && is_home(region));
    let unreadable = regions_with(&|_, intactness| !matches!(intactness, Intactness::Absent | Intactness::Damaged));
    let mut parts = Vec::new();
    if let Some((successor, available)) = &context.successor {
        parts.extend(superseded(image_id, &[absent, damaged].concat(), successor, available));
    } else {
        if !absent.is_empty() {
            let (regions, sync) = (absent.join(", "), sync(image_id, &absent));
            parts.push(format!("{image_id} is not in {regions}; copy it with {sync}"));
        }
        if !damaged.is_empty() {
            parts.push(format!(
                "{image_id} is damaged in {}; repair it with {}, and --overwrite where its name has another image now",
                damaged.join(", "),
                sync(image_id, &damaged)
            ));
        }
    }
    if !damaged_home.is_empty() {
        parts.push(format!(
            "{image_id} is damaged in {}, its home region, to which nothing is copied; add the lost parts again (push \
             them, or run `appferry image remove` and `appferry image add`)",
            damaged_home.join(", ")
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

fn sync(image_id: &str, regions: &[&str]) -> String {
    format!("`appferry sync {image_id} --to {}`", regions.join(" --to "))
}

/// Describes the problem and the remedy for regions in which a superseded image is not intact. A synchronization would
/// refuse to copy that image.
fn superseded(image_id: &str, regions: &[&str], successor: &str, available: &[String]) -> Option<String> {
    if regions.is_empty() {
        return None;
    }
    let (with, without): (Vec<&str>, Vec<&str>) =
        regions.iter().partition(|region| available.iter().any(|available| available == *region));
    let successor = String::from(ForeignText::value(successor));
    let mut text = format!(
        "{image_id} is not intact in {}, and is no longer copied because it was superseded by {successor}",
        regions.join(", ")
    );
    if !without.is_empty() {
        text = format!("{text}; copy {successor} to {} with {}", without.join(", "), sync(&successor, &without));
    }
    if !with.is_empty() {
        text = format!("{text}; {successor} is already available in {}", with.join(", "));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::{Context, Intactness, advice};

    fn unintact(region: &str, intactness: Intactness) -> (String, Intactness) {
        (region.to_owned(), intactness)
    }

    #[test]
    fn the_advice_has_a_remedy_for_each_region() {
        let context = Context { home: Some("h".to_owned()), successor: None };
        let regions = [
            unintact("a", Intactness::Absent),
            unintact("b", Intactness::Damaged),
            unintact("c", Intactness::Unreadable),
            unintact("d", Intactness::Damaged),
            unintact("h", Intactness::Damaged),
        ];
        let text = advice("app", &regions, &context);
        for expected in [
            "app is not in a; copy it with `appferry sync app --to a`",
            "app is damaged in b, d; repair it with `appferry sync app --to b --to d`",
            "app could not be read in c and may be intact",
            "app is damaged in h, its home region, to which nothing is copied",
        ] {
            assert!(text.contains(expected), "{text}");
        }
        assert!(!advice("app", &regions[2..3], &context).contains("sync"), "a copy would not help");
    }

    #[test]
    fn the_advice_for_a_superseded_image_is_to_copy_its_successor() {
        let successor = Some(("next".to_owned(), vec!["b".to_owned()]));
        let context = Context { home: None, successor };
        let regions =
            [unintact("a", Intactness::Absent), unintact("b", Intactness::Damaged), unintact("c", Intactness::Damaged)];
        let text = advice("app", &regions, &context);
        assert!(!text.contains("sync app"), "it would be refused: {text}");
        for expected in ["superseded by next", "`appferry sync next --to a --to c`", "next is already available in b"] {
            assert!(text.contains(expected), "{text}");
        }
    }
}
