//! Known deviations of registries from the distribution specification, one constant per registry, with the public
//! report of each. A [`Registry`](server::QuirkyRegistry) emulates one of them.

pub mod server;

use http::StatusCode;

/// The `Range` that a registry reports for an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offsets {
    /// All received bytes.
    Right,
    /// The range after the first chunk, forever.
    OfFirstChunk,
    /// The length of the last chunk.
    OfLastChunk,
    /// No bytes.
    Zero,
    /// No `Range` header.
    Unsaid,
}

/// The treatment of one form of upload request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Accepts any size.
    All,
    /// Accepts at most this many bytes; more are rejected with this status.
    UpTo(u64, StatusCode),
    /// Accepts at least this many bytes, except in the last request; fewer are rejected with this status.
    AtLeast(u64, StatusCode),
    /// Rejects every request with this status.
    None(StatusCode),
    /// Responds with success and discards the bytes.
    Ignores,
}

/// The response to `HEAD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heads {
    /// The response to `GET` without its content.
    Right,
    /// A content length of zero.
    Empty,
    /// A rejection with this status.
    Refused(StatusCode),
}

/// The behavior of a registry.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::struct_excessive_bools, reason = "each is a quirk of its own")]
pub struct Quirks {
    pub registry: &'static str,
    /// URL of the public report.
    pub report: &'static str,
    pub offsets: Offsets,
    /// `PATCH` with `Content-Range`, `PATCH` without, and `PUT` with content.
    pub chunks: Takes,
    pub stream: Takes,
    pub put: Takes,
    /// The chunk size limits that it announces when an upload begins.
    pub min_chunk: Option<u64>,
    pub max_chunk: Option<u64>,
    /// Status of the response that completes an upload.
    pub committed: StatusCode,
    /// Status of the response to a mount request; `None` if it mounts.
    pub mount: Option<StatusCode>,
    pub heads: Heads,
    /// Whether responses state the digest of a manifest in a header.
    pub digest_header: bool,
    /// Whether responses are compressed unless the request declines that.
    pub compresses: bool,
    /// Whether reads of blobs, and writes, are redirected to another path.
    pub redirects: bool,
    /// Whether requests with bytes of uploads are redirected, too.
    pub redirects_uploads: bool,
    /// Number of reads of each new blob that do not find it.
    pub lags: u32,
}

/// Behavior as specified.
pub const SPECIFIED: Quirks = Quirks {
    registry: "a registry as specified",
    report: "opencontainers/distribution-spec",
    offsets: Offsets::Right,
    chunks: Takes::All,
    stream: Takes::All,
    put: Takes::All,
    min_chunk: None,
    max_chunk: None,
    committed: StatusCode::CREATED,
    mount: None,
    heads: Heads::Right,
    digest_header: true,
    compresses: false,
    redirects: false,
    redirects_uploads: false,
    lags: 0,
};

const MIB: u64 = 1 << 20;

/// Amazon ECR: every chunk is stored, but `Range` stays as after the first; no digest header for manifests.
pub const ECR: Quirks = Quirks {
    registry: "Amazon ECR",
    report: "aws/containers-roadmap#2831, distribution/distribution#3792",
    offsets: Offsets::OfFirstChunk,
    digest_header: false,
    ..SPECIFIED
};

/// Alibaba Cloud ACR: `Range` counts from the chunk's beginning.
pub const ACR: Quirks = Quirks {
    registry: "Alibaba Cloud ACR",
    report: "regclient/regclient#627",
    offsets: Offsets::OfLastChunk,
    ..SPECIFIED
};

/// GitHub Container Registry: chunks of at most 4 MiB.
pub const GHCR: Quirks = Quirks {
    registry: "ghcr.io",
    report: "oras-project/rust-oci-client#35, ocx-sh/ocx#237",
    chunks: Takes::UpTo(4 * MIB, StatusCode::RANGE_NOT_SATISFIABLE),
    ..SPECIFIED
};

/// Google Artifact Registry: no chunked uploads.
pub const GAR: Quirks = Quirks {
    registry: "Google Artifact Registry",
    report: "dotnet/sdk-container-builds#287, kitops-ml/kitops#777",
    chunks: Takes::None(StatusCode::METHOD_NOT_ALLOWED),
    ..SPECIFIED
};

/// Quay with S3 storage: chunks of at least 5 MiB.
pub const QUAY: Quirks = Quirks {
    registry: "Quay",
    report: "quay/quay#2949",
    chunks: Takes::AtLeast(5 * MIB, StatusCode::INTERNAL_SERVER_ERROR),
    ..SPECIFIED
};

/// Red Hat's registry: no digest header, and compressed responses unless declined.
pub const RED_HAT: Quirks = Quirks {
    registry: "registry.access.redhat.com",
    report: "quay/quay#1310, containerd/containerd#3238",
    digest_header: false,
    compresses: true,
    ..SPECIFIED
};

/// GitLab: mount requests are answered with 401, and blobs are redirected.
pub const GITLAB: Quirks = Quirks {
    registry: "GitLab",
    report: "estesp/manifest-tool#53, oras-project/oras#923",
    mount: Some(StatusCode::UNAUTHORIZED),
    redirects: true,
    ..SPECIFIED
};

/// Harbor: mounting from an inaccessible project is denied; a pushed blob is not found for a moment.
pub const HARBOR: Quirks = Quirks {
    registry: "Harbor",
    report: "goharbor/harbor#17097, goharbor/harbor#4259, oras-project/oras#1892",
    mount: Some(StatusCode::FORBIDDEN),
    lags: 1,
    ..SPECIFIED
};

/// zot: `Range` of a chunk is far too small.
pub const ZOT: Quirks = Quirks {
    registry: "zot",
    report: "regclient/regclient#961, project-zot/zot#3983",
    offsets: Offsets::OfLastChunk,
    ..SPECIFIED
};

/// distribution 2: reports zero bytes of an upload, which it cannot resume.
pub const DISTRIBUTION_2: Quirks = Quirks {
    registry: "distribution 2",
    report: "distribution/distribution#475, distribution/distribution#2363",
    offsets: Offsets::Zero,
    ..SPECIFIED
};

/// distribution 3: reports the received bytes of an upload.
pub const DISTRIBUTION_3: Quirks =
    Quirks { registry: "distribution 3", report: "distribution/distribution#3755", ..SPECIFIED };

/// Registries that support only `GET`.
pub const GET_ONLY: Quirks = Quirks {
    registry: "a registry without HEAD",
    report: "containerd/cri#787, merll/docker-registry-util#3",
    heads: Heads::Refused(StatusCode::METHOD_NOT_ALLOWED),
    ..SPECIFIED
};

/// Artifactory: rejects `PUT` with content.
pub const ARTIFACTORY: Quirks = Quirks {
    registry: "Artifactory",
    report: "containerd/containerd#3533, moby/buildkit#1130",
    put: Takes::None(StatusCode::METHOD_NOT_ALLOWED),
    ..SPECIFIED
};

/// Pulp: ignores the content of `PUT`, so that the digest does not match.
pub const PULP: Quirks =
    Quirks { registry: "Pulp", report: "pulp/pulp_container#1274", put: Takes::Ignores, ..SPECIFIED };

/// Registries behind a proxy that limits the request size, as nginx does.
pub const LIMITED: Quirks = Quirks {
    registry: "a registry behind nginx",
    report: "containers/image#1869",
    chunks: Takes::UpTo(10 * MIB, StatusCode::PAYLOAD_TOO_LARGE),
    stream: Takes::UpTo(10 * MIB, StatusCode::PAYLOAD_TOO_LARGE),
    put: Takes::UpTo(10 * MIB, StatusCode::PAYLOAD_TOO_LARGE),
    ..SPECIFIED
};

/// Registries that announce and enforce chunk size limits.
pub const TELLING: Quirks = Quirks {
    registry: "a registry that tells its limits",
    report: "opencontainers/distribution-spec#391",
    chunks: Takes::UpTo(20 * MIB, StatusCode::PAYLOAD_TOO_LARGE),
    put: Takes::UpTo(20 * MIB, StatusCode::PAYLOAD_TOO_LARGE),
    offsets: Offsets::Unsaid,
    min_chunk: Some(20 * MIB),
    max_chunk: Some(20 * MIB),
    ..SPECIFIED
};

/// Registries that report an empty content for `HEAD`, and respond to everything with 200.
pub const LOOSE: Quirks = Quirks {
    registry: "a registry of its own kind",
    report: "yusing/godoxy#169, harrisonwang/wharf#11",
    heads: Heads::Empty,
    committed: StatusCode::OK,
    ..SPECIFIED
};

/// All emulated registries.
pub const TABLE: [Quirks; 17] = [
    ECR,
    ACR,
    GHCR,
    GAR,
    QUAY,
    RED_HAT,
    GITLAB,
    HARBOR,
    ZOT,
    DISTRIBUTION_2,
    DISTRIBUTION_3,
    GET_ONLY,
    ARTIFACTORY,
    PULP,
    LIMITED,
    TELLING,
    LOOSE,
];
