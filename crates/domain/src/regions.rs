//! The configured regions and the targets of a call.

use std::collections::BTreeSet;

use super::{ForeignText, IdError, RegionId};

/// Maximum number of regions in a call.
pub const MAX_TARGETS: usize = 100;

/// Stands for all other regions in a list of targets.
const ALL: &str = "all";

/// Ids of the configured regions.
#[derive(Debug, Clone)]
pub struct Regions {
    home: RegionId,
    all: BTreeSet<RegionId>,
}

impl Regions {
    /// Creates the set of regions. The home region is a member even if `all` leaves it out.
    #[must_use]
    pub fn new(home: RegionId, all: impl IntoIterator<Item = RegionId>) -> Self {
        let all = all.into_iter().chain([home.clone()]).collect();
        Self { home, all }
    }

    /// Returns the home region, in which images are registered.
    #[must_use]
    pub fn home(&self) -> &RegionId {
        &self.home
    }

    /// Returns every region, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &RegionId> {
        self.all.iter()
    }

    /// Whether a region is configured.
    #[must_use]
    pub fn contains(&self, region: &RegionId) -> bool {
        self.all.contains(region)
    }

    /// Parses the targets of a call: region ids or `all`. An empty list means `all`. In a list with `all`, the other
    /// names must also be configured regions.
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

    /// Parses a region id. Allocates a new one instead of cloning the configured `Arc`, whose shared counter would move
    /// between the caches of all cores.
    fn parse_target(&self, name: &str) -> Result<RegionId, TargetError> {
        match name.parse() {
            Ok(region) if self.contains(&region) => Ok(region),
            Ok(region) => {
                let configured = self.iter().map(RegionId::as_str).collect::<Vec<_>>().join(", ");
                Err(TargetError::Unknown { region, configured })
            }
            Err(error) => Err(TargetError::Malformed { name: ForeignText::value(name), error }),
        }
    }
}

/// Targets of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Every region that does not have the image.
    All,
    /// These regions; never empty.
    Named(BTreeSet<RegionId>),
}

impl Targets {
    /// Returns the canonical form, which is equal for equal targets. It serves to compare the parameters of a repeated
    /// call.
    #[must_use]
    pub fn canonical(&self) -> String {
        match self {
            Self::All => ALL.to_owned(),
            Self::Named(regions) => regions.iter().map(RegionId::as_str).collect::<Vec<_>>().join(","),
        }
    }
}

/// Reason to reject a list of targets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the names say it")]
pub enum TargetError {
    /// It has too many names.
    #[error("it names {0} regions, the maximum is {MAX_TARGETS}")]
    TooMany(usize),
    /// A name is not a valid region id.
    #[error("{name:?} is not a region id: {error}")]
    Malformed {
        name: ForeignText,
        /// Reason why the name is invalid.
        error: IdError,
    },
    /// A region is not configured.
    #[error("the region {region} is not configured; configured regions: {configured}")]
    Unknown {
        region: RegionId,
        /// Ids of the configured regions, separated by commas.
        configured: String,
    },
}
