//! The authorization table of the methods, read from the `(appferry.v1.authorization)` option.

use std::collections::HashMap;

use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, MethodDescriptor};

use super::{Error, PACKAGES};

/// The path of a method in an HTTP/2 request, for example `/appferry.v1.AppSyncService/SynchronizeApp`.
pub type MethodPath = String;

/// The permission that a method requires of its caller.
#[derive(Debug, Clone)]
pub struct Authorization {
    /// The RAM action, for example `ehpc:SynchronizeApp`.
    pub action: String,
    /// The resource that the action is performed on.
    pub resource: Resource,
    /// Whether the response is a stream.
    pub streams: bool,
}

/// The resource of a method's action.
#[derive(Debug, Clone)]
pub enum Resource {
    /// All resources: only a grant on `*` permits the action.
    All,
    /// The resource that a field of the request names.
    Named(Template),
}

/// A RAM resource name with one `{field}` in it.
#[derive(Debug, Clone)]
pub struct Template {
    before: String,
    field: String,
    after: String,
    request: MessageDescriptor,
}

impl Template {
    /// Returns the template as the option spells it, for example `acs:ehpc:*:*:app/{image_id}`.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{}{{{}}}{}", self.before, self.field, self.after)
    }

    /// Returns the resource that an encoded request names; `None` if the request can't be decoded.
    #[must_use]
    pub fn fill(&self, message: &[u8]) -> Option<String> {
        let message = DynamicMessage::decode(self.request.clone(), message).ok()?;
        let value = message.get_field_by_name(&self.field)?;
        Some(format!("{}{}{}", self.before, value.as_str()?, self.after))
    }
}

/// The authorization table: a row for each method of the contract.
#[derive(Debug)]
pub struct AuthorizationTable(HashMap<MethodPath, Authorization>);

impl AuthorizationTable {
    pub(super) fn read(pool: &DescriptorPool) -> Result<Self, Error> {
        let option = pool
            .get_extension_by_name("appferry.v1.authorization")
            .ok_or(Error::Missing("(appferry.v1.authorization)"))?;
        let mut rows = HashMap::new();
        for service in pool.services().filter(|s| PACKAGES.contains(&s.parent_file().package_name())) {
            for method in service.methods() {
                let unauthorized = || Error::Unauthorized(method.full_name().to_owned());
                let options = method.options();
                let value = options.get_extension(&option);
                let row = value.as_message().ok_or_else(unauthorized)?;
                let text = |field| {
                    let value = row.get_field_by_name(field)?;
                    value.as_str().filter(|s| !s.is_empty()).map(str::to_owned)
                };
                let action = text("action").ok_or_else(unauthorized)?;
                let resource = resource(&method, &text("resource").ok_or_else(unauthorized)?)?;
                let path = format!("/{}/{}", service.full_name(), method.name());
                rows.insert(path, Authorization { action, resource, streams: method.is_server_streaming() });
            }
        }
        Ok(Self(rows))
    }

    /// Returns the table's own copy of a method's path, if the method has a row.
    #[must_use]
    pub fn path(&self, path: &str) -> Option<&str> {
        self.0.get_key_value(path).map(|(path, _)| path.as_str())
    }

    /// Returns the row of a method, by its path.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Authorization> {
        self.0.get(path)
    }

    /// Iterates over all rows, each with its method's path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Authorization)> {
        self.0.iter().map(|(path, row)| (path.as_str(), row))
    }
}

fn resource(method: &MethodDescriptor, template: &str) -> Result<Resource, Error> {
    if template == "*" {
        return Ok(Resource::All);
    }
    let parts = template
        .split_once('{')
        .and_then(|(before, rest)| rest.split_once('}').map(|(field, after)| (before, field, after)));
    let request = method.input();
    match parts {
        Some((before, field, after))
            if request.get_field_by_name(field).is_some_and(|f| matches!(f.kind(), Kind::String) && !f.is_list()) =>
        {
            Ok(Resource::Named(Template {
                before: before.to_owned(),
                field: field.to_owned(),
                after: after.to_owned(),
                request,
            }))
        }
        _ => Err(Error::Template { method: method.full_name().to_owned(), template: template.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_reflect::DescriptorPool;

    use super::{AuthorizationTable, Resource};
    use crate::contract::{DESCRIPTORS, Error, v1::GetImageRequest};

    fn pool() -> DescriptorPool {
        DescriptorPool::decode(DESCRIPTORS).expect("the contract decodes")
    }

    #[test]
    fn synchronize_app_has_the_originals_action() {
        let rows = AuthorizationTable::read(&pool()).expect("every method has its row");
        let row = rows.get("/appferry.v1.AppSyncService/SynchronizeApp").expect("the row");
        assert_eq!(row.action, "ehpc:SynchronizeApp");
        assert!(matches!(row.resource, Resource::All));
        assert_eq!(rows.iter().count(), 16);
    }

    #[test]
    fn templates_are_filled_from_encoded_requests() {
        let rows = AuthorizationTable::read(&pool()).expect("every method has its row");
        let row = rows.get("/appferry.v1.ImageService/GetImage").expect("the row");
        let Resource::Named(template) = &row.resource else { panic!("GetImage names its resource") };
        let request = GetImageRequest { image_id: "ci-vm-1".into(), ..Default::default() }.encode_to_vec();
        assert_eq!(template.fill(&request).as_deref(), Some("acs:ehpc:*:*:app/ci-vm-1"));
        assert_eq!(template.fill(&[0xff, 0xff]), None);
    }

    #[test]
    fn a_method_without_the_option_is_an_error() {
        let mut pool = pool();
        let proto = r#"
            syntax = "proto3";
            package appferry.v1;
            message Ping {}
            service Forgotten { rpc Knock(Ping) returns (Ping); }"#;
        let file = protox::Compiler::with_file_resolver(OneFile(proto))
            .open_file("forgotten.proto")
            .expect("it compiles")
            .file_descriptor_set();
        pool.add_file_descriptor_set(file).expect("it fits");
        let error = AuthorizationTable::read(&pool).expect_err("Knock has no option");
        assert!(matches!(&error, Error::Unauthorized(name) if name == "appferry.v1.Forgotten.Knock"), "{error}");
    }

    struct OneFile(&'static str);

    impl protox::file::FileResolver for OneFile {
        fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
            protox::file::File::from_source(name, self.0)
        }
    }
}
