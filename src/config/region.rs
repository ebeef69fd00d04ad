//! `[[region]]` and `[[link]]`.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Error, Network, value};
use crate::{
    domain::{RegionId, VerifyExisting, relay::RegionLimits},
    region::{Access, CredentialSource, ForwardProxy, Location, ObjectLocation, RegistryLocation},
};

/// `[[region]]`: a region and its store.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the configuration")]
pub struct Region {
    /// Its id.
    pub id: String,
    /// Its store: `dir://PATH`, `registry+https://HOST/NAMESPACE`, `s3://BUCKET/PREFIX`, `gs://…`, `az://…` or `ecs://REGION`.
    pub store: String,
    /// Bytes that are kept free in the store (`dir`).
    pub keep_free_bytes: u64,
    /// What is done about blobs that the store has already and no copy of this service has just written (`registry`, `s3`, `gs`, `az`):
    /// `never` looks for them and calls the region TRUSTED; `once` reads them, and remembers that.
    pub verify_existing: Existing,
    /// Who asks (`registry`).
    pub username: Option<String>,
    /// The variable that holds the password (`registry`).
    pub password_env: Option<String>,
    /// The file that holds it (`registry`). It is read again whenever it is needed, so that it may be replaced at any time.
    pub password_file: Option<PathBuf>,
    /// A docker `config.json` to take credentials from (`registry`), or the credential helper that it names. It is read again whenever it
    /// is needed.
    pub docker_config: Option<PathBuf>,
    /// The credential helper to ask (`registry`): NAME for the program `docker-credential-NAME` in the directories of `PATH`, or a
    /// program's absolute path. It is run for at most 30 s, and again when the registry refuses what it handed out, or after 5 minutes.
    pub credential_helper: Option<String>,
    /// Variables that a credential helper is given (`registry`). Without any, it is given `PATH` and `HOME` alone.
    pub credential_helper_env: Vec<String>,
    /// Certificates in PEM form that are trusted beside the system's (`registry`).
    pub ca_file: Option<PathBuf>,
    /// Other hosts that the registry may refer to: where it hands out tokens, or keeps its blobs.
    pub also_hosts: Vec<String>,
    /// The proxy that it is reached by (`registry`, `s3`, `gs`, `az`), without a name and a password, in place of that of `[network]`;
    /// `direct` for none.
    pub proxy: Option<String>,
    /// Whether a host that is not this machine may be spoken to without TLS.
    pub allow_http: bool,
    /// Whether a host may turn out to be this machine.
    pub allow_loopback: bool,
    /// Whether a host may have an address that a provider shares among its customers (100.64.0.0/10), as its internal endpoints have.
    pub allow_shared: bool,
    /// The service, if it is not the provider's own (`s3`, `gs`, `az`).
    pub endpoint: Option<String>,
    /// The service's region (`s3`).
    pub bucket_region: Option<String>,
    /// The access key (`s3`) or the account (`az`).
    pub access_key_id: Option<String>,
    /// The variable that holds its secret.
    pub secret_access_key_env: Option<String>,
    /// The file that holds it. It is read again for every request, so that it may be replaced at any time.
    pub secret_access_key_file: Option<PathBuf>,
    /// A credentials file as AWS's own tools use it (`s3`), with the session token of a temporary key. It is read again for every request.
    pub credentials_file: Option<PathBuf>,
    /// Which of its sections (`s3`); `default` if none is named.
    pub profile: Option<String>,
    /// The service account's file (`gs`). It is read again whenever a token is needed.
    pub service_account_file: Option<PathBuf>,
    /// The checksum that is sent with whatever is written (`s3`): `sha256`, `crc64nvme`, or `none` for a service that takes neither. Buckets
    /// with Object Lock want one.
    pub checksum: Checksum,
    /// Whether no credentials are shown: a public bucket.
    pub anonymous: bool,
    /// Bytes a second that are read from it at most.
    pub egress_bytes_per_second: Option<u64>,
    /// Bytes a second that are written to it at most.
    pub ingress_bytes_per_second: Option<u64>,
    /// Regions that it feeds at the same time at most.
    pub egress_copies: Option<usize>,
    /// Images that are carried to it at the same time at most.
    pub ingress_copies: Option<usize>,
}

/// What is done about blobs that a store has already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Existing {
    /// They are looked for.
    #[default]
    Never,
    /// They are read once.
    Once,
}

/// The checksum that an S3 service is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checksum {
    /// SHA-256, which every request is signed with anyway.
    #[default]
    Sha256,
    /// CRC-64/NVME.
    Crc64nvme,
    /// None.
    None,
}

impl From<Existing> for VerifyExisting {
    fn from(existing: Existing) -> Self {
        match existing {
            Existing::Never => Self::Never,
            Existing::Once => Self::Once,
        }
    }
}

/// `[[link]]`: what it costs to go from one region to another.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The region that is read.
    pub from: String,
    /// The region that is written.
    pub to: String,
    /// What it costs; 100 where nothing is said.
    pub cost: u32,
}

/// What a region is, with all that is needed to reach it.
#[derive(Debug, Clone)]
pub(super) enum Open {
    /// A store.
    Store(Box<OpenStore>),
    /// A region of Alibaba Cloud, by its name there.
    Ecs(String),
}

/// A store, with all that is needed to open it.
#[derive(Debug, Clone)]
pub enum OpenStore {
    /// A directory.
    Dir {
        /// Where.
        path: PathBuf,
        /// Bytes that are kept free.
        keep_free: u64,
    },
    /// A registry.
    Registry {
        /// Where.
        location: RegistryLocation,
        /// Who asks.
        credentials: CredentialSource,
        /// Hosts that it may refer to.
        also_hosts: Vec<String>,
        /// Certificates that are trusted, in PEM form.
        certificates: Option<Vec<u8>>,
        /// What is done about blobs that it has already.
        verify_existing: VerifyExisting,
        /// Whether it may be this machine.
        loopback: bool,
        /// Whether it may have an address that a provider shares among its customers.
        shared: bool,
        /// The proxy that it is reached by.
        proxy: Option<ForwardProxy>,
    },
    /// A bucket.
    Object {
        /// Where.
        location: ObjectLocation,
        /// How.
        access: Access,
        /// What is done about blobs that it has already.
        verify_existing: VerifyExisting,
        /// Whether it may be this machine.
        loopback: bool,
        /// Whether it may have an address that a provider shares among its customers.
        shared: bool,
        /// The proxy that it is reached by.
        proxy: Option<ForwardProxy>,
    },
}

impl Region {
    pub(super) fn refuse<T>(place: usize, key: &str, problem: impl std::fmt::Display) -> Result<T, Error> {
        Err(value(format!("region[{place}].{key}"), problem))
    }

    /// Its id.
    pub(super) fn id(&self, place: usize) -> Result<RegionId, Error> {
        self.id.parse().or_else(|error| Self::refuse(place, "id", error))
    }

    /// Its store, without what is secret: a location that holds a password is refused.
    pub(super) fn location(&self) -> String {
        self.endpoint.as_ref().map_or_else(|| self.store.clone(), |endpoint| format!("{} at {endpoint}", self.store))
    }

    /// What is needed to open its store.
    pub(super) fn open(&self, place: usize, network: &Network) -> Result<Open, Error> {
        let location: Location = self.store.parse().or_else(|error| Self::refuse(place, "store", error))?;
        let kind = match &location {
            Location::Dir(_) => "dir",
            Location::Registry(_) => "registry",
            Location::Object(_) => "object",
            Location::Ecs(_) => "ecs",
        };
        self.refuse_foreign(place, kind)?;
        if self.verify_existing != Existing::Never && !matches!(kind, "registry" | "object") {
            let problem = format!("it is of registry and object stores, and this one is of kind {kind}");
            return Self::refuse(place, "verify_existing", problem);
        }
        match location {
            Location::Dir(path) => Ok(Open::Store(Box::new(OpenStore::Dir { path, keep_free: self.keep_free_bytes }))),
            Location::Registry(location) => {
                if location.is_plain() && !location.is_loopback() && !self.allow_http {
                    let problem = "a registry without TLS that is not this machine needs allow_http = true";
                    return Self::refuse(place, "store", problem);
                }
                Ok(Open::Store(Box::new(OpenStore::Registry {
                    credentials: self.credentials(place, &location)?,
                    also_hosts: self.also_hosts.clone(),
                    certificates: self.ca_file.as_ref().map(|file| bytes(place, "ca_file", file)).transpose()?,
                    verify_existing: self.verify_existing.into(),
                    loopback: self.allow_loopback || location.is_loopback(),
                    shared: self.allow_shared,
                    proxy: self.forward_proxy(place, network)?,
                    location,
                })))
            }
            Location::Object(location) => self.object(place, location, network),
            Location::Ecs(name) => self.ecs(place, name),
        }
    }

    /// Keys that say nothing about a store of that kind are mistakes.
    fn refuse_foreign(&self, place: usize, kind: &str) -> Result<(), Error> {
        let keys = [
            ("keep_free_bytes", self.keep_free_bytes != 0, "dir"),
            ("username", self.username.is_some(), "registry"),
            ("password_env", self.password_env.is_some(), "registry"),
            ("password_file", self.password_file.is_some(), "registry"),
            ("docker_config", self.docker_config.is_some(), "registry"),
            ("credential_helper", self.credential_helper.is_some(), "registry"),
            ("credential_helper_env", !self.credential_helper_env.is_empty(), "registry"),
            ("ca_file", self.ca_file.is_some(), "registry"),
            ("also_hosts", !self.also_hosts.is_empty(), "registry"),
            ("proxy", self.proxy.is_some() && kind == "dir", "registry or object"),
            ("endpoint", self.endpoint.is_some(), "object"),
            ("bucket_region", self.bucket_region.is_some(), "object"),
            ("access_key_id", self.access_key_id.is_some(), "object"),
            ("secret_access_key_env", self.secret_access_key_env.is_some(), "object"),
            ("secret_access_key_file", self.secret_access_key_file.is_some(), "object"),
            ("credentials_file", self.credentials_file.is_some(), "object"),
            ("profile", self.profile.is_some(), "object"),
            ("checksum", self.checksum != Checksum::Sha256, "object"),
            ("service_account_file", self.service_account_file.is_some(), "object"),
            ("anonymous", self.anonymous, "object"),
        ];
        match keys.iter().find(|(_, given, of)| *given && *of != kind) {
            Some((key, _, of)) => {
                Self::refuse(place, key, format!("it is of {of} stores, and this one is of kind {kind}"))
            }
            None => Ok(()),
        }
    }

    fn object(&self, place: usize, location: ObjectLocation, network: &Network) -> Result<Open, Error> {
        let keys = self.access_keys(place, location.provider)?;
        let mut loopback = self.allow_loopback;
        let mut allow_http = self.allow_http;
        if let Some(endpoint) = &self.endpoint {
            let base = endpoint.parse().or_else(|_| Self::refuse(place, "endpoint", "it is not a URL"))?;
            let service = RegistryLocation { base, namespace: String::new() };
            if !matches!(service.base.scheme(), "http" | "https") {
                return Self::refuse(place, "endpoint", "it is neither http:// nor https://");
            }
            if service.is_plain() && !service.is_loopback() && !self.allow_http {
                let problem = "a service without TLS that is not this machine needs allow_http = true";
                return Self::refuse(place, "endpoint", problem);
            }
            loopback |= service.is_loopback();
            allow_http = service.is_plain();
        }
        let access = Access {
            endpoint: self.endpoint.clone(),
            bucket_region: self.bucket_region.clone(),
            keys,
            checksum: match self.checksum {
                Checksum::Sha256 => Some(object_store::aws::Checksum::SHA256),
                Checksum::Crc64nvme => Some(object_store::aws::Checksum::CRC64NVME),
                Checksum::None => None,
            },
            allow_http,
        };
        let verify_existing = self.verify_existing.into();
        let (shared, proxy) = (self.allow_shared, self.forward_proxy(place, network)?);
        Ok(Open::Store(Box::new(OpenStore::Object { location, access, verify_existing, loopback, shared, proxy })))
    }

    /// The proxy that the region is reached by: its own, that of all regions, or none.
    pub(super) fn forward_proxy(&self, place: usize, network: &Network) -> Result<Option<ForwardProxy>, Error> {
        match self.proxy.as_deref() {
            None => network.forward_proxy(),
            Some("direct") => Ok(None),
            Some(url) => network.proxy_at(&format!("region[{place}].proxy"), url).map(Some),
        }
    }

    /// What passes between regions of ECS does not pass here: only how many copies there are can be limited.
    fn ecs(&self, place: usize, name: String) -> Result<Open, Error> {
        let keys = [
            ("allow_http", self.allow_http),
            ("allow_loopback", self.allow_loopback),
            ("allow_shared", self.allow_shared),
            ("proxy", self.proxy.is_some()),
            ("egress_bytes_per_second", self.egress_bytes_per_second.is_some()),
            ("ingress_bytes_per_second", self.ingress_bytes_per_second.is_some()),
            ("egress_copies", self.egress_copies.is_some()),
        ];
        match keys.iter().find(|(_, given)| *given) {
            Some((key, _)) => Self::refuse(place, key, "it says nothing about a region whose images ECS copies"),
            None => Ok(Open::Ecs(name)),
        }
    }

    /// How much may go out of and into it.
    pub(super) fn limits(&self, place: usize) -> Result<RegionLimits, Error> {
        let zero = [
            ("egress_bytes_per_second", self.egress_bytes_per_second == Some(0)),
            ("ingress_bytes_per_second", self.ingress_bytes_per_second == Some(0)),
            ("ingress_copies", self.ingress_copies == Some(0)),
        ];
        if let Some((key, _)) = zero.iter().find(|(_, zero)| *zero) {
            return Self::refuse(place, key, "0 would let nothing through; leave it out for no limit");
        }
        Ok(RegionLimits {
            egress_bytes_per_second: self.egress_bytes_per_second,
            ingress_bytes_per_second: self.ingress_bytes_per_second,
            egress_copies: self.egress_copies,
            ingress_copies: self.ingress_copies,
        })
    }
}

pub(super) fn bytes(place: usize, key: &str, file: &PathBuf) -> Result<Vec<u8>, Error> {
    std::fs::read(file).or_else(|error| Region::refuse(place, key, format!("{}: {error}", file.display())))
}
