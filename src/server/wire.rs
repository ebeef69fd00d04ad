//! Between the contract's types and the domain's.

use std::{str::FromStr, time::Duration};

use prost_types::Timestamp as WireTime;

use super::RETRY_AFTER;
use crate::{
    contract::{
        ErrorRows, Failure, Violation,
        v1::{self, CommonErrorCode, ErrorCode},
    },
    db::Error,
    domain::{
        Content, Digest, Fault, FaultKind, Image, ImageKind, RegionId, RegionStatus, RegionView, Regions, Replica,
        RequestId, Synchronization, SynchronizationState, TargetError, Targets, Timestamp, Verification,
        is_unprintable, with_causes,
    },
};

/// Reads a field that is an id.
pub fn id<T: FromStr<Err: std::fmt::Display>>(field: &'static str, value: &str) -> Result<T, Failure> {
    value.parse().map_err(|error: T::Err| Failure::invalid(Violation { field, description: error.to_string() }))
}

/// Reads a field that is a list of regions.
pub fn targets(field: &'static str, names: &[String], regions: &Regions) -> Result<Targets, Failure> {
    let refused = |error: TargetError| Failure::invalid(Violation { field, description: error.to_string() });
    regions.parse_targets(names).map_err(refused)
}

/// Refuses a line that is too long, or empty though it must not be, or holds what a terminal would act on.
pub fn text(field: &'static str, value: String, most: usize, required: bool) -> Result<String, Failure> {
    printable(field, &value, |_| false)?;
    bounded(field, value, most, required)
}

/// Refuses a text of several lines for the same reasons.
pub fn lines(field: &'static str, value: String, most: usize) -> Result<String, Failure> {
    printable(field, &value, |c| matches!(c, '\n' | '\r' | '\t'))?;
    bounded(field, value, most, false)
}

fn printable(field: &'static str, value: &str, is_allowed: impl Fn(char) -> bool) -> Result<(), Failure> {
    let Some(c) = value.chars().find(|c| is_unprintable(*c) && !is_allowed(*c)) else { return Ok(()) };
    let description = format!("it has the character {}, which can't be shown", c.escape_unicode());
    Err(Failure::invalid(Violation { field, description }))
}

fn bounded(field: &'static str, value: String, most: usize, required: bool) -> Result<String, Failure> {
    let length = value.chars().count();
    let description = if required && value.trim().is_empty() {
        "it is empty".to_owned()
    } else if length > most {
        format!("it has {length} characters, the maximum is {most}")
    } else {
        return Ok(value);
    };
    Err(Failure::invalid(Violation { field, description }))
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let busy = |retry_after: Duration| Self::unavailable("Nothing was changed; repeat the call later", retry_after);
        match &error {
            Error::ImageNotFound(id) => Self::new(ErrorCode::ImageNotFound, format!("No image {id} is registered.")),
            Error::ImageExists(id) => {
                Self::new(ErrorCode::ImageAlreadyExists, format!("An image {id} is registered already."))
            }
            Error::NameTaken { .. } => Self::new(
                ErrorCode::ImageAlreadyExists,
                format!("{}; give this one another name, or ask for it to supersede that one.", sentence(&error)),
            ),
            Error::ImageSuperseded { by, .. } => Self::invalid(Violation {
                field: "app_id",
                description: format!("{error}; synchronize {by}, or register the image again by another name"),
            }),
            Error::ImageAlreadyAvailable { regions, .. } => {
                Self::new(ErrorCode::ImageAlreadyExists, format!("{}.", sentence(&error))).in_regions(regions)
            }
            Error::ImageInUse { regions, .. } => Self::new(
                CommonErrorCode::ImageInUse,
                format!("{}; cancel the synchronization or wait for it.", sentence(&error)),
            )
            .in_regions(regions),
            Error::SynchronizationNotFound(id) => {
                Self::new(CommonErrorCode::SynchronizationNotFound, format!("There is none with the id {id}."))
            }
            Error::TokenReused(_) => Self::invalid(Violation { field: "client_token", description: error.to_string() }),
            Error::Busy | Error::Closed | Error::ReadOnly | Error::Conflict(_) => {
                tracing::warn!(%error, "a call was not carried out");
                busy(RETRY_AFTER)
            }
            // It may have broken off after it was carried out.
            Error::Unavailable(_) | Error::Slow(_) => {
                tracing::warn!(error = with_causes(&error), "the database can't be reached");
                let advice =
                    "The database can't be reached; repeat the call later, with the same client_token if it has one";
                Self::unavailable(advice, RETRY_AFTER)
            }
            // What the database said may tell about its inside: it is logged, and not sent.
            Error::Database(cause) => {
                tracing::error!(%cause, "the database failed");
                Self::new(ErrorCode::DbError, "")
            }
            Error::SchemaOld(_)
            | Error::SchemaNewer(_)
            | Error::SchemaLocked(_)
            | Error::InUse(_)
            | Error::Lock(..)
            | Error::UnknownDatabase(_) => {
                tracing::error!(%error, "the database can't be used");
                Self::new(ErrorCode::DbError, "")
            }
        }
    }
}

fn sentence(error: &Error) -> String {
    let text = error.to_string();
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

fn time(timestamp: Timestamp) -> WireTime {
    let millis = timestamp.as_millis();
    let nanos = i32::try_from(millis.rem_euclid(1_000)).unwrap_or(0) * 1_000_000;
    WireTime { seconds: millis.div_euclid(1_000), nanos }
}

/// A number as the contract has it.
pub fn bytes(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A region's state as the contract has it.
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

/// How it is known that a region has an image, as the contract has it.
pub fn verification(known: Option<Verification>) -> v1::Verification {
    match known {
        None => v1::Verification::Unspecified,
        Some(Verification::Trusted) => v1::Verification::Trusted,
        Some(Verification::Verified) => v1::Verification::Verified,
    }
}

/// The row of the table that a fault is.
pub fn fault_code(kind: FaultKind) -> ErrorCode {
    match kind {
        FaultKind::Store => ErrorCode::ServiceApiError,
        FaultKind::Ecs => ErrorCode::EcsError,
        FaultKind::Aliyun => ErrorCode::AliyunError,
        FaultKind::Database => ErrorCode::DbError,
        FaultKind::ImageNotFound => ErrorCode::ImageNotFound,
    }
}

fn fault(fault: &Fault, region: &RegionId, request_id: RequestId, rows: &ErrorRows) -> v1::ErrorDetail {
    Failure::new(fault_code(fault.kind), fault.message.as_str()).in_regions([region]).detail(rows, request_id)
}

/// A synchronization as the contract has it.
pub fn synchronization(from: &Synchronization, rows: &ErrorRows) -> v1::Synchronization {
    let state = match from.state {
        SynchronizationState::Running => v1::SynchronizationState::Running,
        SynchronizationState::Succeeded => v1::SynchronizationState::Succeeded,
        SynchronizationState::Failed => v1::SynchronizationState::Failed,
        SynchronizationState::Canceled => v1::SynchronizationState::Canceled,
    };
    let region = |view: &RegionView| v1::RegionSynchronization {
        region_id: view.region.to_string(),
        state: region_state(view.status).into(),
        bytes_total: bytes(view.progress.total),
        bytes_copied: bytes(view.progress.copied),
        bytes_skipped: bytes(view.progress.skipped),
        attempt: i32::try_from(view.attempt).unwrap_or(i32::MAX),
        next_attempt_time: view.next_attempt_at.map(time),
        error: view.fault.as_ref().map(|f| fault(f, &view.region, from.request_id, rows)),
        start_time: view.started_at.map(time),
        finish_time: view.finished_at.map(time),
        verification: verification(view.verification).into(),
        warnings: view.warnings.to_texts(),
    };
    v1::Synchronization {
        app_id: from.image.to_string(),
        principal: from.principal.clone(),
        state: state.into(),
        create_time: Some(time(from.created_at)),
        finish_time: from.finished_at.map(time),
        regions: from.regions.iter().map(region).collect(),
        request_id: from.request_id.to_string(),
        trace_id: from.trace_id.clone().unwrap_or_default(),
    }
}

/// Reads a filter by state.
pub fn state_filter(state: i32) -> Result<Option<SynchronizationState>, Failure> {
    let known = v1::SynchronizationState::try_from(state).map_err(|_| {
        Failure::invalid(Violation { field: "state", description: format!("{state} is no SynchronizationState") })
    })?;
    Ok(match known {
        v1::SynchronizationState::Unspecified => None,
        v1::SynchronizationState::Running => Some(SynchronizationState::Running),
        v1::SynchronizationState::Succeeded => Some(SynchronizationState::Succeeded),
        v1::SynchronizationState::Failed => Some(SynchronizationState::Failed),
        v1::SynchronizationState::Canceled => Some(SynchronizationState::Canceled),
    })
}

/// Reads a filter by kind.
pub fn kind_filter(image_type: i32) -> Result<Option<ImageKind>, Failure> {
    let known = v1::ImageType::try_from(image_type).map_err(|_| {
        Failure::invalid(Violation { field: "image_type", description: format!("{image_type} is no ImageType") })
    })?;
    Ok(match known {
        v1::ImageType::Unspecified => None,
        v1::ImageType::Vm => Some(ImageKind::Vm),
        v1::ImageType::Container => Some(ImageKind::Container),
    })
}

/// An image as the contract has it, with those of the configured regions that are asked about. `url` is what people pull it by;
/// `id_in` knows what else than by its id it is known by in a region; `shown_at_home` is another digest that its name shows at home.
pub fn image(
    from: &Image,
    url: String,
    replicas: &[(RegionId, Replica)],
    id_in: impl Fn(&RegionId) -> Option<String>,
    regions: &Regions,
    asked: &Targets,
    shown_at_home: Option<Digest>,
) -> v1::Image {
    let replica_in = |region: &RegionId| replicas.iter().find(|(r, _)| r == region).map(|(_, replica)| replica);
    let there = |region: &RegionId| {
        if *region == from.home {
            return v1::RegionState::Available;
        }
        replica_in(region).map_or(v1::RegionState::Unspecified, |replica| region_state(replica.status()))
    };
    let info = |region: &RegionId| {
        let status = there(region);
        let present = status == v1::RegionState::Available;
        v1::AdditionalRegionInfo {
            region_id: region.to_string(),
            image_id: if present { id_in(region).unwrap_or_else(|| from.id.to_string()) } else { String::new() },
            status: status.into(),
            verification: verification(replica_in(region).and_then(Replica::verification)).into(),
            warnings: replica_in(region).map(|replica| replica.warnings.to_texts()).unwrap_or_default(),
            shown_digest: shown_at_home
                .filter(|_| *region == from.home)
                .map_or_else(String::new, |digest| digest.to_string()),
        }
    };
    let (image_type, spec) = match from.kind {
        ImageKind::Vm => (
            v1::ImageType::Vm,
            v1::image::ImageSpec::VmImageSpec(v1::VmImageSpec { image_id: from.source.to_string() }),
        ),
        ImageKind::Container => (
            v1::ImageType::Container,
            v1::image::ImageSpec::ContainerImageSpec(v1::ContainerImageSpec { registry_url: url }),
        ),
    };
    v1::Image {
        image_id: from.id.to_string(),
        name: from.name.clone(),
        image_version: from.version.clone(),
        description: from.description.clone(),
        image_type: image_type.into(),
        image_spec: Some(spec),
        home_region_id: from.home.to_string(),
        digest: match &from.content {
            Content::Blobs(root) => root.digest.to_string(),
            Content::Ecs => String::new(),
        },
        size_bytes: bytes(from.size),
        create_time: Some(time(from.created_at)),
        additional_regions_info: match asked {
            Targets::All => regions.iter().map(info).collect(),
            Targets::Named(named) => named.iter().map(info).collect(),
        },
        superseded_by: from.superseded_by.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}
