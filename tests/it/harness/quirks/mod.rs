//! Known deviations of registries from the distribution specification, with public reports of them. Each registry has a
//! constant, which a [`QuirkyRegistry`](server::QuirkyRegistry) can emulate.

pub mod server;

use http::StatusCode;

/// The `Range` that a registry reports for an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offsets {
    /// All received bytes.
    Right,
    /// The bytes of the first chunk, even after further chunks.
    OfFirstChunk,
    /// A range from zero with the length of the last chunk.
    OfLastChunk,
    /// Zero bytes, although the registry keeps the received ones.
    Zero,
    /// No `Range` header.
    Unsaid,
}

/// How a registry treats one form of upload request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Accepts any size.
    All,
    /// Accepts at most this many bytes, and rejects more with this status.
    UpTo(u64, StatusCode),
    /// Accepts at least this many bytes, and rejects fewer with this status.
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
    /// How `PATCH` requests with `Content-Range` are treated.
    pub chunks: Takes,
    /// How `PATCH` requests without `Content-Range` are treated.
    pub stream: Takes,
    /// How `PUT` requests with content are treated.
    pub put: Takes,
    /// The minimum chunk size in bytes that the registry announces when an upload begins, if any.
    pub min_chunk: Option<u64>,
    /// The maximum chunk size in bytes that the registry announces when an upload begins, if any.
    pub max_chunk: Option<u64>,
    /// Status of the response that completes an upload.
    pub committed: StatusCode,
    /// Status of the response to a mount request; `None` if the registry mounts the blob.
    pub mount: Option<StatusCode>,
    pub heads: Heads,
    /// Whether responses state the digest of a manifest in a header.
    pub digest_header: bool,
    /// Whether responses are compressed unless the request accepts only `identity`.
    pub compresses: bool,
    /// Whether reads of blobs, starts of uploads, and pushes of manifests are redirected to another path.
    pub redirects: bool,
    /// Whether requests with bytes of uploads are redirected to another path.
    pub redirects_uploads: bool,
    /// Number of reads of each new blob that fail with 404 before one succeeds.
    pub lags: u32,
}

/// The behavior that the distribution specification describes.
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

/// Amazon ECR: `Range` covers only the first chunk, although every chunk is stored; manifests have no digest
/// header.
pub const ECR: Quirks = Quirks {
    registry: "Amazon ECR",
    report: "aws/containers-roadmap#2831, distribution/distribution#3792",
    offsets: Offsets::OfFirstChunk,
    digest_header: false,
    ..SPECIFIED
};

/// Alibaba Cloud ACR: `Range` covers only the last chunk.
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

/// Red Hat's registry: manifests have no digest header, and responses are compressed unless the request declines
/// compression.
pub const RED_HAT: Quirks = Quirks {
    registry: "registry.access.redhat.com",
    report: "quay/quay#1310, containerd/containerd#3238",
    digest_header: false,
    compresses: true,
    ..SPECIFIED
};

/// GitLab: mount requests are rejected with 401, and requests for blobs are redirected.
pub const GITLAB: Quirks = Quirks {
    registry: "GitLab",
    report: "estesp/manifest-tool#53, oras-project/oras#923",
    mount: Some(StatusCode::UNAUTHORIZED),
    redirects: true,
    ..SPECIFIED
};

/// Harbor: mounting from an inaccessible project is rejected, and the first read of a pushed blob does not find it.
pub const HARBOR: Quirks = Quirks {
    registry: "Harbor",
    report: "goharbor/harbor#17097, goharbor/harbor#4259, oras-project/oras#1892",
    mount: Some(StatusCode::FORBIDDEN),
    lags: 1,
    ..SPECIFIED
};

/// zot: `Range` covers only the last chunk.
pub const ZOT: Quirks = Quirks {
    registry: "zot",
    report: "regclient/regclient#961, project-zot/zot#3983",
    offsets: Offsets::OfLastChunk,
    ..SPECIFIED
};

/// distribution 2: cannot resume an upload, and reports zero received bytes.
pub const DISTRIBUTION_2: Quirks = Quirks {
    registry: "distribution 2",
    report: "distribution/distribution#475, distribution/distribution#2363",
    offsets: Offsets::Zero,
    ..SPECIFIED
};

/// distribution 3: reports the received bytes of an upload as specified.
pub const DISTRIBUTION_3: Quirks =
    Quirks { registry: "distribution 3", report: "distribution/distribution#3755", ..SPECIFIED };

/// Registries that reject `HEAD`.
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

/// Pulp: ignores the content of `PUT` requests, so that the digest of the upload does not match.
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

/// Registries that report a content length of zero for `HEAD`, and complete uploads with status 200.
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
