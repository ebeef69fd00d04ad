//! `appferry image verify`.

use clap::Args;

use super::{Error, Result, connection::Connection, print};
use crate::{
    client::Client,
    contract::v1::{Intactness, RegionState, VerifyImageRequest},
    domain::ForeignText,
};

/// How many images are asked for in turn, each of which has the name of the one before.
const MAX_SUCCESSORS: usize = 16;

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
    let client = connection.client().await?;
    let mut stream = client.images().verify_image(request).await?.into_inner();
    let mut wrong = Vec::new();
    while let Some(found) = stream.message().await? {
        let intactness = found.intactness();
        if intactness != Intactness::Intact {
            wrong.push((String::from(ForeignText::value(&found.region_id)), intactness));
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
        return Ok(());
    }
    let known = Known::of(&client, &image_id).await;
    Err(Error::Ended(advice(&image_id, &wrong, &known)))
}

/// What decides which call helps an image. Who may not look it up is told what helps most images.
#[derive(Debug, Default)]
struct Known {
    /// Its home region, where a synchronization brings nothing.
    home: Option<String>,
    /// The image that has its name now, if it is copied nowhere any more; and the regions that have that one.
    successor: Option<(String, Vec<String>)>,
}

impl Known {
    async fn of(client: &Client, image_id: &str) -> Self {
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
            let there = image.additional_regions_info.iter().filter(|info| info.status() == RegionState::Available);
            successor = Some((next, there.map(|info| info.region_id.clone()).collect()));
            next = image.superseded_by;
        }
        Self { home, successor }
    }
}

/// What to do about regions in which an image is not whole, each with what was found there.
fn advice(image_id: &str, wrong: &[(String, Intactness)], known: &Known) -> String {
    let found = |which: &dyn Fn(&str, Intactness) -> bool| {
        let regions = wrong.iter().filter(|(region, intactness)| which(region, *intactness));
        regions.map(|(region, _)| region.as_str()).collect::<Vec<_>>()
    };
    let is_home = |region: &str| known.home.as_deref() == Some(region);
    let at_home = found(&|region, intactness| is_home(region) && intactness == Intactness::Damaged);
    let absent = found(&|_, intactness| intactness == Intactness::Absent);
    let damaged = found(&|region, intactness| !is_home(region) && intactness == Intactness::Damaged);
    let unknown = found(&|_, intactness| !matches!(intactness, Intactness::Absent | Intactness::Damaged));
    let mut parts = Vec::new();
    if let Some((successor, there)) = &known.successor {
        parts.extend(superseded(image_id, [absent, damaged].concat(), successor, there));
    } else {
        if !absent.is_empty() {
            let (regions, sync) = (absent.join(", "), sync(image_id, &absent));
            parts.push(format!("{image_id} is not in {regions}: {sync} takes it there"));
        }
        if !damaged.is_empty() {
            parts.push(format!(
                "{image_id} is damaged in {}: {} makes it good, with --overwrite where its name shows another image",
                damaged.join(", "),
                sync(image_id, &damaged)
            ));
        }
    }
    if !at_home.is_empty() {
        parts.push(format!(
            "{image_id} is damaged in {}, its home region, to which nothing is copied: put what is lost there again (push it, or `appferry image remove` \
             and `appferry image add`)",
            at_home.join(", ")
        ));
    }
    if !unknown.is_empty() {
        let regions = unknown.join(", ");
        parts.push(format!(
            "{image_id} could not be read in {regions}, and may be whole: see to what is said above, and verify again"
        ));
    }
    parts.join("; ")
}

fn sync(image_id: &str, regions: &[&str]) -> String {
    format!("`appferry sync {image_id} --to {}`", regions.join(" --to "))
}

/// What to do about an image that is copied nowhere any more, since another one has its name.
fn superseded(image_id: &str, regions: Vec<&str>, successor: &str, there: &[String]) -> Option<String> {
    if regions.is_empty() {
        return None;
    }
    let (has, lacks): (Vec<&str>, Vec<&str>) =
        regions.iter().partition(|region| there.iter().any(|known| known == *region));
    let successor = String::from(ForeignText::value(successor));
    let mut text = format!(
        "{image_id} is not whole in {}, and was superseded by {successor}, so that it is copied nowhere any more",
        regions.join(", ")
    );
    if !lacks.is_empty() {
        text = format!("{text}: {} takes that one to {}", sync(&successor, &lacks), lacks.join(", "));
    }
    if !has.is_empty() {
        text = format!("{text}; {} has {successor} already", has.join(", "));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::{Intactness, Known, advice};

    fn found(region: &str, intactness: Intactness) -> (String, Intactness) {
        (region.to_owned(), intactness)
    }

    #[test]
    fn each_region_is_told_what_would_help_it() {
        let known = Known { home: Some("h".to_owned()), successor: None };
        let wrong = [
            found("a", Intactness::Absent),
            found("b", Intactness::Damaged),
            found("c", Intactness::Unreadable),
            found("d", Intactness::Damaged),
            found("h", Intactness::Damaged),
        ];
        let text = advice("app", &wrong, &known);
        for told in [
            "app is not in a: `appferry sync app --to a` takes it there",
            "app is damaged in b, d: `appferry sync app --to b --to d` makes it good",
            "app could not be read in c, and may be whole",
            "app is damaged in h, its home region, to which nothing is copied",
        ] {
            assert!(text.contains(told), "{text}");
        }
        assert!(!advice("app", &wrong[2..3], &known).contains("sync"), "a copy would not help");
    }

    #[test]
    fn what_was_superseded_is_not_synchronized() {
        let successor = Some(("next".to_owned(), vec!["b".to_owned()]));
        let known = Known { home: None, successor };
        let wrong = [found("a", Intactness::Absent), found("b", Intactness::Damaged), found("c", Intactness::Damaged)];
        let text = advice("app", &wrong, &known);
        assert!(!text.contains("sync app"), "it would be refused: {text}");
        for told in ["superseded by next", "`appferry sync next --to a --to c`", "b has next already"] {
            assert!(text.contains(told), "{text}");
        }
    }
}
