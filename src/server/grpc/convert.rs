//! Converts between messages of the contract and domain types.

use std::{fmt::Display, str::FromStr};

use prost_types::Timestamp as TimestampMessage;

use crate::{
    contract::{
        ApiError, ErrorTable, Violation,
        v1::{self, ErrorCode},
    },
    domain::{
        Fault, FaultKind, RegionId, RegionStatus, RegionView, Regions, RequestId, Synchronization,
        SynchronizationState, TargetError, Targets, Timestamp, Verification,
    },
};

/// Parses a field that holds an id.
pub fn id<T: FromStr<Err: Display>>(field: &'static str, value: &str) -> Result<T, ApiError> {
    value.parse().map_err(|error: T::Err| ApiError::invalid(Violation { field, description: error.to_string() }))
}

/// Parses a field that lists regions.
pub fn targets(field: &'static str, names: &[String], regions: &Regions) -> Result<Targets, ApiError> {
    let invalid = |error: TargetError| ApiError::invalid(Violation { field, description: error.to_string() });
    regions.parse_targets(names).map_err(invalid)
}

pub fn time(timestamp: Timestamp) -> TimestampMessage {
    let millis = timestamp.as_millis();
    let nanos = i32::try_from(millis.rem_euclid(1_000)).unwrap_or(0) * 1_000_000;
    TimestampMessage { seconds: millis.div_euclid(1_000), nanos }
}

/// Converts a size in bytes, or a number of entries; saturates at `i64::MAX`.
pub fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub fn region_state(status: RegionStatus) -> v1::RegionState {
    match status {
        RegionStatus::Pending => v1::RegionState::Pending,
        RegionStatus::Copying => v1::RegionState::Copying,
        RegionStatus::Available => v1::RegionState::Available,
        RegionStatus::Failed => v1::RegionState::Failed,
        RegionStatus::Canceled => v1::RegionState::Canceled,
        RegionStatus::Superseded => v1::RegionState::Superseded,
    }
}

/// Converts the way in which the presence of an image in a region was established.
pub fn verification(verification: Option<Verification>) -> v1::Verification {
    match verification {
        None => v1::Verification::Unspecified,
        Some(Verification::Trusted) => v1::Verification::Trusted,
        Some(Verification::Verified) => v1::Verification::Verified,
    }
}

/// Returns the contract's error code for a kind of fault.
pub fn fault_code(kind: FaultKind) -> ErrorCode {
    match kind {
        FaultKind::Store => ErrorCode::ServiceApiError,
        FaultKind::Ecs => ErrorCode::EcsError,
        FaultKind::Aliyun => ErrorCode::AliyunError,
        FaultKind::Database => ErrorCode::DbError,
        FaultKind::ImageNotFound => ErrorCode::ImageNotFound,
    }
}

fn fault(fault: &Fault, region: &RegionId, request_id: RequestId, errors: &ErrorTable) -> v1::ErrorDetail {
    ApiError::new(fault_code(fault.kind), fault.message.as_str()).in_regions([region]).detail(errors, request_id)
}

pub fn synchronization(synchronization: &Synchronization, errors: &ErrorTable) -> v1::Synchronization {
    let state = match synchronization.state {
        SynchronizationState::Running => v1::SynchronizationState::Running,
        SynchronizationState::Succeeded => v1::SynchronizationState::Succeeded,
        SynchronizationState::Failed => v1::SynchronizationState::Failed,
        SynchronizationState::Canceled => v1::SynchronizationState::Canceled,
    };
    let region = |view: &RegionView| v1::RegionSynchronization {
        region_id: view.region.to_string(),
        state: region_state(view.status).into(),
        bytes_total: count(view.progress.total),
        bytes_copied: count(view.progress.copied),
        bytes_skipped: count(view.progress.skipped),
        attempt: i32::try_from(view.attempt).unwrap_or(i32::MAX),
        next_attempt_time: view.next_attempt_at.map(time),
        error: view.fault.as_ref().map(|f| fault(f, &view.region, synchronization.request_id, errors)),
        start_time: view.started_at.map(time),
        finish_time: view.finished_at.map(time),
        verification: verification(view.verification).into(),
        warnings: view.warnings.to_texts(),
    };
    v1::Synchronization {
        app_id: synchronization.image.to_string(),
        principal: synchronization.principal.clone(),
        state: state.into(),
        create_time: Some(time(synchronization.created_at)),
        finish_time: synchronization.finished_at.map(time),
        regions: synchronization.regions.iter().map(region).collect(),
        request_id: synchronization.request_id.to_string(),
        trace_id: synchronization.trace_id.clone().unwrap_or_default(),
    }
}

/// Parses a filter by state.
pub fn state_filter(state: i32) -> Result<Option<SynchronizationState>, ApiError> {
    let state = v1::SynchronizationState::try_from(state).map_err(|_| {
        ApiError::invalid(Violation { field: "state", description: format!("{state} is not a SynchronizationState") })
    })?;
    Ok(match state {
        v1::SynchronizationState::Unspecified => None,
        v1::SynchronizationState::Running => Some(SynchronizationState::Running),
        v1::SynchronizationState::Succeeded => Some(SynchronizationState::Succeeded),
        v1::SynchronizationState::Failed => Some(SynchronizationState::Failed),
        v1::SynchronizationState::Canceled => Some(SynchronizationState::Canceled),
    })
}
