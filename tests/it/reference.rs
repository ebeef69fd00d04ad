//! The generated reference documents are up to date: the contract's is generated from the comments in `proto`, the
//! configuration's from its types and the example. `APPFERRY_WRITE=1 cargo test --test it reference` regenerates them.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use appferry::contract::{
    ApiErrorCode, Contract, DESCRIPTORS, Resource,
    v1::{CommonErrorCode, ErrorCode},
};
use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Asserts that a document has the generated content.
fn is_current(document: &str, generated: &str) {
    let path = root().join(document);
    if std::env::var_os("APPFERRY_WRITE").is_some() {
        fs::write(path, generated).expect("it is written");
        return;
    }
    let current = fs::read_to_string(path).unwrap_or_default();
    let differs = current.lines().zip(generated.lines()).find(|(current, generated)| current != generated);
    assert!(
        current == generated,
        "{document} is out of date; first where {differs:?}: APPFERRY_WRITE=1 cargo test --test it reference"
    );
}

/// The descriptors of the contract, with comments.
struct Described {
    file: FileDescriptorProto,
    comments: BTreeMap<Vec<i32>, String>,
}

fn described() -> Vec<Described> {
    let all = FileDescriptorSet::decode(DESCRIPTORS).expect("descriptors");
    let ours = |file: &FileDescriptorProto| {
        let named = file.name().starts_with("appferry/v1/") || file.name().starts_with("google/longrunning/");
        named && !file.name().ends_with("authorization.proto")
    };
    let files = all.file.into_iter().filter(ours).map(|file| {
        let places = file.source_code_info.iter().flat_map(|info| &info.location);
        let comments = places.filter(|position| position.leading_comments.is_some());
        let comments = comments.map(|position| (position.path.clone(), prose(position.leading_comments()))).collect();
        Described { file, comments }
    });
    files.collect()
}

/// Formats a comment as one paragraph for a table cell.
fn prose(comment: &str) -> String {
    comment.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|").replace('<', "&lt;")
}

impl Described {
    fn of(&self, path: &[i32]) -> &str {
        let comment = self.comments.get(path);
        comment.unwrap_or_else(|| panic!("{:?} of {} has no comment", path, self.file.name()))
    }

    fn message(&self, message: &DescriptorProto, path: &[i32], within: &str, text: &mut String) {
        let name = format!("{within}{}", message.name());
        writeln!(text, "### {name}\n\n{}\n", self.of(path)).expect("it is written");
        if !message.field.is_empty() {
            text.push_str("| field | number | type | |\n|---|---|---|---|\n");
        }
        for (position, field) in message.field.iter().enumerate() {
            let about = self.of(&[path, &[2, index(position)]].concat());
            let one_of =
                field.oneof_index.and_then(|of| message.oneof_decl.get(usize::try_from(of).expect("an index")));
            let kind = type_name(field);
            let kind = one_of.map_or(kind.clone(), |of| format!("{kind}, one of `{}`", of.name()));
            writeln!(text, "| `{}` | {} | {kind} | {about} |", field.name(), field.number()).expect("it is written");
        }
        text.push('\n');
        for (position, nested) in message.nested_type.iter().enumerate() {
            self.message(nested, &[path, &[3, index(position)]].concat(), &format!("{name}."), text);
        }
    }

    fn values(&self, of: &EnumDescriptorProto, path: &[i32], text: &mut String) {
        writeln!(text, "### {}\n\n{}\n\n| value | number | |\n|---|---|---|", of.name(), self.of(path))
            .expect("it is written");
        for (position, value) in of.value.iter().enumerate() {
            let about = self.of(&[path, &[2, index(position)]].concat());
            writeln!(text, "| `{}` | {} | {about} |", value.name(), value.number()).expect("it is written");
        }
        text.push('\n');
    }
}

fn index(position: usize) -> i32 {
    i32::try_from(position).expect("an index")
}

fn type_name(field: &FieldDescriptorProto) -> String {
    let name = match field.r#type() {
        Type::Message | Type::Enum => {
            let name = field.type_name().trim_start_matches('.');
            let local = name.strip_prefix("appferry.v1.").or(name.strip_prefix("google.longrunning."));
            local.map_or_else(
                || format!("`{name}`"),
                |local| format!("[{local}](#{})", local.to_lowercase().replace('.', "")),
            )
        }
        other => format!("`{}`", other.as_str_name().trim_start_matches("TYPE_").to_lowercase()),
    };
    if field.label() == Label::Repeated { format!("repeated {name}") } else { name }
}

fn api() -> String {
    let contract = Contract::load().expect("the contract");
    let files = described();
    let mut text = String::from(
        "# The contract\n\nGenerated from the comments in [`proto`](../proto): every service, message and enum, the RAM action that each method\n\
         requires, and the table of errors. `x-request-id` is in the metadata of every response.\n\n",
    );
    for described in &files {
        for (position, service) in described.file.service.iter().enumerate() {
            let path = [6, index(position)];
            let full = format!("{}.{}", described.file.package(), service.name());
            writeln!(text, "## {full}\n\n{}\n", described.of(&path)).expect("it is written");
            text.push_str("| method | request | response | action, resource | |\n|---|---|---|---|---|\n");
            for (position, method) in service.method.iter().enumerate() {
                let about = described.of(&[&path[..], &[2, index(position)]].concat());
                let row = contract.authorizations.get(&format!("/{full}/{}", method.name())).expect("a row");
                let on = match &row.resource {
                    Resource::All => "*".to_owned(),
                    Resource::Named(template) => template.describe(),
                };
                let link = |name: &str| {
                    let short = name.rsplit('.').next().expect("a name");
                    if name.starts_with(".google.protobuf") {
                        format!("`{}`", &name[1..])
                    } else {
                        format!("[{short}](#{})", short.to_lowercase())
                    }
                };
                let stream = if method.server_streaming() { "stream of " } else { "" };
                writeln!(
                    text,
                    "| `{}` | {} | {stream}{} | `{}`, `{on}` | {about} |",
                    method.name(),
                    link(method.input_type()),
                    link(method.output_type()),
                    row.action
                )
                .expect("it is written");
            }
            text.push('\n');
        }
    }
    text.push_str("## Errors\n\nEach error is a gRPC status with the code below, and the details `google.rpc.ErrorInfo` (the reason), `google.rpc.RequestInfo`,\n\
                   [ErrorDetail](#errordetail), and, if applicable, `google.rpc.BadRequest` and `google.rpc.RetryInfo`.\n\n\
                   | reason | gRPC | HTTP | message |\n|---|---|---|---|\n");
    let local = (1..).map_while(|code| ErrorCode::try_from(code).ok()).map(ApiErrorCode::from);
    let common = (1..).map_while(|code| CommonErrorCode::try_from(code).ok()).map(ApiErrorCode::from);
    for row in local.chain(common).map(|code| contract.errors.row(code)) {
        let grpc = format!("{:?}", row.grpc_status);
        writeln!(text, "| `{}` | {grpc} | {} | {} |", row.code, row.http_status, prose(&row.message("…")))
            .expect("it is written");
    }
    text.push_str("\n## Messages\n\n");
    for described in &files {
        for (position, message) in described.file.message_type.iter().enumerate() {
            described.message(message, &[4, index(position)], "", &mut text);
        }
    }
    text.push_str("## Enums\n\n");
    for described in &files {
        for (position, of) in described.file.enum_type.iter().enumerate() {
            described.values(of, &[5, index(position)], &mut text);
        }
    }
    text.trim_end().to_owned() + "\n"
}

#[test]
fn the_reference_of_the_contract_is_that_of_the_contract() {
    is_current("docs/api.md", &api());
}

/// Returns the configuration types by name.
fn types() -> BTreeMap<String, syn::ItemStruct> {
    let mut types = BTreeMap::new();
    for entry in fs::read_dir(root().join("src/config")).expect("the directory") {
        let text = fs::read_to_string(entry.expect("an entry").path()).expect("a file");
        for item in syn::parse_file(&text).expect("Rust").items {
            if let syn::Item::Struct(of) = item {
                types.insert(of.ident.to_string(), of);
            }
        }
    }
    types
}

fn comment(attributes: &[syn::Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        syn::Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(line), .. }) => Some(line.value()),
            _ => None,
        },
        _ => None,
    });
    prose(&lines.collect::<Vec<_>>().join(" "))
}

/// Unwraps `Option` and `Vec`: returns the inner type, and whether it is optional and repeated.
fn inner(of: &syn::Type) -> (String, bool, bool) {
    let syn::Type::Path(path) = of else { panic!("a type that is none of the configuration's") };
    let last = path.path.segments.last().expect("a name");
    let name = last.ident.to_string();
    let argument = match &last.arguments {
        syn::PathArguments::AngleBracketed(arguments) => arguments.args.iter().find_map(|argument| match argument {
            syn::GenericArgument::Type(of) => Some(of),
            _ => None,
        }),
        _ => None,
    };
    match (name.as_str(), argument) {
        ("Option", Some(of)) => (inner(of).0, true, false),
        ("Vec", Some(of)) => (inner(of).0, false, true),
        _ => (name, false, false),
    }
}

fn kind(name: &str, many: bool) -> String {
    let one = match name {
        "String" => "text",
        "bool" => "true or false",
        "f64" => "number",
        "PathBuf" => "path",
        "SocketAddr" => "address and port",
        "IpNet" => "network",
        "ForwardedHeader" => "`forwarded` or `x-forwarded-for`",
        "Url" => "URL",
        "BTreeMap" | "HashMap" => "table",
        "LogFormat" => "`human` or `json`",
        "Existing" => "`never` or `once`",
        "Checksum" => "`sha256`, `crc64nvme` or `none`",
        name if name.starts_with('u') => "whole number",
        other => panic!("{other} has no name for people"),
    };
    if many { format!("list of {one}s").replace("textss", "texts") } else { one.to_owned() }
}

/// Returns the values in the example, by section and key.
fn shown() -> BTreeMap<(String, String), String> {
    let text = fs::read_to_string(root().join("appferry.example.toml")).expect("the example");
    let mut section = String::new();
    let mut shown = BTreeMap::new();
    for line in text.lines() {
        let line = line.strip_prefix("#   ").unwrap_or(line).trim();
        if let Some(name) = line.strip_prefix('[') {
            let name: String = name.trim_start_matches('[').split(']').next().expect("a name").to_owned();
            section = name;
        } else if let Some((key, value)) = line.split_once(" = ")
            && !line.starts_with('#')
            && value != "'''"
        {
            let value = value.split(" # ").next().expect("a value").trim();
            shown.entry((section.clone(), key.to_owned())).or_insert_with(|| value.replace('|', "\\|"));
        }
    }
    shown
}

fn configuration() -> String {
    let (types, shown) = (types(), shown());
    let mut text = String::from(
        "# The configuration\n\nGenerated from the types of the configuration. The values are those of [`appferry.example.toml`](../appferry.example.toml);\n\
         in the sections `server`, `limits`, `audit`, `log`, `worker` and `housekeeping`, they are the defaults. An environment variable\n\
         `APPFERRY_SECTION__KEY` overrides a key, except keys of lists. An unknown key is an error. [Security](security.md) and\n\
         [operations](operations.md#logs) list the keys that can be reloaded while a process runs.\n\n",
    );
    let mut sections: Vec<(String, String, String)> = Vec::new();
    for field in &types["Config"].fields {
        let name = field.ident.as_ref().expect("a name").to_string();
        let (of, _, many) = inner(&field.ty);
        if types.contains_key(&of) {
            sections.push((if many { format!("[[{name}]]") } else { format!("[{name}]") }, name, of));
        }
    }
    let mut position = 0;
    while position < sections.len() {
        let (heading, path, of) = sections[position].clone();
        position += 1;
        let of = &types[&of];
        writeln!(text, "## {heading}\n\n{}\n\n| key | | for example | |\n|---|---|---|---|", comment(&of.attrs))
            .expect("it is written");
        for field in &of.fields {
            let key = field.ident.as_ref().expect("a name").to_string();
            let (name, optional, many) = inner(&field.ty);
            if types.contains_key(&name) {
                let nested = format!("{path}.{key}");
                let heading = if many { format!("[[{nested}]]") } else { format!("[{nested}]") };
                sections.insert(position, (heading, nested, name));
                continue;
            }
            let value = shown.get(&(path.clone(), key.clone()));
            let value = value.map_or_else(String::new, |value| format!("`{value}`"));
            let kind = kind(&name, many);
            let kind = if optional { format!("{kind}, may be absent") } else { kind };
            writeln!(text, "| `{key}` | {kind} | {value} | {} |", comment(&field.attrs)).expect("it is written");
        }
        text.push('\n');
    }
    text.trim_end().to_owned() + "\n"
}

#[test]
fn the_reference_of_the_configuration_is_that_of_its_types() {
    is_current("docs/configuration.md", &configuration());
}
