//! Converts `[[region]]` into the settings of a store.

use std::path::PathBuf;

use super::{
    Error, Network,
    region::{Checksum, Existing, Region, read_file},
};
use crate::{
    domain::VerifyExisting,
    storage::{Access, CredentialSource, ForwardProxy, Location, ObjectLocation, RegistryLocation},
};

/// The backend of a region, with all settings that are needed to reach it.
#[derive(Debug, Clone)]
pub(super) enum RegionBackend {
    /// A store of blobs.
    Store(Box<StoreSettings>),
    /// A region of Alibaba Cloud, with the provider's name of the region.
    Ecs(String),
}

/// The settings of a store.
#[derive(Debug, Clone)]
pub enum StoreSettings {
    /// A directory of a file system.
    Dir {
        /// The path of the directory.
        path: PathBuf,
        /// The space of the file system that is kept free, in bytes.
        keep_free: u64,
    },
    /// An OCI registry.
    Registry {
        /// The URL and the namespace.
        location: RegistryLocation,
        /// The source of the credentials.
        credentials: CredentialSource,
        /// Other hosts to which the registry may refer.
        also_hosts: Vec<String>,
        /// Certificates in PEM form that are trusted in addition to the system's.
        certificates: Option<Vec<u8>>,
        /// Whether existing blobs are read before they are trusted.
        verify_existing: VerifyExisting,
        /// Whether the host may have a loopback address.
        loopback: bool,
        /// Whether the host may have an address of 100.64.0.0/10, which providers share among their customers (RFC
        /// 6598).
        shared: bool,
        /// The forward proxy; `None` to connect directly.
        proxy: Option<ForwardProxy>,
    },
    /// A bucket of an object store.
    Object {
        /// The provider, the bucket and the prefix.
        location: ObjectLocation,
        /// The endpoint, the keys and the checksum.
        access: Access,
        /// Whether existing blobs are read before they are trusted.
        verify_existing: VerifyExisting,
        /// Whether the host may have a loopback address.
        loopback: bool,
        /// Whether the host may have an address of 100.64.0.0/10, which providers share among their customers (RFC
        /// 6598).
        shared: bool,
        /// The forward proxy; `None` to connect directly.
        proxy: Option<ForwardProxy>,
    },
}

impl Region {
    /// Returns the backend that `store` names. Rejects keys that do not apply to it.
    pub(super) fn backend(&self, index: usize, network: &Network) -> Result<RegionBackend, Error> {
        let location: Location = self.store.parse().or_else(|error| Self::refuse(index, "store", error))?;
        let kind = match &location {
            Location::Dir(_) => "dir",
            Location::Registry(_) => "registry",
            Location::Object(_) => "object",
            Location::Ecs(_) => "ecs",
        };
        self.refuse_other_kinds(index, kind)?;
        if self.verify_existing != Existing::Never && !matches!(kind, "registry" | "object") {
            let problem = format!("applies to registry and object stores, and this store is of kind {kind}; remove it");
            return Self::refuse(index, "verify_existing", problem);
        }
        match location {
            Location::Dir(path) => {
                Ok(RegionBackend::Store(Box::new(StoreSettings::Dir { path, keep_free: self.keep_free_bytes })))
            }
            Location::Registry(location) => {
                if location.is_plain() && !location.is_loopback() && !self.allow_http {
                    let problem = "a remote registry without TLS needs allow_http = true";
                    return Self::refuse(index, "store", problem);
                }
                Ok(RegionBackend::Store(Box::new(StoreSettings::Registry {
                    credentials: self.credentials(index, &location)?,
                    also_hosts: self.also_hosts.clone(),
                    certificates: self.ca_file.as_ref().map(|file| read_file(index, "ca_file", file)).transpose()?,
                    verify_existing: self.verify_existing.into(),
                    loopback: self.allow_loopback || location.is_loopback(),
                    shared: self.allow_shared,
                    proxy: self.forward_proxy(index, network)?,
                    location,
                })))
            }
            Location::Object(location) => self.object(index, location, network),
            Location::Ecs(name) => self.ecs(index, name),
        }
    }

    /// Rejects keys of other kinds of stores.
    fn refuse_other_kinds(&self, index: usize, kind: &str) -> Result<(), Error> {
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
        match keys.iter().find(|(_, is_set, of)| *is_set && *of != kind) {
            Some((key, _, of)) => {
                Self::refuse(index, key, format!("applies to {of} stores, and this store is of kind {kind}; remove it"))
            }
            None => Ok(()),
        }
    }

    fn object(&self, index: usize, location: ObjectLocation, network: &Network) -> Result<RegionBackend, Error> {
        let keys = self.access_keys(index, location.provider)?;
        let mut loopback = self.allow_loopback;
        let mut allow_http = self.allow_http;
        if let Some(endpoint) = &self.endpoint {
            let base =
                endpoint.parse().or_else(|_| Self::refuse(index, "endpoint", "not a URL; expected https://HOST"))?;
            let service = RegistryLocation { base, namespace: String::new() };
            if !matches!(service.base.scheme(), "http" | "https") {
                return Self::refuse(index, "endpoint", "the scheme is neither http:// nor https://");
            }
            if service.is_plain() && !service.is_loopback() && !self.allow_http {
                let problem = "a remote service without TLS needs allow_http = true";
                return Self::refuse(index, "endpoint", problem);
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
        let (shared, proxy) = (self.allow_shared, self.forward_proxy(index, network)?);
        Ok(RegionBackend::Store(Box::new(StoreSettings::Object {
            location,
            access,
            verify_existing,
            loopback,
            shared,
            proxy,
        })))
    }

    /// Returns the forward proxy of the region: its own, that of `[network]`, or none.
    pub(super) fn forward_proxy(&self, index: usize, network: &Network) -> Result<Option<ForwardProxy>, Error> {
        match self.proxy.as_deref() {
            None => network.forward_proxy(),
            Some("direct") => Ok(None),
            Some(url) => network.proxy_at(&format!("region[{index}].proxy"), url).map(Some),
        }
    }

    /// Returns a region of ECS. The bytes of its copies do not pass through this service, so only the number of copies
    /// can be limited.
    fn ecs(&self, index: usize, name: String) -> Result<RegionBackend, Error> {
        let keys = [
            ("allow_http", self.allow_http),
            ("allow_loopback", self.allow_loopback),
            ("allow_shared", self.allow_shared),
            ("proxy", self.proxy.is_some()),
            ("egress_bytes_per_second", self.egress_bytes_per_second.is_some()),
            ("ingress_bytes_per_second", self.ingress_bytes_per_second.is_some()),
            ("egress_copies", self.egress_copies.is_some()),
        ];
        match keys.iter().find(|(_, is_set)| *is_set) {
            Some((key, _)) => {
                Self::refuse(index, key, "does not apply to a region of ECS, which copies its images itself; remove it")
            }
            None => Ok(RegionBackend::Ecs(name)),
        }
    }
}
