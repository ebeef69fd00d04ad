//! Layer files of docker's older archive format. Their compression is detected from the content, because the file names
//! do not state it.

use std::{
    io::{BufReader, Read},
    path::Path,
};

use domain::{Descriptor, Digest};
use flate2::bufread::MultiGzDecoder;

use super::Part;
use crate::{Result, file_range};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Detects the compression from the magic number.
    fn of(beginning: &[u8]) -> Self {
        if beginning.starts_with(&[0x1f, 0x8b]) {
            Self::Gzip
        } else if beginning.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Self::Zstd
        } else {
            Self::None
        }
    }

    /// Returns the media type of a layer with this compression (image specification 1.1, "Layer Media Types").
    const fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A layer in an archive.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Describes the file, compressed or not.
    pub descriptor: Descriptor,
    /// The digest of the uncompressed tar (image specification 1.1, "Layer `DiffID`"), or the decompression error.
    pub diff_id: std::result::Result<Digest, String>,
}

impl Layer {
    /// Hashes a layer and its uncompressed tar. The uncompressed data is streamed and not stored.
    pub fn read(path: &Path, part: Part) -> Result<Self> {
        let (digest, size) = file_range::hash(path, part.from, part.size)?;
        let compression = Compression::of(&file_range::read_whole(path, part.from, part.size.min(8))?);
        let open = || file_range::open(path, part.from, part.size).map(BufReader::new);
        let hash = |tar: Box<dyn Read>| file_range::hash_all(tar).map(|(digest, _)| digest);
        let diff_id = match compression {
            Compression::None => Ok(digest),
            Compression::Gzip => hash(Box::new(MultiGzDecoder::new(open()?))),
            Compression::Zstd => zstd::Decoder::with_buffer(open()?).and_then(|tar| hash(Box::new(tar))),
        };
        let descriptor = Descriptor { media_type: compression.media_type().to_owned(), digest, size };
        Ok(Self { descriptor, diff_id: diff_id.map_err(|error| error.to_string()) })
    }
}
