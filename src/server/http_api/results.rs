//! Encodes the responses of methods as the original's JSON. Names, types and the omission of fields are the original's.

use prost::DecodeError;
use prost_types::Timestamp;
use serde_json::{Map, Value, json};

use crate::contract::v1::{self, ImageType, RegionState, image::ImageSpec};

/// Encodes the message of a response as a JSON object.
pub type ResultEncoder = Box<dyn FnOnce(&[u8]) -> Result<Map<String, Value>, DecodeError> + Send>;

/// A requested page.
#[allow(missing_docs, reason = "the names say it")]
pub struct Page {
    pub number: i32,
    /// Maximum number of entries.
    pub size: i32,
    /// Number of entries before the page.
    pub skip: i32,
}

impl Page {
    /// The common fields of a page, without its entries.
    fn fields(&self, total: i64) -> [(&'static str, Value); 3] {
        [("PageNumber", json!(self.number)), ("PageSize", json!(self.size)), ("TotalCount", json!(total))]
    }
}

/// Creates an object of all fields that are not null.
fn object(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Map<String, Value> {
    let present = fields.into_iter().filter(|(_, value)| !value.is_null());
    present.map(|(name, value)| (name.to_owned(), value)).collect()
}

fn success(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Map<String, Value> {
    object([("Success", json!(true))].into_iter().chain(fields))
}

pub fn synchronize_app(response: &v1::SynchronizeAppResponse) -> Map<String, Value> {
    object([("RequestId", json!(response.request_id))])
}

pub fn add_image(response: &v1::AddImageResponse) -> Map<String, Value> {
    success([("ImageId", json!(response.image_id))])
}

/// Includes the home region in the additional regions if `include_home` is set.
pub fn get_image(response: v1::GetImageResponse, include_home: bool) -> Map<String, Value> {
    let image = detailed_image(response.image.unwrap_or_default(), include_home);
    success([("Image", Value::Object(image)), ("TotalCount", json!(1))])
}

pub fn list_images(response: &v1::ListImagesResponse, page: &Page) -> Map<String, Value> {
    let images: Vec<_> = response.images.iter().map(listed_image).collect();
    success([("Images", json!(images))].into_iter().chain(page.fields(response.total_size)))
}

pub fn get_app_versions(response: v1::GetAppVersionsResponse, page: &Page) -> Map<String, Value> {
    let version = |version: v1::AppVersion| {
        object([
            ("ImageId", json!(version.image_id)),
            ("Name", json!(version.name)),
            ("Version", json!(version.version)),
        ])
    };
    let versions: Vec<_> = response.app_versions.into_iter().map(version).collect();
    success([("AppVersions", json!(versions))].into_iter().chain(page.fields(response.total_size)))
}

pub fn remove_image(_: v1::RemoveImageResponse) -> Map<String, Value> {
    success([])
}

fn detailed_image(image: v1::Image, include_home: bool) -> Map<String, Value> {
    let home = image.home_region_id.clone();
    let regions = image.additional_regions_info.into_iter().filter(|info| include_home || info.region_id != home);
    let regions = regions.map(|info| {
        let status = status(info.status());
        object([
            ("RegionId", json!(info.region_id)),
            ("ImageId", if info.image_id.is_empty() { Value::Null } else { json!(info.image_id) }),
            ("Status", json!(status)),
        ])
    });
    let regions: Vec<_> = regions.collect();
    let (vm, container) = match image.image_spec {
        Some(ImageSpec::VmImageSpec(spec)) => (json!({"ImageId": spec.image_id}), Value::Null),
        Some(ImageSpec::ContainerImageSpec(spec)) => (Value::Null, json!({"RegistryUrl": spec.registry_url})),
        None => (Value::Null, Value::Null),
    };
    object([
        ("AppId", json!(image.image_id)),
        ("Name", json!(image.name)),
        ("Version", json!(image.image_version)),
        ("Description", json!(image.description)),
        ("ImageType", json!(image_type(image.image_type))),
        ("Size", json!(gibibytes(image.size_bytes))),
        ("CreateTime", image.create_time.as_ref().map_or(Value::Null, |time| json!(whole_seconds(time)))),
        ("Status", json!(status(RegionState::Available))),
        ("VMImageSpec", vm),
        ("ContainerImageSpec", container),
        ("AdditionalRegionsInfo", json!(regions)),
    ])
}

fn listed_image(image: &v1::Image) -> Map<String, Value> {
    object([
        ("AppId", json!(image.image_id)),
        ("ImageId", json!(image.image_id)),
        ("Name", json!(image.name)),
        ("Version", json!(image.image_version)),
        ("Description", json!(image.description)),
        ("ImageType", json!(image_type(image.image_type))),
        ("CreateTime", image.create_time.as_ref().map_or(Value::Null, |time| json!(whole_seconds(time)))),
    ])
}

fn image_type(image_type: i32) -> &'static str {
    if image_type == i32::from(ImageType::Container) { "Container" } else { "VM" }
}

/// Returns a region's state in the spelling of ECS statuses.
fn status(state: RegionState) -> &'static str {
    match state {
        RegionState::Unspecified => "NotSynchronized",
        RegionState::Pending => "Pending",
        RegionState::Copying => "Copying",
        RegionState::Available => "Available",
        RegionState::Failed => "Failed",
        RegionState::Canceled => "Canceled",
        RegionState::Superseded => "Superseded",
    }
}

/// Formats a size in GiB, rounded up to hundredths, as the original's example does: `40 GiB`.
fn gibibytes(bytes: i64) -> String {
    let hundredths = (i128::from(bytes) * 100 + (1 << 30) - 1) >> 30;
    match (hundredths / 100, hundredths % 100) {
        (whole, 0) => format!("{whole} GiB"),
        (whole, fraction) => format!("{whole}.{fraction:02} GiB"),
    }
}

/// Formats a time in whole seconds (RFC 3339).
fn whole_seconds(time: &Timestamp) -> String {
    Timestamp { seconds: time.seconds, nanos: 0 }.to_string()
}

#[cfg(test)]
mod tests {
    use super::gibibytes;

    #[test]
    fn sizes_are_rounded_up() {
        for (bytes, expected) in [(0, "0 GiB"), (1, "0.01 GiB"), (40 << 30, "40 GiB"), ((3 << 29) + 1, "1.51 GiB")] {
            assert_eq!(gibibytes(bytes), expected);
        }
    }
}
