//! The actions of the original that are taken, each as a call of a method of the contract and what its answer looks like. Names and types
//! are those of its API, version 2023-07-01.

use prost::Message;
use serde_json::{Map, Value, json};

use super::parameters::{Parameters, invalid};
use crate::contract::{
    Failure,
    v1::{
        self, ImageType, RegionState,
        add_image_request::ImageSpec::{ContainerImageSpec, VmImageSpec},
        image::ImageSpec,
    },
};
use crate::domain::ForeignText;

/// The entries of a page, if nothing is said.
const PAGE: i32 = 20;

/// A call of a method of the contract.
pub struct Call {
    /// The message.
    pub message: Vec<u8>,
    /// What the answer looks like.
    pub answer: Answer,
}

/// Makes JSON of the message of an answer.
pub type Answer = Box<dyn FnOnce(&[u8]) -> Result<Map<String, Value>, prost::DecodeError> + Send>;

/// An action and the method that it calls.
pub struct Action {
    /// Its name.
    pub name: &'static str,
    /// The path of the method.
    pub path: &'static str,
    /// Reads its parameters.
    pub read: fn(&mut Parameters) -> Result<Call, Failure>,
}

/// All of them.
pub const ACTIONS: [Action; 6] = [
    Action { name: "SynchronizeApp", path: "/appferry.v1.AppSyncService/SynchronizeApp", read: synchronize_app },
    Action { name: "AddImage", path: "/appferry.v1.ImageService/AddImage", read: add_image },
    Action { name: "GetImage", path: "/appferry.v1.ImageService/GetImage", read: get_image },
    Action { name: "ListImages", path: "/appferry.v1.ImageService/ListImages", read: list_images },
    Action { name: "GetAppVersions", path: "/appferry.v1.ImageService/GetAppVersions", read: get_app_versions },
    Action { name: "RemoveImage", path: "/appferry.v1.ImageService/RemoveImage", read: remove_image },
];

fn call<R: Message + Default>(
    request: &impl Message,
    answer: impl FnOnce(R) -> Map<String, Value> + Send + 'static,
) -> Call {
    Call { message: request.encode_to_vec(), answer: Box::new(|message| Ok(answer(R::decode(message)?))) }
}

/// The fields of an object that are there.
fn object(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Map<String, Value> {
    let there = fields.into_iter().filter(|(_, value)| !value.is_null());
    there.map(|(name, value)| (name.to_owned(), value)).collect()
}

fn done(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Map<String, Value> {
    object([("Success", json!(true))].into_iter().chain(fields))
}

fn synchronize_app(parameters: &mut Parameters) -> Result<Call, Failure> {
    let request = v1::SynchronizeAppRequest {
        app_id: parameters.text("AppId"),
        target_region_ids: parameters.list("TargetRegionIds")?,
        client_token: parameters.text("ClientToken"),
        overwrite: flag(parameters, "Overwrite")?,
    };
    Ok(call(&request, |answer: v1::SynchronizeAppResponse| object([("RequestId", json!(answer.request_id))])))
}

fn add_image(parameters: &mut Parameters) -> Result<Call, Failure> {
    let vm = parameters.object("VMImageSpec")?.map(|spec| field("VMImageSpec", spec, "ImageId", &[])).transpose()?;
    // Where a registry is and how it is asked is the configuration's, never a caller's.
    let described = ["IsACRRegistry", "IsACREnterprise", "RegistryCriId"];
    let container = parameters.object("ContainerImageSpec")?;
    let container = container.map(|spec| field("ContainerImageSpec", spec, "RegistryUrl", &described)).transpose()?;
    let image_type = match (image_type(parameters)?, &vm, &container) {
        (ImageType::Unspecified, Some(_), None) => ImageType::Vm,
        (ImageType::Unspecified, None, Some(_)) => ImageType::Container,
        (said, _, _) => said,
    };
    let image_spec = match (vm, container) {
        (Some(_), Some(_)) => {
            return Err(invalid("ContainerImageSpec", "it is there as well as VMImageSpec; an image is one of them"));
        }
        (Some(image_id), None) => Some(VmImageSpec(v1::VmImageSpec { image_id })),
        (None, Some(registry_url)) => Some(ContainerImageSpec(v1::ContainerImageSpec { registry_url })),
        (None, None) => None,
    };
    let request = v1::AddImageRequest {
        name: parameters.text("Name"),
        image_version: parameters.text("ImageVersion"),
        description: parameters.text("Description"),
        image_type: image_type.into(),
        image_spec,
        image_id: parameters.text("ImageId"),
        supersede: flag(parameters, "Supersede")?,
    };
    Ok(call(&request, |answer: v1::AddImageResponse| done([("ImageId", json!(answer.image_id))])))
}

/// A parameter that is `true` or `false`; `false` if it is not there.
fn flag(parameters: &mut Parameters, name: &str) -> Result<bool, Failure> {
    match parameters.text(name).as_str() {
        "" | "false" => Ok(false),
        "true" => Ok(true),
        other => Err(invalid(name, &format!("{:?} is neither true nor false", ForeignText::value(other)))),
    }
}

/// The one field of an object that counts. Those of `others` may be there.
fn field(name: &str, mut spec: Map<String, Value>, key: &str, others: &[&str]) -> Result<String, Failure> {
    let value = spec.remove(key);
    spec.retain(|key, value| !value.is_null() && !others.contains(&key.as_str()));
    if let Some(key) = spec.keys().next() {
        let problem = if key == "RegistryCredential" {
            "credentials of registries are configured with their regions, and not taken from callers"
        } else {
            "it is no field of it"
        };
        return Err(invalid(&format!("{name}.{key}"), problem));
    }
    match value {
        Some(Value::String(text)) => Ok(text),
        _ => Err(invalid(&format!("{name}.{key}"), "it is missing, or no text")),
    }
}

fn image_type(parameters: &mut Parameters) -> Result<ImageType, Failure> {
    match parameters.text("ImageType").as_str() {
        "" => Ok(ImageType::Unspecified),
        "VM" => Ok(ImageType::Vm),
        "Container" => Ok(ImageType::Container),
        other => Err(invalid("ImageType", &format!("{:?} is neither VM nor Container", ForeignText::value(other)))),
    }
}

/// Only images that somebody has added are here.
fn category(parameters: &mut Parameters) -> Result<(), Failure> {
    match parameters.text("ImageCategory").as_str() {
        "" | "Custom" => Ok(()),
        other => Err(invalid(
            "ImageCategory",
            &format!("{:?} is not Custom, and there are no other images here", ForeignText::value(other)),
        )),
    }
}

fn get_image(parameters: &mut Parameters) -> Result<Call, Failure> {
    category(parameters)?;
    let additional_region_ids = parameters.list("AdditionalRegionIds")?;
    let home_too = !additional_region_ids.is_empty();
    let request = v1::GetImageRequest {
        image_id: parameters.text("ImageId"),
        additional_region_ids,
        image_type: image_type(parameters)?.into(),
    };
    Ok(call(&request, move |answer: v1::GetImageResponse| {
        let image = answer.image.unwrap_or_default();
        done([("Image", Value::Object(detailed(image, home_too))), ("TotalCount", json!(1))])
    }))
}

fn detailed(image: v1::Image, home_too: bool) -> Map<String, Value> {
    let home = image.home_region_id.clone();
    let regions = image.additional_regions_info.into_iter().filter(|info| home_too || info.region_id != home);
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
        ("ImageType", json!(kind(image.image_type))),
        ("Size", json!(gibibytes(image.size_bytes))),
        ("CreateTime", image.create_time.as_ref().map_or(Value::Null, |time| json!(second(time)))),
        ("Status", json!(status(RegionState::Available))),
        ("VMImageSpec", vm),
        ("ContainerImageSpec", container),
        ("AdditionalRegionsInfo", json!(regions)),
    ])
}

fn kind(image_type: i32) -> &'static str {
    if image_type == i32::from(ImageType::Container) { "Container" } else { "VM" }
}

/// A region's state, as the statuses of ECS are spelled.
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

/// A size, rounded up to hundredths, as the original's example has it: `40 GiB`.
fn gibibytes(bytes: i64) -> String {
    let hundredths = (i128::from(bytes) * 100 + (1 << 30) - 1) >> 30;
    match (hundredths / 100, hundredths % 100) {
        (whole, 0) => format!("{whole} GiB"),
        (whole, part) => format!("{whole}.{part:02} GiB"),
    }
}

/// A time to the second (RFC 3339).
fn second(time: &prost_types::Timestamp) -> String {
    prost_types::Timestamp { seconds: time.seconds, nanos: 0 }.to_string()
}

/// The number of a page and how many entries it has; how many come before it.
fn page(parameters: &mut Parameters) -> Result<(i32, i32, i32), Failure> {
    let (number, size) = (parameters.number("PageNumber", 1)?, parameters.number("PageSize", PAGE)?);
    if number < 1 {
        return Err(invalid("PageNumber", &format!("{number} is not 1 or more")));
    }
    if size < 1 {
        return Err(invalid("PageSize", &format!("{size} is not 1 or more")));
    }
    let skip = (number - 1).checked_mul(size).ok_or_else(|| invalid("PageNumber", "there is no such page"))?;
    Ok((number, size, skip))
}

fn list_images(parameters: &mut Parameters) -> Result<Call, Failure> {
    category(parameters)?;
    let (number, size, skip) = page(parameters)?;
    let latest_only = match parameters.text("Mode").as_str() {
        "" | "List" => false,
        "Merge" => true,
        other => return Err(invalid("Mode", &format!("{:?} is neither List nor Merge", ForeignText::value(other)))),
    };
    let request = v1::ListImagesRequest {
        page_size: size,
        skip,
        image_ids: parameters.list("ImageIds")?,
        names: parameters.list("ImageNames")?,
        image_type: or_vm(image_type(parameters)?).into(),
        latest_only,
        count_all: true,
        page_token: String::new(),
    };
    Ok(call(&request, move |answer: v1::ListImagesResponse| {
        let images: Vec<_> = answer.images.iter().map(listed).collect();
        done([
            ("Images", json!(images)),
            ("PageNumber", json!(number)),
            ("PageSize", json!(size)),
            ("TotalCount", json!(answer.total_size)),
        ])
    }))
}

/// What the original takes for said where nothing is.
fn or_vm(said: ImageType) -> ImageType {
    if said == ImageType::Unspecified { ImageType::Vm } else { said }
}

fn listed(image: &v1::Image) -> Map<String, Value> {
    object([
        ("AppId", json!(image.image_id)),
        ("ImageId", json!(image.image_id)),
        ("Name", json!(image.name)),
        ("Version", json!(image.image_version)),
        ("Description", json!(image.description)),
        ("ImageType", json!(kind(image.image_type))),
        ("CreateTime", image.create_time.as_ref().map_or(Value::Null, |time| json!(second(time)))),
    ])
}

fn get_app_versions(parameters: &mut Parameters) -> Result<Call, Failure> {
    category(parameters)?;
    let (number, size, skip) = page(parameters)?;
    let request = v1::GetAppVersionsRequest {
        app_name: parameters.text("AppName"),
        image_type: image_type(parameters)?.into(),
        page_size: size,
        skip,
    };
    Ok(call(&request, move |answer: v1::GetAppVersionsResponse| {
        let version = |version: v1::AppVersion| {
            object([
                ("ImageId", json!(version.image_id)),
                ("Name", json!(version.name)),
                ("Version", json!(version.version)),
            ])
        };
        let versions: Vec<_> = answer.app_versions.into_iter().map(version).collect();
        done([
            ("AppVersions", json!(versions)),
            ("PageNumber", json!(number)),
            ("PageSize", json!(size)),
            ("TotalCount", json!(answer.total_size)),
        ])
    }))
}

fn remove_image(parameters: &mut Parameters) -> Result<Call, Failure> {
    let request =
        v1::RemoveImageRequest { image_id: parameters.text("ImageId"), image_type: image_type(parameters)?.into() };
    Ok(call(&request, |_: v1::RemoveImageResponse| done([])))
}

#[cfg(test)]
mod tests {
    use super::{Parameters, flag, gibibytes};

    #[test]
    fn a_flag_is_true_or_false() {
        for (value, read) in
            [("", Some(false)), ("true", Some(true)), ("false", Some(false)), ("True", None), ("1", None)]
        {
            let mut parameters = Parameters::read([format!("Overwrite={value}").as_bytes(), b""]).expect("a form");
            assert_eq!(flag(&mut parameters, "Overwrite").ok(), read, "{value:?}");
        }
    }

    #[test]
    fn a_size_is_never_told_as_less_than_it_is() {
        for (bytes, told) in [(0, "0 GiB"), (1, "0.01 GiB"), (40 << 30, "40 GiB"), ((3 << 29) + 1, "1.51 GiB")] {
            assert_eq!(gibibytes(bytes), told);
        }
    }
}
