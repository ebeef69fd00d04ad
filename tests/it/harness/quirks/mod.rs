//! Known registries, one row each: where they do not behave as the distribution specification has it, and the public report that says so.
//! A [`Registry`](server::QuirkyRegistry) behaves by one row.

pub mod server;

use http::StatusCode;

/// What a registry says in `Range` to have of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offsets {
    /// All of it, from the first byte on.
    Right,
    /// What it had after the first chunk, for ever.
    OfFirstChunk,
    /// The length of the last chunk.
    OfLastChunk,
    /// That it has none of it.
    Zero,
    /// Nothing.
    Unsaid,
}

/// What a registry does with bytes that come in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// It takes them.
    All,
    /// It takes so many at once; more are refused with this.
    UpTo(u64, StatusCode),
    /// It takes no fewer at once, but for the last; fewer are refused with this.
    AtLeast(u64, StatusCode),
    /// It refuses them.
    None(StatusCode),
    /// It says to have taken them, and has not.
    Ignores,
}

/// What a registry answers to `HEAD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heads {
    /// What it answers to `GET`, without content.
    Right,
    /// That there is no content.
    Empty,
    /// A refusal.
    Refused(StatusCode),
}

/// How a registry behaves.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::struct_excessive_bools, reason = "each is a quirk of its own")]
pub struct Quirks {
    /// What the registry is called.
    pub registry: &'static str,
    /// Where somebody has reported it.
    pub report: &'static str,
    pub offsets: Offsets,
    /// `PATCH` with `Content-Range`, `PATCH` without, and `PUT` with content.
    pub chunks: Takes,
    pub stream: Takes,
    pub put: Takes,
    /// The limits that it tells when an upload begins.
    pub min_chunk: Option<u64>,
    pub max_chunk: Option<u64>,
    /// What it answers once it has a blob.
    pub committed: StatusCode,
    /// What it answers to a mount; nothing where it mounts.
    pub mount: Option<StatusCode>,
    pub heads: Heads,
    /// Whether it says the digest of a manifest in a header.
    pub digest_header: bool,
    /// Whether it compresses what it answers, unless it is asked not to.
    pub compresses: bool,
    /// Whether blobs, and requests that write, are redirected to another path.
    pub redirects: bool,
    /// Whether the bytes of uploads are, too.
    pub redirects_uploads: bool,
    /// How many readings of each blob find nothing, right after it was written.
    pub lags: u32,
}

/// As the specification has it.
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

/// Amazon ECR: every chunk is stored, and `Range` stays what it was after the first; manifests come without their digest in a header.
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

/// GitHub's registry: a chunk may have 4 MiB.
pub const GHCR: Quirks = Quirks {
    registry: "ghcr.io",
    report: "oras-project/rust-oci-client#35, ocx-sh/ocx#237",
    chunks: Takes::UpTo(4 * MIB, StatusCode::RANGE_NOT_SATISFIABLE),
    ..SPECIFIED
};

/// Google Artifact Registry: no chunks.
pub const GAR: Quirks = Quirks {
    registry: "Google Artifact Registry",
    report: "dotnet/sdk-container-builds#287, kitops-ml/kitops#777",
    chunks: Takes::None(StatusCode::METHOD_NOT_ALLOWED),
    ..SPECIFIED
};

/// Quay: what is stored in S3 comes in chunks of 5 MiB at least.
pub const QUAY: Quirks = Quirks {
    registry: "Quay",
    report: "quay/quay#2949",
    chunks: Takes::AtLeast(5 * MIB, StatusCode::INTERNAL_SERVER_ERROR),
    ..SPECIFIED
};

/// Red Hat's registry: no digest in a header, and compressed answers where they are not declined.
pub const RED_HAT: Quirks = Quirks {
    registry: "registry.access.redhat.com",
    report: "quay/quay#1310, containerd/containerd#3238",
    digest_header: false,
    compresses: true,
    ..SPECIFIED
};

/// GitLab: mounts answer 401, and blobs are elsewhere.
pub const GITLAB: Quirks = Quirks {
    registry: "GitLab",
    report: "estesp/manifest-tool#53, oras-project/oras#923",
    mount: Some(StatusCode::UNAUTHORIZED),
    redirects: true,
    ..SPECIFIED
};

/// Harbor: a mount from a project that is closed is denied; what was pushed is not found for a moment.
pub const HARBOR: Quirks = Quirks {
    registry: "Harbor",
    report: "goharbor/harbor#17097, goharbor/harbor#4259, oras-project/oras#1892",
    mount: Some(StatusCode::FORBIDDEN),
    lags: 1,
    ..SPECIFIED
};

/// zot: `Range` of a chunk is much smaller than it should be.
pub const ZOT: Quirks = Quirks {
    registry: "zot",
    report: "regclient/regclient#961, project-zot/zot#3983",
    offsets: Offsets::OfLastChunk,
    ..SPECIFIED
};

/// distribution 2: it says to have nothing of an upload, which it can't resume.
pub const DISTRIBUTION_2: Quirks = Quirks {
    registry: "distribution 2",
    report: "distribution/distribution#475, distribution/distribution#2363",
    offsets: Offsets::Zero,
    ..SPECIFIED
};

/// distribution 3: it says how much it has of an upload.
pub const DISTRIBUTION_3: Quirks =
    Quirks { registry: "distribution 3", report: "distribution/distribution#3755", ..SPECIFIED };

/// Registries that have only `GET`.
pub const GET_ONLY: Quirks = Quirks {
    registry: "a registry without HEAD",
    report: "containerd/cri#787, merll/docker-registry-util#3",
    heads: Heads::Refused(StatusCode::METHOD_NOT_ALLOWED),
    ..SPECIFIED
};

/// Artifactory: a `PUT` with content is refused.
pub const ARTIFACTORY: Quirks = Quirks {
    registry: "Artifactory",
    report: "containerd/containerd#3533, moby/buildkit#1130",
    put: Takes::None(StatusCode::METHOD_NOT_ALLOWED),
    ..SPECIFIED
};

/// Pulp: the content of a `PUT` is not looked at, so that the digest is another one.
pub const PULP: Quirks =
    Quirks { registry: "Pulp", report: "pulp/pulp_container#1274", put: Takes::Ignores, ..SPECIFIED };

/// Registries behind a proxy that limits the size of requests, as nginx does.
pub const LIMITED: Quirks = Quirks {
    registry: "a registry behind nginx",
    report: "containers/image#1869",
    chunks: Takes::UpTo(10 * MIB, StatusCode::PAYLOAD_TOO_LARGE),
    stream: Takes::UpTo(10 * MIB, StatusCode::PAYLOAD_TOO_LARGE),
    put: Takes::UpTo(10 * MIB, StatusCode::PAYLOAD_TOO_LARGE),
    ..SPECIFIED
};

/// Registries that tell the limits of chunks, and keep to them.
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

/// Registries that answer to `HEAD` as if there were no content, and 200 to everything.
pub const LOOSE: Quirks = Quirks {
    registry: "a registry of its own kind",
    report: "yusing/godoxy#169, harrisonwang/wharf#11",
    heads: Heads::Empty,
    committed: StatusCode::OK,
    ..SPECIFIED
};

/// All of them.
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
