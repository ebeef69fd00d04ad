//! One accepted call as callers see it.

use std::str::FromStr;

use super::{Fault, ImageId, Progress, RegionId, RequestId, Timestamp, Verification, Warnings};

/// The states of a synchronization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SynchronizationState {
    /// At least one region has not ended.
    Running,
    /// Every region has the image.
    Succeeded,
    /// Every region has ended, at least one failed.
    Failed,
    /// Every region has ended, none failed, at least one was canceled.
    Canceled,
}

impl SynchronizationState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Running, Self::Succeeded, Self::Failed, Self::Canceled];

    /// What the states of its regions make of it. Without any region it has succeeded.
    #[must_use]
    pub fn of(regions: impl IntoIterator<Item = RegionStatus>) -> Self {
        regions.into_iter().fold(Self::Succeeded, |state, region| match (region, state) {
            (RegionStatus::Pending | RegionStatus::Copying, _) | (_, Self::Running) => Self::Running,
            (RegionStatus::Failed, _) | (_, Self::Failed) => Self::Failed,
            (RegionStatus::Canceled, _) | (_, Self::Canceled) => Self::Canceled,
            // It was there when the synchronization ended.
            (RegionStatus::Available | RegionStatus::Superseded, Self::Succeeded) => Self::Succeeded,
        })
    }

    /// Whether nothing will change any more.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self != Self::Running
    }

    /// The state's name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Canceled => "CANCELED",
        }
    }
}

impl FromStr for SynchronizationState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| format!("{text:?} is no state"))
    }
}

/// The states of a region as callers see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RegionStatus {
    /// It waits.
    Pending,
    /// It is being copied.
    Copying,
    /// It is there.
    Available,
    /// It failed.
    Failed,
    /// It was canceled.
    Canceled,
    /// It was there until its name was taken over.
    Superseded,
}

impl RegionStatus {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Copying, Self::Available, Self::Failed, Self::Canceled, Self::Superseded];

    /// The state's name, in the database and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Copying => "COPYING",
            Self::Available => "AVAILABLE",
            Self::Failed => "FAILED",
            Self::Canceled => "CANCELED",
            Self::Superseded => "SUPERSEDED",
        }
    }
}

impl FromStr for RegionStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| format!("{text:?} is no state of a replica"))
    }
}

/// Where one region of a synchronization stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionView {
    /// The region.
    pub region: RegionId,
    /// Its state.
    pub status: RegionStatus,
    /// How it is known that the image is there; nothing while it is not, or if that was not recorded.
    pub verification: Option<Verification>,
    /// How far it has come.
    pub progress: Progress,
    /// How often a copy was started.
    pub attempt: u32,
    /// When the next attempt is due, if one has failed and another follows.
    pub next_attempt_at: Option<Timestamp>,
    /// Why it failed, or why its last attempt did.
    pub fault: Option<Fault>,
    /// When the first attempt started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// What the image arrived without.
    pub warnings: Warnings,
}

/// One accepted call and what has become of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Synchronization {
    /// Its id.
    pub request_id: RequestId,
    /// The image.
    pub image: ImageId,
    /// Who asked.
    pub principal: String,
    /// Where it stands.
    pub state: SynchronizationState,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its last region ended.
    pub finished_at: Option<Timestamp>,
    /// Its regions, sorted.
    pub regions: Vec<RegionView>,
    /// The trace that the call was part of, 32 hexadecimal digits.
    pub trace_id: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::{RegionStatus as R, SynchronizationState as S};

    #[test]
    fn a_synchronization_is_what_its_regions_are() {
        assert_eq!(S::of([]), S::Succeeded);
        assert_eq!(S::of([R::Available, R::Available]), S::Succeeded);
        assert_eq!(S::of([R::Failed, R::Pending]), S::Running);
        assert_eq!(S::of([R::Copying, R::Canceled]), S::Running);
        assert_eq!(S::of([R::Canceled, R::Failed, R::Available]), S::Failed);
        assert_eq!(S::of([R::Failed, R::Canceled]), S::Failed);
        assert_eq!(S::of([R::Available, R::Canceled]), S::Canceled);
    }
}
