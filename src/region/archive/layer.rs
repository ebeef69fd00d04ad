//! A layer's file in docker's older form of an archive, whose name does not say how it is compressed.

use std::{
    io::{BufReader, Read},
    path::Path,
};

use flate2::bufread::MultiGzDecoder;

use super::Part;
use crate::{
    domain::{Descriptor, Digest},
    region::{Result, file_part},
};

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Judges by what a file begins with.
    fn of(beginning: &[u8]) -> Self {
        if beginning.starts_with(&[0x1f, 0x8b]) {
            Self::Gzip
        } else if beginning.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Self::Zstd
        } else {
            Self::None
        }
    }

    /// The media type of such a layer (image specification 1.1, "Layer Media Types").
    const fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A layer as it lies in an archive.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The file as it is.
    pub descriptor: Descriptor,
    /// The digest of the uncompressed tar (image specification 1.1, "Layer `DiffID`"), or why it can't be uncompressed.
    pub diff_id: std::result::Result<Digest, String>,
}

impl Layer {
    /// Reads a layer for its digests. It is uncompressed piece by piece, and kept nowhere.
    pub fn read(path: &Path, part: Part) -> Result<Self> {
        let (digest, size) = file_part::hash(path, part.from, part.size)?;
        let compression = Compression::of(&file_part::read_whole(path, part.from, part.size.min(8))?);
        let open = || file_part::open(path, part.from, part.size).map(BufReader::new);
        let hash = |tar: Box<dyn Read>| file_part::hash_all(tar).map(|(digest, _)| digest);
        let diff_id = match compression {
            Compression::None => Ok(digest),
            Compression::Gzip => hash(Box::new(MultiGzDecoder::new(open()?))),
            Compression::Zstd => zstd::Decoder::with_buffer(open()?).and_then(|tar| hash(Box::new(tar))),
        };
        let descriptor = Descriptor { media_type: compression.media_type().to_owned(), digest, size };
        Ok(Self { descriptor, diff_id: diff_id.map_err(|error| error.to_string()) })
    }
}
