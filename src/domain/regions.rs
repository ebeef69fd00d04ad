//! The configured regions, and which of them a call asks for.

use std::collections::BTreeSet;

use super::{ForeignText, IdError, RegionId};

/// The most regions that one call may name.
pub const MAX_TARGETS: usize = 100;

/// The word that stands for all other regions.
const ALL: &str = "all";

/// The ids of the configured regions.
#[derive(Debug, Clone)]
pub struct Regions {
    home: RegionId,
    all: BTreeSet<RegionId>,
}

impl Regions {
    /// The home region and every region; the home region belongs to them whether it is named or not.
    #[must_use]
    pub fn new(home: RegionId, all: impl IntoIterator<Item = RegionId>) -> Self {
        let all = all.into_iter().chain([home.clone()]).collect();
        Self { home, all }
    }

    /// The region that images are added in.
    #[must_use]
    pub fn home(&self) -> &RegionId {
        &self.home
    }

    /// Every region, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &RegionId> {
        self.all.iter()
    }

    /// Whether the region is configured.
    #[must_use]
    pub fn contains(&self, region: &RegionId) -> bool {
        self.all.contains(region)
    }

    /// Reads the list of a call: regions by name, or `all`, or nothing, which means the same. A name beside `all` must be a
    /// configured region as well.
    pub fn parse_targets(&self, names: &[String]) -> Result<Targets, TargetError> {
        if names.len() > MAX_TARGETS {
            return Err(TargetError::TooMany(names.len()));
        }
        let mut targets = BTreeSet::new();
        let mut all = names.is_empty();
        for name in names {
            if name == ALL {
                all = true;
                continue;
            }
            targets.insert(self.parse_target(name)?);
        }
        Ok(if all { Targets::All } else { Targets::Named(targets) })
    }

    /// A name of its own, and not another hold on the configured one: all calls would change the few counters of those, and every
    /// processor would wait for the one that changed them last.
    fn parse_target(&self, name: &str) -> Result<RegionId, TargetError> {
        match name.parse() {
            Ok(region) if self.contains(&region) => Ok(region),
            Ok(region) => {
                let known = self.iter().map(RegionId::as_str).collect::<Vec<_>>().join(", ");
                Err(TargetError::Unknown { region, known })
            }
            Err(error) => Err(TargetError::Malformed { name: ForeignText::value(name), error }),
        }
    }
}

/// What a call asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Every other region that has not got the image.
    All,
    /// These regions. Never empty.
    Named(BTreeSet<RegionId>),
}

impl Targets {
    /// The same for the same targets, however they were written. Tells whether a repeated call has the same parameters.
    #[must_use]
    pub fn canonical(&self) -> String {
        match self {
            Self::All => ALL.to_owned(),
            Self::Named(regions) => regions.iter().map(RegionId::as_str).collect::<Vec<_>>().join(","),
        }
    }
}

/// Why a list of regions is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Too many names.
    #[error("it names {0} regions, the most is {MAX_TARGETS}")]
    TooMany(usize),
    /// A name that no region can have.
    #[error("{name:?} is not a region id: {error}")]
    Malformed {
        /// The name.
        name: ForeignText,
        /// What is wrong with it.
        error: IdError,
    },
    /// A region that is not configured.
    #[error("the region {region} is not configured; configured are {known}")]
    Unknown {
        /// The region.
        region: RegionId,
        /// The regions that are.
        known: String,
    },
}
