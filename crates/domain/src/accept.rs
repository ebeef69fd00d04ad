//! The decision to accept a call: its effect on each region, or the reason to reject it.

use super::{ImageId, RegionId, RegionStatus, Regions, Targets};

/// Standing of an image in a region before a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The image was never requested, or its copy failed or was canceled.
    Missing,
    /// A copy is pending or running.
    InFlight,
    /// The region has the image.
    Available,
}

impl Standing {
    /// Returns the standing for the status of a replica, which is `None` if the replica was never requested.
    #[must_use]
    pub fn from_status(replica: Option<RegionStatus>) -> Self {
        match replica {
            None | Some(RegionStatus::Failed | RegionStatus::Canceled) => Self::Missing,
            Some(RegionStatus::Pending | RegionStatus::Copying) => Self::InFlight,
            // A call for a superseded image is rejected before its replicas matter.
            Some(RegionStatus::Available | RegionStatus::Superseded) => Self::Available,
        }
    }
}

/// Effect of an accepted call on a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Starts a copy.
    Start,
    /// Waits for the copy in flight.
    Join,
}

/// An accepted call: its effect on each of its regions, sorted. A call without regions has already succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted(pub Vec<(RegionId, Step)>);

/// Reason to reject a call. A rejected call queues no copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AcceptError {
    /// The image is not registered.
    ImageNotFound,
    /// Another image has taken over its name.
    Superseded(ImageId),
    /// These explicit targets already have the image, or are its home region.
    AlreadyAvailable(Vec<RegionId>),
}

/// The properties of an image on which the decision depends.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Registered {
    pub home: RegionId,
    /// The image that has taken over its name.
    pub superseded_by: Option<ImageId>,
}

/// Decides about a call for an image, which is `None` if it is not registered. `standing` returns its standing in a
/// region.
pub fn accept(
    targets: &Targets,
    regions: &Regions,
    image: Option<&Registered>,
    standing: impl Fn(&RegionId) -> Standing,
) -> Result<Accepted, AcceptError> {
    let Registered { home, superseded_by } = image.ok_or(AcceptError::ImageNotFound)?;
    if let Some(by) = superseded_by {
        return Err(AcceptError::Superseded(by.clone()));
    }
    let standing = |region: &RegionId| if region == home { Standing::Available } else { standing(region) };
    let step = |region: &RegionId| match standing(region) {
        Standing::Missing => Some((region.clone(), Step::Start)),
        Standing::InFlight => Some((region.clone(), Step::Join)),
        Standing::Available => None,
    };
    match targets {
        Targets::All => Ok(Accepted(regions.iter().filter_map(step).collect())),
        Targets::Named(named) => {
            let available: Vec<_> = named.iter().filter(|r| standing(r) == Standing::Available).cloned().collect();
            if available.is_empty() {
                Ok(Accepted(named.iter().filter_map(step).collect()))
            } else {
                Err(AcceptError::AlreadyAvailable(available))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::{AcceptError, Registered, Standing, Step, accept};
    use crate::{ImageId, RegionId, Regions, Targets};

    fn region(n: u8) -> RegionId {
        format!("r{n}").parse().expect("an id")
    }

    fn standing() -> impl Strategy<Value = Standing> {
        prop_oneof![Just(Standing::Missing), Just(Standing::InFlight), Just(Standing::Available)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn each_region_without_the_image_gets_it_or_nothing_is_queued(
            standings in prop::collection::vec(standing(), 1..8),
            requested in prop::option::of(prop::collection::btree_set(0..8u8, 1..8)),
        ) {
            let standings: BTreeMap<_, _> = (0u8..).map(region).zip(standings).collect();
            let home = region(0);
            let regions = Regions::new(home.clone(), standings.keys().cloned());
            let requested: Option<BTreeSet<_>> =
                requested.map(|set| set.into_iter().map(region).filter(|r| regions.contains(r)).collect());
            prop_assume!(requested.as_ref().is_none_or(|set| !set.is_empty()));
            let targets = requested.clone().map_or(Targets::All, Targets::Named);
            let is_available = |r: &RegionId| *r == home || standings[r] == Standing::Available;

            let image = Registered { home: home.clone(), superseded_by: None };
            match accept(&targets, &regions, Some(&image), |r| standings[r]) {
                Err(AcceptError::AlreadyAvailable(named)) => {
                    let requested = requested.expect("`all` is never rejected");
                    prop_assert!(!named.is_empty());
                    prop_assert!(named.iter().all(|r| requested.contains(r) && is_available(r)));
                    prop_assert_eq!(named.len(), requested.iter().filter(|r| is_available(r)).count());
                }
                Err(error) => prop_assert!(false, "{error:?}"),
                Ok(accepted) => {
                    let expected: Vec<_> = requested
                        .unwrap_or_else(|| regions.iter().cloned().collect())
                        .into_iter()
                        .filter(|r| !is_available(r))
                        .map(|r| {
                            let step = if standings[&r] == Standing::Missing { Step::Start } else { Step::Join };
                            (r, step)
                        })
                        .collect();
                    prop_assert_eq!(accepted.0, expected);
                }
            }
        }
    }

    #[test]
    fn an_image_that_is_not_registered_is_not_found() {
        let regions = Regions::new(region(0), [region(1)]);
        let result = accept(&Targets::All, &regions, None, |_| Standing::Missing);
        assert_eq!(result, Err(AcceptError::ImageNotFound));
    }

    #[test]
    fn a_superseded_image_is_not_copied() {
        let regions = Regions::new(region(0), [region(1)]);
        let by: ImageId = "newer".parse().expect("an id");
        let image = Registered { home: region(0), superseded_by: Some(by.clone()) };
        let result = accept(&Targets::All, &regions, Some(&image), |_| Standing::Missing);
        assert_eq!(result, Err(AcceptError::Superseded(by)));
    }
}
