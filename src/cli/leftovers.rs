//! The check of `appferry doctor` for leftovers: files and images in stores of copies that died, failed or were
//! canceled.

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    doctor::{Finding, TIMEOUT},
    print,
};
use crate::{
    config::Config,
    db::Db,
    domain::{Leftover, RegionId, Timestamp, with_causes},
    storage::Stores,
    worker::{self, SAFE_AGE},
};

/// The maximum number of leftovers that are listed for each region, the largest first.
const LISTED: usize = 20;

/// Lists the leftovers of each region. Leftovers do not count as problems, because the service removes them.
pub async fn findings(config: &Config, stores: &Stores) -> Vec<Finding> {
    let check = async {
        let Ok(regions) = config.regions() else { return Vec::new() };
        let stop = CancellationToken::new();
        // Another check reports an error of the database.
        let Ok((state, tasks)) = Db::open(&config.database.settings(), regions, stop.clone()).await else {
            return Vec::new();
        };
        let findings = survey(&state, stores).await;
        stop.cancel();
        tasks.join().await;
        // If closing fails, the connections end with the process.
        let _ = state.close().await;
        findings
    };
    timeout(TIMEOUT, check).await.unwrap_or_default()
}

async fn survey(state: &Db, stores: &Stores) -> Vec<Finding> {
    let Ok(now) = state.time().await else { return Vec::new() };
    let mut findings = Vec::new();
    for (region, store) in stores.iter() {
        match worker::find_leftovers(state, region, &**store, now).await {
            Ok(leftovers) if leftovers.is_empty() => {}
            Ok(leftovers) => findings.extend(describe(region, &leftovers, now)),
            // Another check reports an unreachable store, but no other check lists leftovers.
            Err(error) => findings.push(Finding::good("leftovers", format!("{region}: {}", with_causes(&error)))),
        }
        match state.upload_abandoned(region).await {
            Ok(uploads) => findings.extend(uploads.iter().map(|upload| {
                let (image, blob) = (&upload.image, upload.blob);
                Finding::good(
                    "leftovers",
                    format!("{region}: an abandoned upload of {blob} of {image}, which the service will abort"),
                )
            })),
            Err(error) => findings.push(Finding::good("leftovers", format!("{region}: {}", with_causes(&error)))),
        }
    }
    if findings.is_empty() {
        findings.push(Finding::good("leftovers", "none"));
    }
    findings
}

/// Returns a summary of a region's leftovers, and a finding for each of the largest.
fn describe(region: &RegionId, leftovers: &[Leftover], now: Timestamp) -> Vec<Finding> {
    let total = leftovers.iter().map(Leftover::bytes).sum();
    let hours = SAFE_AGE.as_secs() / 3_600;
    let summary = format!(
        "{region}: {} leftovers with {}; the service removes those older than {hours} h",
        leftovers.len(),
        bytes(total)
    );
    let mut largest: Vec<&Leftover> = leftovers.iter().collect();
    largest.sort_by_key(|leftover| std::cmp::Reverse(leftover.bytes()));
    let each = largest.into_iter().take(LISTED).map(|leftover| {
        let kind = match leftover {
            Leftover::File(_) => "unfinished file",
            Leftover::Image(_) => "image that is not visible",
        };
        let age = age(leftover.changed().until(now));
        Finding::good(
            "leftovers",
            format!("{region}: {}: {kind}, {}, {age} old", leftover.path(), bytes(leftover.bytes())),
        )
    });
    std::iter::once(Finding::good("leftovers", summary)).chain(each).collect()
}

fn bytes(count: u64) -> String {
    print::bytes(i64::try_from(count).unwrap_or(i64::MAX))
}

fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, age};

    #[test]
    fn an_age_has_a_fitting_unit() {
        for (seconds, expected) in
            [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_199, "119 min"), (7_200, "2 h"), (172_800, "2 days")]
        {
            assert_eq!(age(Duration::from_secs(seconds)), expected);
        }
    }
}
