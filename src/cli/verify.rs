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
    if wrong.is_empty() { Ok(()) } else { Err(Error::Ended(advice(&image_id, &wrong))) }
}

/// What to do about regions in which an image is not whole, each with what was found there.
fn advice(image_id: &str, wrong: &[(String, Intactness)]) -> String {
    let found = |which: &dyn Fn(Intactness) -> bool| {
        let regions = wrong.iter().filter(|(_, intactness)| which(*intactness)).map(|(region, _)| region.as_str());
        regions.collect::<Vec<_>>()
    };
    let absent = found(&|intactness| intactness == Intactness::Absent);
    let damaged = found(&|intactness| intactness == Intactness::Damaged);
    let unknown = found(&|intactness| !matches!(intactness, Intactness::Absent | Intactness::Damaged));
    let sync = |regions: &[&str]| format!("`appferry sync {image_id} --to {}`", regions.join(" --to "));
    let mut parts = Vec::new();
    if !absent.is_empty() {
        parts.push(format!("{image_id} is not in {}: {} takes it there", absent.join(", "), sync(&absent)));
    }
    if !damaged.is_empty() {
        parts.push(format!(
            "{image_id} is damaged in {}: {} makes it good, with --overwrite where its name shows another image; what its home region has \
             lost has to be put there again",
            damaged.join(", "),
            sync(&damaged)
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

#[cfg(test)]
mod tests {
    use super::{Intactness, advice};

    #[test]
    fn each_region_is_told_what_would_help_it() {
        let found = |region: &str, intactness| (region.to_owned(), intactness);
        let text = advice(
            "app",
            &[
                found("a", Intactness::Absent),
                found("b", Intactness::Damaged),
                found("c", Intactness::Unreadable),
                found("d", Intactness::Damaged),
            ],
        );
        for told in [
            "app is not in a: `appferry sync app --to a` takes it there",
            "app is damaged in b, d: `appferry sync app --to b --to d` makes it good",
            "app could not be read in c, and may be whole",
        ] {
            assert!(text.contains(told), "{text}");
        }
        assert!(!advice("app", &[found("c", Intactness::Unreadable)]).contains("sync"), "a copy would not help");
    }
}
