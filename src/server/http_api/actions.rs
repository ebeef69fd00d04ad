//! The supported actions of the original API (version 2023-07-01): each parses its parameters into the request of a
//! method of the contract. Names and types of parameters are the original's.

use prost::Message;
use serde_json::{Map, Value};

use super::{
    parameters::{Parameters, invalid},
    results::{self, Page, ResultEncoder},
};
use crate::{
    contract::{
        ApiError,
        v1::{
            self, ImageType,
            add_image_request::ImageSpec::{ContainerImageSpec, VmImageSpec},
        },
    },
    domain::ForeignText,
};

/// Entries per page if the caller sets no `PageSize`.
const DEFAULT_PAGE_SIZE: i32 = 20;

/// A call of a method of the contract.
pub struct ActionCall {
    /// The encoded request.
    pub message: Vec<u8>,
    /// Encodes the response.
    pub encoder: ResultEncoder,
}

impl ActionCall {
    fn new<R: Message + Default>(
        request: &impl Message,
        result: impl FnOnce(R) -> Map<String, Value> + Send + 'static,
    ) -> Self {
        Self { message: request.encode_to_vec(), encoder: Box::new(|message| Ok(result(R::decode(message)?))) }
    }
}

/// An action, and the method that it calls.
pub struct Action {
    /// The value of the `Action` parameter.
    pub name: &'static str,
    /// The path of the gRPC method.
    pub path: &'static str,
    /// Parses the parameters into a call of the method.
    pub parse: fn(&mut Parameters) -> Result<ActionCall, ApiError>,
}

/// The supported actions.
pub const ACTIONS: [Action; 6] = [
    Action { name: "SynchronizeApp", path: "/appferry.v1.AppSyncService/SynchronizeApp", parse: synchronize_app },
    Action { name: "AddImage", path: "/appferry.v1.ImageService/AddImage", parse: add_image },
    Action { name: "GetImage", path: "/appferry.v1.ImageService/GetImage", parse: get_image },
    Action { name: "ListImages", path: "/appferry.v1.ImageService/ListImages", parse: list_images },
    Action { name: "GetAppVersions", path: "/appferry.v1.ImageService/GetAppVersions", parse: get_app_versions },
    Action { name: "RemoveImage", path: "/appferry.v1.ImageService/RemoveImage", parse: remove_image },
];

fn synchronize_app(parameters: &mut Parameters) -> Result<ActionCall, ApiError> {
    let request = v1::SynchronizeAppRequest {
        app_id: parameters.text("AppId"),
        target_region_ids: parameters.list("TargetRegionIds")?,
        client_token: parameters.text("ClientToken"),
        overwrite: flag(parameters, "Overwrite")?,
    };
    Ok(ActionCall::new(&request, |response| results::synchronize_app(&response)))
}

fn add_image(parameters: &mut Parameters) -> Result<ActionCall, ApiError> {
    let vm =
        parameters.object("VMImageSpec")?.map(|spec| spec_field("VMImageSpec", spec, "ImageId", &[])).transpose()?;
    // Accepted and ignored: a registry and its kind are configured, never chosen by a caller.
    let ignored = ["IsACRRegistry", "IsACREnterprise", "RegistryCriId"];
    let container = parameters.object("ContainerImageSpec")?;
    let container =
        container.map(|spec| spec_field("ContainerImageSpec", spec, "RegistryUrl", &ignored)).transpose()?;
    let image_type = match (image_type(parameters)?, &vm, &container) {
        (ImageType::Unspecified, Some(_), None) => ImageType::Vm,
        (ImageType::Unspecified, None, Some(_)) => ImageType::Container,
        (specified, _, _) => specified,
    };
    let image_spec = match (vm, container) {
        (Some(_), Some(_)) => {
            return Err(invalid("ContainerImageSpec", "it conflicts with VMImageSpec; give one of them"));
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
    Ok(ActionCall::new(&request, |response| results::add_image(&response)))
}

fn get_image(parameters: &mut Parameters) -> Result<ActionCall, ApiError> {
    check_category(parameters)?;
    let additional_region_ids = parameters.list("AdditionalRegionIds")?;
    let include_home = !additional_region_ids.is_empty();
    let request = v1::GetImageRequest {
        image_id: parameters.text("ImageId"),
        additional_region_ids,
        image_type: image_type(parameters)?.into(),
    };
    Ok(ActionCall::new(&request, move |response| results::get_image(response, include_home)))
}

fn list_images(parameters: &mut Parameters) -> Result<ActionCall, ApiError> {
    check_category(parameters)?;
    let page = page(parameters)?;
    let latest_only = match parameters.text("Mode").as_str() {
        "" | "List" => false,
        "Merge" => true,
        other => return Err(invalid("Mode", &format!("{:?} is neither List nor Merge", ForeignText::value(other)))),
    };
    let image_type = match image_type(parameters)? {
        // The original's default.
        ImageType::Unspecified => ImageType::Vm,
        specified => specified,
    };
    let request = v1::ListImagesRequest {
        page_size: page.size,
        skip: page.skip,
        image_ids: parameters.list("ImageIds")?,
        names: parameters.list("ImageNames")?,
        image_type: image_type.into(),
        latest_only,
        count_all: true,
        page_token: String::new(),
    };
    Ok(ActionCall::new(&request, move |response| results::list_images(&response, &page)))
}

fn get_app_versions(parameters: &mut Parameters) -> Result<ActionCall, ApiError> {
    check_category(parameters)?;
    let page = page(parameters)?;
    let request = v1::GetAppVersionsRequest {
        app_name: parameters.text("AppName"),
        image_type: image_type(parameters)?.into(),
        page_size: page.size,
        skip: page.skip,
    };
    Ok(ActionCall::new(&request, move |response| results::get_app_versions(response, &page)))
}

fn remove_image(parameters: &mut Parameters) -> Result<ActionCall, ApiError> {
    let request =
        v1::RemoveImageRequest { image_id: parameters.text("ImageId"), image_type: image_type(parameters)?.into() };
    Ok(ActionCall::new(&request, results::remove_image))
}

/// Parses a boolean, which is false if the parameter is missing.
fn flag(parameters: &mut Parameters, name: &str) -> Result<bool, ApiError> {
    match parameters.text(name).as_str() {
        "" | "false" => Ok(false),
        "true" => Ok(true),
        other => Err(invalid(name, &format!("{:?} is neither true nor false", ForeignText::value(other)))),
    }
}

/// Returns the field `key` of the object `name`, in which the fields `ignored` are allowed as well.
fn spec_field(name: &str, mut spec: Map<String, Value>, key: &str, ignored: &[&str]) -> Result<String, ApiError> {
    let value = spec.remove(key);
    spec.retain(|key, value| !value.is_null() && !ignored.contains(&key.as_str()));
    if let Some(key) = spec.keys().next() {
        let problem = if key == "RegistryCredential" {
            "credentials of registries are configured with their regions; callers can't send them"
        } else {
            "there is no such field"
        };
        return Err(invalid(&format!("{name}.{key}"), problem));
    }
    match value {
        Some(Value::String(text)) => Ok(text),
        _ => Err(invalid(&format!("{name}.{key}"), "it is missing, or not a string")),
    }
}

fn image_type(parameters: &mut Parameters) -> Result<ImageType, ApiError> {
    match parameters.text("ImageType").as_str() {
        "" => Ok(ImageType::Unspecified),
        "VM" => Ok(ImageType::Vm),
        "Container" => Ok(ImageType::Container),
        other => Err(invalid("ImageType", &format!("{:?} is neither VM nor Container", ForeignText::value(other)))),
    }
}

/// Checks the category: all images of this service are custom images.
fn check_category(parameters: &mut Parameters) -> Result<(), ApiError> {
    match parameters.text("ImageCategory").as_str() {
        "" | "Custom" => Ok(()),
        other => Err(invalid(
            "ImageCategory",
            &format!("{:?} is not supported; all images are Custom", ForeignText::value(other)),
        )),
    }
}

/// Parses the number and size of a page.
fn page(parameters: &mut Parameters) -> Result<Page, ApiError> {
    let number = parameters.number("PageNumber", 1)?;
    let size = parameters.number("PageSize", DEFAULT_PAGE_SIZE)?;
    for (name, value) in [("PageNumber", number), ("PageSize", size)] {
        if value < 1 {
            return Err(invalid(name, &format!("{value} is less than 1")));
        }
    }
    let skip = (number - 1).checked_mul(size).ok_or_else(|| invalid("PageNumber", "it is too large"))?;
    Ok(Page { number, size, skip })
}

#[cfg(test)]
mod tests {
    use super::{Parameters, flag};

    #[test]
    fn a_flag_is_true_or_false() {
        for (value, expected) in
            [("", Some(false)), ("true", Some(true)), ("false", Some(false)), ("True", None), ("1", None)]
        {
            let mut parameters = Parameters::parse([format!("Overwrite={value}").as_bytes(), b""]).expect("a form");
            assert_eq!(flag(&mut parameters, "Overwrite").ok(), expected, "{value:?}");
        }
    }
}
