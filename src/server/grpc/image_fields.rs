//! Parses the fields of `ImageService`'s requests.

use crate::{
    contract::{
        ApiError, Violation,
        v1::{
            ImageType,
            add_image_request::ImageSpec::{self as SpecField, ContainerImageSpec, VmImageSpec},
        },
    },
    db,
    domain::{Image, ImageKind, is_unprintable},
    storage::ImageSpec,
};

/// Maximum number of values of a filter.
const MAX_FILTER_VALUES: usize = 100;

/// Parses a single line: at most `limit` characters, all printable, and not empty if `required`.
pub fn line(field: &'static str, value: String, limit: usize, required: bool) -> Result<String, ApiError> {
    check_printable(field, &value, |_| false)?;
    check_length(field, value, limit, required)
}

/// Parses a text of several lines: at most `limit` characters, all printable except for line breaks and tabs.
pub fn text(field: &'static str, value: String, limit: usize) -> Result<String, ApiError> {
    check_printable(field, &value, |c| matches!(c, '\n' | '\r' | '\t'))?;
    check_length(field, value, limit, false)
}

fn check_printable(field: &'static str, value: &str, is_allowed: impl Fn(char) -> bool) -> Result<(), ApiError> {
    let Some(c) = value.chars().find(|c| is_unprintable(*c) && !is_allowed(*c)) else { return Ok(()) };
    let description = format!("it contains the unprintable character {}", c.escape_unicode());
    Err(ApiError::invalid(Violation { field, description }))
}

fn check_length(field: &'static str, value: String, limit: usize, required: bool) -> Result<String, ApiError> {
    let length = value.chars().count();
    let description = if required && value.trim().is_empty() {
        "it is empty".to_owned()
    } else if length > limit {
        format!("it has {length} characters; the maximum is {limit}")
    } else {
        return Ok(value);
    };
    Err(ApiError::invalid(Violation { field, description }))
}

/// Parses the values of a filter.
pub fn filter_values<T>(
    field: &'static str,
    values: &[String],
    parse: impl Fn(&'static str, &str) -> Result<T, ApiError>,
) -> Result<Vec<T>, ApiError> {
    if values.len() > MAX_FILTER_VALUES {
        let description = format!("it has {} values; the maximum is {MAX_FILTER_VALUES}", values.len());
        return Err(ApiError::invalid(Violation { field, description }));
    }
    values.iter().map(|value| parse(field, value)).collect()
}

/// Parses the kind and the location of a new image.
pub fn image_spec(image_type: i32, spec: Option<SpecField>) -> Result<(ImageKind, ImageSpec), ApiError> {
    let invalid =
        |field, description: &str| ApiError::invalid(Violation { field, description: description.to_owned() });
    match (ImageType::try_from(image_type), spec) {
        (Ok(ImageType::Vm), Some(VmImageSpec(spec))) => Ok((ImageKind::Vm, ImageSpec::Vm(spec.image_id))),
        (Ok(ImageType::Container), Some(ContainerImageSpec(spec))) => {
            Ok((ImageKind::Container, ImageSpec::Container(spec.registry_url)))
        }
        (Ok(ImageType::Vm), _) => Err(invalid("vm_image_spec", "it is missing, and image_type is IMAGE_TYPE_VM")),
        (Ok(ImageType::Container), _) => {
            Err(invalid("container_image_spec", "it is missing, and image_type is IMAGE_TYPE_CONTAINER"))
        }
        (Ok(ImageType::Unspecified), _) => Err(invalid("image_type", "it is missing")),
        (Err(_), _) => Err(invalid("image_type", &format!("{image_type} is not an ImageType"))),
    }
}

/// Parses a filter by kind.
pub fn kind_filter(image_type: i32) -> Result<Option<ImageKind>, ApiError> {
    let image_type = ImageType::try_from(image_type).map_err(|_| {
        let description = format!("{image_type} is not an ImageType");
        ApiError::invalid(Violation { field: "image_type", description })
    })?;
    Ok(match image_type {
        ImageType::Unspecified => None,
        ImageType::Vm => Some(ImageKind::Vm),
        ImageType::Container => Some(ImageKind::Container),
    })
}

/// Returns `ImageNotFound` if the image is not of the requested kind.
pub fn check_kind(image: &Image, kind: Option<ImageKind>) -> Result<(), ApiError> {
    match kind {
        Some(kind) if kind != image.kind => Err(db::Error::ImageNotFound(image.id.clone()).into()),
        _ => Ok(()),
    }
}
