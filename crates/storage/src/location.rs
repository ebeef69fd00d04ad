//! Parses and formats the locations of stores in the configuration.

use std::{path::PathBuf, str::FromStr};

use domain::ForeignText;
use url::{Host, Url};

/// Where a region stores its images, parsed from its URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `dir://PATH`: a directory, absolute or relative to the working directory of the service.
    Dir(PathBuf),
    /// `registry+https://HOST[:PORT][/NAMESPACE]`, or `registry+http://` for a registry without TLS.
    Registry(RegistryLocation),
    /// `s3://BUCKET[/PREFIX]`, `gs://` or `az://`.
    Object(ObjectLocation),
    /// `ecs://REGION`: a region of Alibaba Cloud. `REGION` is Alibaba Cloud's name for it.
    Ecs(String),
}

/// `registry+https://HOST[:PORT][/NAMESPACE]`, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryLocation {
    /// The scheme, host and port.
    pub base: Url,
    /// The prefix of the repositories' names; may be empty.
    pub namespace: String,
}

impl RegistryLocation {
    /// Returns whether the host is a loopback address or `localhost`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.base)
    }

    /// Returns whether the registry is used without TLS.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.base.scheme() == "http"
    }

    /// Returns whether `host` names the same host and port. Case and the default port make no difference.
    #[must_use]
    pub fn is_at(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let usual = if self.is_plain() { ":80" } else { ":443" };
        host.strip_suffix(usual).unwrap_or(&host) == self.authority()
    }

    /// Returns the host, with the port unless it is the default.
    #[must_use]
    pub fn authority(&self) -> String {
        authority(&self.base)
    }
}

/// Returns a URL's host, with the port unless it is the default, as in the header `Host`.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Returns whether a URL's host is a loopback address or `localhost`.
#[must_use]
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The provider of an object store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Provider {
    /// Amazon S3 and services with its API.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

impl Provider {
    /// Returns the scheme of the provider's locations.
    #[must_use]
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
        }
    }
}

/// The location of a bucket, or of a prefix in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectLocation {
    /// The provider whose API the bucket's service offers.
    pub provider: Provider,
    /// The bucket, or Azure's container.
    pub bucket: String,
    /// The prefix of the images' names; may be empty.
    pub prefix: String,
}

/// The error for a text that is not a valid location.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no store; expected dir://PATH, registry+https://HOST/NAMESPACE, s3://BUCKET/PREFIX, gs://, az:// or ecs://REGION{1}"
)]
pub struct LocationError(ForeignText, &'static str);

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        let refused = |why| LocationError(without_secret(text), why);
        let Some((scheme, rest)) = text.split_once("://") else { return Err(refused("")) };
        match scheme {
            "dir" if !rest.is_empty() => Ok(Self::Dir(rest.into())),
            "registry+https" | "registry+http" if !rest.starts_with('/') => {
                let base: Url =
                    text.trim_start_matches("registry+").parse().map_err(|_| refused(" (it is not a URL)"))?;
                registry(base).map(Self::Registry).map_err(refused)
            }
            "ecs" => {
                let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
                let good = !rest.is_empty() && rest.len() <= 64 && rest.chars().all(named);
                if good { Ok(Self::Ecs(rest.to_owned())) } else { Err(refused(" (it names no region)")) }
            }
            "s3" => object(Provider::S3, rest).map(Self::Object).map_err(refused),
            "gs" => object(Provider::Gcs, rest).map(Self::Object).map_err(refused),
            "az" => object(Provider::Azure, rest).map(Self::Object).map_err(refused),
            _ => Err(refused("")),
        }
    }
}

fn registry(mut base: Url) -> Result<RegistryLocation, &'static str> {
    if !base.username().is_empty() || base.password().is_some() {
        return Err(" (credentials stand in keys of their own, not in the URL)");
    }
    if base.query().is_some() || base.fragment().is_some() || base.host().is_none() {
        return Err(" (a registry has a host and a namespace and nothing else)");
    }
    let namespace = base.path().trim_matches('/').to_owned();
    if !namespace.is_empty() && !is_repository(&namespace) {
        return Err(" (its path is no name of a repository)");
    }
    base.set_path("/");
    Ok(RegistryLocation { base, namespace })
}

fn object(provider: Provider, rest: &str) -> Result<ObjectLocation, &'static str> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if bucket.is_empty() || bucket.len() > 255 || !bucket.chars().all(named) {
        return Err(" (it names no bucket)");
    }
    let prefix = prefix.trim_matches('/');
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.chars().all(named);
    if !prefix.is_empty() && !prefix.split('/').all(part) {
        return Err(" (its prefix has parts that are not letters, digits, '.', '-' and '_')");
    }
    Ok(ObjectLocation { provider, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

/// Returns whether a text is a valid repository name (OCI distribution specification 1.1, "Pulling manifests").
pub(super) fn is_repository(name: &str) -> bool {
    let component = |part: &str| {
        let runs: Vec<&str> = part.split(['.', '_', '-']).collect();
        let separators: Vec<&str> = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).collect();
        let separator = |s: &&str| matches!(*s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-');
        part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
            && runs.first().is_some_and(|run| !run.is_empty())
            && runs.last().is_some_and(|run| !run.is_empty())
            && separators.iter().all(separator)
    };
    name.len() <= 255 && name.split('/').all(component)
}

/// Returns whether a text is a valid tag (OCI distribution specification 1.1, "Pulling manifests").
pub(super) fn is_tag(tag: &str) -> bool {
    let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= 128
        && tag.starts_with(first)
        && tag.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Removes everything before an `@` from a location, because it may contain a password.
fn without_secret(text: &str) -> ForeignText {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => ForeignText::value(format_args!("{scheme}://***@{rest}")),
        _ => ForeignText::value(text),
    }
}

#[cfg(test)]
mod tests {
    use super::{Location, is_repository, is_tag};

    #[test]
    fn locations_are_read_and_refused() {
        for good in [
            "dir:///srv/apps",
            "registry+https://registry.example.com/apps/hpc",
            "registry+https://registry.example.com",
            "registry+http://127.0.0.1:5000/apps",
            "registry+http://[::1]:5000/apps",
            "s3://apps-beijing/images",
            "gs://apps",
            "az://apps/images/more",
        ] {
            assert!(good.parse::<Location>().is_ok(), "{good}");
        }
        for bad in [
            "dir://",
            "/srv/apps",
            "ftp://host/x",
            "registry+https:///apps",
            "registry+https://host/Apps",
            "registry+https://host/a?b=c",
            "ecs://",
            "ecs://cn-shanghai/x",
            "ecs://evil.example.com",
            "s3://",
            "s3:///x",
            "s3://b/../c",
            "s3://b/a b",
        ] {
            assert!(bad.parse::<Location>().is_err(), "{bad}");
        }
        let refused = "registry+https://bob:secret@host/apps".parse::<Location>().expect_err("it has a password");
        assert!(!refused.to_string().contains("secret"), "{refused}");
    }

    #[test]
    fn names_of_repositories_and_tags_are_those_of_the_specification() {
        for (name, good) in [
            ("gromacs", true),
            ("a/b-c/d.e/f__g", true),
            ("a--b", true),
            ("Gromacs", false),
            ("a//b", false),
            ("-a", false),
            ("a.", false),
            ("a..b", false),
            ("a___b", false),
            ("../a", false),
            ("", false),
        ] {
            assert_eq!(is_repository(name), good, "{name}");
        }
        for (tag, good) in
            [("2026.1", true), ("_a", true), ("ci-vm-aB1", true), (".a", false), ("", false), ("a/b", false)]
        {
            assert_eq!(is_tag(tag), good, "{tag}");
        }
    }
}
