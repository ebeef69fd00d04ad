//! What `appferry doctor` says of leftovers: what copies that died, failed or were canceled left in the regions' stores.

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    doctor::{Finding, PATIENCE},
    print,
};
use crate::{
    config::Config,
    db::Db,
    domain::{Leftover, RegionId, Timestamp, with_causes},
    region::Stores,
    worker::{self, SAFE_AGE},
};

/// How many leftovers of a region are listed.
const LISTED: usize = 20;

/// What is left over in each region. Nothing of it is wrong: the service removes it by itself.
pub async fn findings(config: &Config, stores: &Stores) -> Vec<Finding> {
    let look = async {
        let Ok(regions) = config.regions() else { return Vec::new() };
        let stop = CancellationToken::new();
        // What is wrong with the database was said already.
        let Ok((state, tasks)) = Db::open(&config.database.settings(), regions, stop.clone()).await else {
            return Vec::new();
        };
        let findings = survey(&state, stores).await;
        stop.cancel();
        tasks.join().await;
        // It is closed with the process at the latest.
        let _ = state.close().await;
        findings
    };
    timeout(PATIENCE, look).await.unwrap_or_default()
}

async fn survey(state: &Db, stores: &Stores) -> Vec<Finding> {
    let Ok(now) = state.time().await else { return Vec::new() };
    let mut findings = Vec::new();
    for (region, store) in stores.iter() {
        match worker::find_leftovers(state, region, &**store, now).await {
            Ok(left) if left.is_empty() => {}
            Ok(left) => findings.extend(describe(region, &left, now)),
            // That the store can't be looked at was said already; that what is left over can't be, only here.
            Err(error) => findings.push(Finding::good("leftovers", format!("{region}: {}", with_causes(&error)))),
        }
        match state.upload_abandoned(region).await {
            Ok(uploads) => findings.extend(uploads.iter().map(|upload| {
                let (image, blob) = (&upload.image, upload.blob);
                Finding::good("leftovers", format!("{region}: an upload of {blob} of {image}, not aborted yet"))
            })),
            Err(error) => findings.push(Finding::good("leftovers", format!("{region}: {}", with_causes(&error)))),
        }
    }
    if findings.is_empty() {
        findings.push(Finding::good("leftovers", "none"));
    }
    findings
}

/// A line for all of a region's leftovers, and one for each of the largest.
fn describe(region: &RegionId, left: &[Leftover], now: Timestamp) -> Vec<Finding> {
    let total = left.iter().map(Leftover::bytes).sum();
    let hours = SAFE_AGE.as_secs() / 3_600;
    let summary =
        format!("{region}: {} in {} places; the service removes what is {hours} h old", bytes(total), left.len());
    let mut largest: Vec<&Leftover> = left.iter().collect();
    largest.sort_by_key(|leftover| std::cmp::Reverse(leftover.bytes()));
    let each = largest.into_iter().take(LISTED).map(|leftover| {
        let what = match leftover {
            Leftover::File(_) => "unfinished file",
            Leftover::Image(_) => "image that is not visible",
        };
        let age = age(leftover.changed().until(now));
        Finding::good(
            "leftovers",
            format!("{region}: {}: {what}, {}, {age} old", leftover.path(), bytes(leftover.bytes())),
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
    fn an_age_is_said_in_the_unit_that_fits() {
        for (seconds, said) in
            [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_199, "119 min"), (7_200, "2 h"), (172_800, "2 days")]
        {
            assert_eq!(age(Duration::from_secs(seconds)), said);
        }
    }
}
