//! `[[region]]` and `[[link]]`: the regions, and the costs of copying between them.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Error, error::invalid};
use crate::domain::{RegionId, VerifyExisting, relay::RegionLimits};

/// `[[region]]`: a region and its store.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the configuration")]
pub struct Region {
    /// The id of the region, for example `cn-shanghai`.
    pub id: String,
    /// The store: `dir://PATH`, `registry+https://HOST/NAMESPACE`, `s3://BUCKET/PREFIX`, `gs://…`, `az://…` or
    /// `ecs://REGION`.
    pub store: String,
    /// Bytes of the file system that are kept free (`dir`).
    pub keep_free_bytes: u64,
    /// How existing blobs of the store are verified, except those that a copy of this service has just written
    /// (`registry`, `s3`, `gs`, `az`): `never` checks only that they exist and reports the copy as TRUSTED; `once`
    /// reads each of them once and remembers the result.
    pub verify_existing: Existing,
    /// The user name (`registry`).
    pub username: Option<String>,
    /// The environment variable with the password (`registry`).
    pub password_env: Option<String>,
    /// The file with the password (`registry`). It is read whenever the password is needed, so that it can be rotated.
    pub password_file: Option<PathBuf>,
    /// A docker `config.json` with the credentials or the credential helper (`registry`). It is read whenever they are
    /// needed.
    pub docker_config: Option<PathBuf>,
    /// The credential helper (`registry`): NAME for the program `docker-credential-NAME` in the directories of `PATH`,
    /// or the absolute path of a program. Each run takes at most 30 s. It is run again when the registry rejects the
    /// credentials, or after 5 minutes.
    pub credential_helper: Option<String>,
    /// The environment variables that the credential helper receives (`registry`); if empty, `PATH` and `HOME`.
    pub credential_helper_env: Vec<String>,
    /// A file with certificates in PEM form that are trusted in addition to the system's (`registry`).
    pub ca_file: Option<PathBuf>,
    /// Other hosts that the registry may refer to: its token service, or the storage of its blobs (`registry`).
    pub also_hosts: Vec<String>,
    /// The forward proxy (`registry`, `s3`, `gs`, `az`), in place of that of `[network]`; `direct` for none. A user
    /// name and a password are set in `[network]`, not here.
    pub proxy: Option<String>,
    /// Whether a remote host may be contacted without TLS.
    pub allow_http: bool,
    /// Whether a host name may resolve to a loopback address.
    pub allow_loopback: bool,
    /// Whether a host may have an address of 100.64.0.0/10, which providers share among their customers and use for
    /// internal endpoints (RFC 6598).
    pub allow_shared: bool,
    /// The URL of the service, if it is not the provider's own (`s3`, `gs`, `az`).
    pub endpoint: Option<String>,
    /// The region of the bucket (`s3`).
    pub bucket_region: Option<String>,
    /// The access key id (`s3`) or the account (`az`).
    pub access_key_id: Option<String>,
    /// The environment variable with the secret of the key (`s3`, `az`).
    pub secret_access_key_env: Option<String>,
    /// The file with the secret of the key (`s3`, `az`). It is read for every request, so that it can be rotated.
    pub secret_access_key_file: Option<PathBuf>,
    /// A credentials file of the AWS tools (`s3`), with the session token of a temporary key. It is read for every
    /// request.
    pub credentials_file: Option<PathBuf>,
    /// The section of the credentials file (`s3`); `default` if absent.
    pub profile: Option<String>,
    /// The file of the service account (`gs`). It is read whenever a token is needed.
    pub service_account_file: Option<PathBuf>,
    /// The checksum that is sent with each write (`s3`): `sha256`, `crc64nvme`, or `none` for a service that supports
    /// neither. Buckets with Object Lock require one.
    pub checksum: Checksum,
    /// Whether to send no credentials, for a public bucket (`s3`, `gs`, `az`).
    pub anonymous: bool,
    /// The limit of bytes a second that are read from the region.
    pub egress_bytes_per_second: Option<u64>,
    /// The limit of bytes a second that are written to the region.
    pub ingress_bytes_per_second: Option<u64>,
    /// The limit of concurrent copies from this region to other regions.
    pub egress_copies: Option<usize>,
    /// The limit of concurrent copies to this region.
    pub ingress_copies: Option<usize>,
}

/// How existing blobs of a store are verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Existing {
    /// Only their existence is checked.
    #[default]
    Never,
    /// Each blob is read once.
    Once,
}

/// The checksum that is sent to an S3 service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checksum {
    /// SHA-256. The signature of each request needs it anyway.
    #[default]
    Sha256,
    /// CRC-64/NVME, for services that do not support SHA-256.
    Crc64nvme,
    /// No checksum, for services that support none.
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

/// `[[link]]`: the cost of copying from one region to another.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The source region.
    pub from: String,
    /// The destination region.
    pub to: String,
    /// The cost, relative to other links; a link without an entry costs 100.
    pub cost: u32,
}

impl Region {
    /// Returns the error of a key of the region at `index`.
    pub(super) fn refuse<T>(index: usize, key: &str, problem: impl std::fmt::Display) -> Result<T, Error> {
        Err(invalid(format!("region[{index}].{key}"), problem))
    }

    /// Parses the id.
    pub(super) fn id(&self, index: usize) -> Result<RegionId, Error> {
        self.id.parse().or_else(|error| Self::refuse(index, "id", error))
    }

    /// Returns the location of the store. It has no secret, because a location with a password is rejected.
    pub(super) fn location(&self) -> String {
        self.endpoint.as_ref().map_or_else(|| self.store.clone(), |endpoint| format!("{} at {endpoint}", self.store))
    }

    /// Returns the limits of the region.
    pub(super) fn limits(&self, index: usize) -> Result<RegionLimits, Error> {
        let zero = [
            ("egress_bytes_per_second", self.egress_bytes_per_second == Some(0)),
            ("ingress_bytes_per_second", self.ingress_bytes_per_second == Some(0)),
            ("ingress_copies", self.ingress_copies == Some(0)),
        ];
        if let Some((key, _)) = zero.iter().find(|(_, zero)| *zero) {
            return Self::refuse(index, key, "0 would block every copy; remove the key for no limit");
        }
        Ok(RegionLimits {
            egress_bytes_per_second: self.egress_bytes_per_second,
            ingress_bytes_per_second: self.ingress_bytes_per_second,
            egress_copies: self.egress_copies,
            ingress_copies: self.ingress_copies,
        })
    }
}

/// Reads a file that a key of the region at `index` names.
pub(super) fn read_file(index: usize, key: &str, file: &PathBuf) -> Result<Vec<u8>, Error> {
    std::fs::read(file)
        .or_else(|error| Region::refuse(index, key, format!("failed to read {}: {error}", file.display())))
}
