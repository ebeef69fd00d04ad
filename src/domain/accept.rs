//! The decision to accept a call: what it means for each region, or why it is refused.

use super::{ImageId, RegionId, RegionStatus, Regions, Targets};

/// How an image stands in a region before the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nobody has asked for it, or what was asked for failed or was canceled.
    Missing,
    /// It is being copied, or waits for it.
    Underway,
    /// It is there.
    Available,
}

impl Standing {
    /// How a replica stands; `None` is one that nobody has asked for.
    #[must_use]
    pub fn of(replica: Option<RegionStatus>) -> Self {
        match replica {
            None | Some(RegionStatus::Failed | RegionStatus::Canceled) => Self::Missing,
            Some(RegionStatus::Pending | RegionStatus::Copying) => Self::Underway,
            // Of an image that was superseded, nothing is accepted at all.
            Some(RegionStatus::Available | RegionStatus::Superseded) => Self::Available,
        }
    }
}

/// What an accepted call does in a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Starts a copy.
    Start,
    /// Waits for the copy that is underway.
    Join,
}

/// An accepted call: its regions, sorted, and what it does there. Without any region it has succeeded already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted(pub Vec<(RegionId, Step)>);

/// Why a call is refused. Nothing at all is queued then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The image is not registered.
    ImageNotFound,
    /// Another image has taken its name over.
    Superseded(ImageId),
    /// These regions have the image already, or are its home.
    AlreadyThere(Vec<RegionId>),
}

/// An image, as far as the decision depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// Its home region.
    pub home: RegionId,
    /// The image that took its name over.
    pub superseded_by: Option<ImageId>,
}

/// Decides about a call for an image (`None` if it is not registered) that stands in each region as `standing` says.
pub fn accept(
    targets: &Targets,
    regions: &Regions,
    image: Option<&Registered>,
    standing: impl Fn(&RegionId) -> Standing,
) -> Result<Accepted, Refusal> {
    let Registered { home, superseded_by } = image.ok_or(Refusal::ImageNotFound)?;
    if let Some(by) = superseded_by {
        return Err(Refusal::Superseded(by.clone()));
    }
    let standing = |region: &RegionId| if region == home { Standing::Available } else { standing(region) };
    let step = |region: &RegionId| match standing(region) {
        Standing::Missing => Some((region.clone(), Step::Start)),
        Standing::Underway => Some((region.clone(), Step::Join)),
        Standing::Available => None,
    };
    match targets {
        Targets::All => Ok(Accepted(regions.iter().filter_map(step).collect())),
        Targets::Named(named) => {
            let there: Vec<_> = named.iter().filter(|r| standing(r) == Standing::Available).cloned().collect();
            if there.is_empty() {
                Ok(Accepted(named.iter().filter_map(step).collect()))
            } else {
                Err(Refusal::AlreadyThere(there))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::{Refusal, Registered, Standing, Step, accept};
    use crate::domain::{ImageId, RegionId, Regions, Targets};

    fn region(n: u8) -> RegionId {
        format!("r{n}").parse().expect("an id")
    }

    fn standing() -> impl Strategy<Value = Standing> {
        prop_oneof![Just(Standing::Missing), Just(Standing::Underway), Just(Standing::Available)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn each_region_gets_what_it_lacks_or_nothing_is_queued(
            standings in prop::collection::vec(standing(), 1..8),
            wanted in prop::option::of(prop::collection::btree_set(0..8u8, 1..8)),
        ) {
            let standings: BTreeMap<_, _> = (0u8..).map(region).zip(standings).collect();
            let home = region(0);
            let regions = Regions::new(home.clone(), standings.keys().cloned());
            let wanted: Option<BTreeSet<_>> =
                wanted.map(|set| set.into_iter().map(region).filter(|r| regions.contains(r)).collect());
            prop_assume!(wanted.as_ref().is_none_or(|set| !set.is_empty()));
            let targets = wanted.clone().map_or(Targets::All, Targets::Named);
            let there = |r: &RegionId| *r == home || standings[r] == Standing::Available;

            let image = Registered { home: home.clone(), superseded_by: None };
            match accept(&targets, &regions, Some(&image), |r| standings[r]) {
                Err(Refusal::AlreadyThere(named)) => {
                    let wanted = wanted.expect("`all` is never refused");
                    prop_assert!(!named.is_empty());
                    prop_assert!(named.iter().all(|r| wanted.contains(r) && there(r)));
                    prop_assert_eq!(named.len(), wanted.iter().filter(|r| there(r)).count());
                }
                Err(refusal) => prop_assert!(false, "{refusal:?}"),
                Ok(accepted) => {
                    let expected: Vec<_> = wanted
                        .unwrap_or_else(|| regions.iter().cloned().collect())
                        .into_iter()
                        .filter(|r| !there(r))
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
        let refused = accept(&Targets::All, &regions, None, |_| Standing::Missing);
        assert_eq!(refused, Err(Refusal::ImageNotFound));
    }

    #[test]
    fn an_image_that_was_superseded_is_carried_nowhere() {
        let regions = Regions::new(region(0), [region(1)]);
        let by: ImageId = "newer".parse().expect("an id");
        let image = Registered { home: region(0), superseded_by: Some(by.clone()) };
        let refused = accept(&Targets::All, &regions, Some(&image), |_| Standing::Missing);
        assert_eq!(refused, Err(Refusal::Superseded(by)));
    }
}
