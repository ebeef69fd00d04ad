//! Synchronizations as callers see them.

use std::{fmt, str::FromStr};

use super::{Fault, ImageId, Progress, RegionId, Replica, ReplicaState, RequestId, Timestamp, Verification, Warnings};

/// State of a synchronization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SynchronizationState {
    /// At least one region has not ended.
    Running,
    /// Every region has the image.
    Succeeded,
    /// Every region has ended, and at least one failed.
    Failed,
    /// Every region has ended. None failed, and at least one was canceled.
    Canceled,
}

impl SynchronizationState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Running, Self::Succeeded, Self::Failed, Self::Canceled];

    /// Derives the state from the states of the regions. A synchronization without regions has succeeded.
    #[must_use]
    pub fn from_regions(regions: impl IntoIterator<Item = RegionStatus>) -> Self {
        regions.into_iter().fold(Self::Succeeded, |state, region| match (region, state) {
            (RegionStatus::Pending | RegionStatus::Copying, _) | (_, Self::Running) => Self::Running,
            (RegionStatus::Failed, _) | (_, Self::Failed) => Self::Failed,
            (RegionStatus::Canceled, _) | (_, Self::Canceled) => Self::Canceled,
            // A superseded replica was available when the synchronization ended.
            (RegionStatus::Available | RegionStatus::Superseded, Self::Succeeded) => Self::Succeeded,
        })
    }

    /// Whether the state is final.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self != Self::Running
    }

    /// Name in the database.
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

impl fmt::Display for SynchronizationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SynchronizationState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|s| s.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not a state of a synchronization"))
    }
}

/// State of a region as callers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum RegionStatus {
    /// It waits for a worker.
    Pending,
    /// It is being copied.
    Copying,
    /// It has the image.
    Available,
    Failed,
    Canceled,
    /// It had the image until another one took over its name.
    Superseded,
}

impl RegionStatus {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Copying, Self::Available, Self::Failed, Self::Canceled, Self::Superseded];

    /// Name in the database and on the command line.
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

impl fmt::Display for RegionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for RegionStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| format!("{text:?} is not a state of a region"))
    }
}

/// A region of a synchronization.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct RegionView {
    pub region: RegionId,
    /// State of the region.
    pub status: RegionStatus,
    /// How the image was verified; `None` if it is not available or the verification was not recorded.
    pub verification: Option<Verification>,
    /// Progress of the last attempt.
    pub progress: Progress,
    /// Number of attempts.
    pub attempt: u32,
    /// Time of the next attempt after a failed one.
    pub next_attempt_at: Option<Timestamp>,
    /// The final fault, or the fault of the last attempt.
    pub fault: Option<Fault>,
    /// Start of the first attempt.
    pub started_at: Option<Timestamp>,
    /// Time at which the region ended.
    pub finished_at: Option<Timestamp>,
    /// Parts that could not be copied.
    pub warnings: Warnings,
}

impl RegionView {
    /// Creates the view of a replica.
    #[must_use]
    pub fn new(region: RegionId, replica: &Replica) -> Self {
        let next_attempt_at = match &replica.state {
            ReplicaState::Pending { not_before, last_fault: Some(_), .. } => Some(*not_before),
            _ => None,
        };
        Self {
            region,
            status: replica.status(),
            verification: replica.verification(),
            progress: replica.progress,
            attempt: replica.attempt,
            next_attempt_at,
            fault: replica.last_fault().cloned(),
            started_at: replica.started_at,
            finished_at: replica.finished_at,
            warnings: replica.warnings.clone(),
        }
    }

    /// Creates the view of a region without a replica.
    #[must_use]
    pub fn not_started(region: RegionId) -> Self {
        Self {
            region,
            status: RegionStatus::Pending,
            verification: None,
            progress: Progress::default(),
            attempt: 0,
            next_attempt_at: None,
            fault: None,
            started_at: None,
            finished_at: None,
            warnings: Warnings::default(),
        }
    }
}

/// An accepted call and its regions.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Synchronization {
    /// Id of the call.
    pub request_id: RequestId,
    pub image: ImageId,
    /// ARN of the caller.
    pub principal: String,
    /// Current state.
    pub state: SynchronizationState,
    /// Time at which the call was accepted.
    pub created_at: Timestamp,
    /// Time at which the last region ended.
    pub finished_at: Option<Timestamp>,
    /// The regions, sorted.
    pub regions: Vec<RegionView>,
    /// Trace id of the call, 32 hexadecimal digits (W3C Trace Context).
    pub trace_id: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::{RegionStatus as R, SynchronizationState as S};

    #[test]
    fn the_state_follows_from_the_regions() {
        assert_eq!(S::from_regions([]), S::Succeeded);
        assert_eq!(S::from_regions([R::Available, R::Available]), S::Succeeded);
        assert_eq!(S::from_regions([R::Failed, R::Pending]), S::Running);
        assert_eq!(S::from_regions([R::Copying, R::Canceled]), S::Running);
        assert_eq!(S::from_regions([R::Canceled, R::Failed, R::Available]), S::Failed);
        assert_eq!(S::from_regions([R::Failed, R::Canceled]), S::Failed);
        assert_eq!(S::from_regions([R::Available, R::Canceled]), S::Canceled);
    }
}
