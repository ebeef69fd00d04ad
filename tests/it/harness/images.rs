//! Creates and verifies OCI image layouts, independently of the code under test.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub fn digest(content: &[u8]) -> String {
    digest_by("sha256", content)
}

pub fn digest_by(algorithm: &str, content: &[u8]) -> String {
    match algorithm {
        "sha256" => format!("sha256:{}", hex::encode(Sha256::digest(content))),
        "sha512" => format!("sha512:{}", hex::encode(Sha512::digest(content))),
        other => panic!("{other:?} is no algorithm"),
    }
}

/// Returns whether `content` has the given digest. The digest names the hash algorithm.
pub fn matches(digest: &str, content: &[u8]) -> bool {
    let algorithm = digest.split(':').next().unwrap_or_default();
    ["sha256", "sha512"].contains(&algorithm) && digest_by(algorithm, content) == digest
}

/// Returns pseudorandom bytes that differ for every seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    // xorshift64*, because it is fast.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    });
    words.flatten().take(length).collect()
}

/// Returns the path of a blob in a layout.
pub fn blob_path(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replacen(':', "/", 1))
}

fn put(layout: &Path, media_type: &str, content: &[u8]) -> Value {
    put_by("sha256", layout, media_type, content)
}

fn put_by(algorithm: &str, layout: &Path, media_type: &str, content: &[u8]) -> Value {
    let digest = digest_by(algorithm, content);
    let path = blob_path(layout, &digest);
    fs::create_dir_all(path.parent().expect("a directory")).expect("a directory of blobs");
    fs::write(path, content).expect("a blob is written");
    json!({ "mediaType": media_type, "digest": digest, "size": content.len() })
}

/// Digest algorithms of an image's manifest, configuration and layers.
#[derive(Debug, Clone, Copy)]
pub struct Algorithms {
    pub manifest: &'static str,
    pub config: &'static str,
    pub layers: &'static str,
}

/// Writes an image's manifest and blobs to a layout, and returns the descriptor of the manifest.
fn put_image(layout: &Path, layers: &[Vec<u8>], config: &Value) -> Value {
    put_image_by(Algorithms { manifest: "sha256", config: "sha256", layers: "sha256" }, layout, layers, config)
}

fn put_image_by(by: Algorithms, layout: &Path, layers: &[Vec<u8>], config: &Value) -> Value {
    let config = config.to_string();
    let config = put_by(by.config, layout, "application/vnd.oci.image.config.v1+json", config.as_bytes());
    let layer = |layer: &Vec<u8>| put_by(by.layers, layout, "application/vnd.oci.image.layer.v1.tar", layer);
    let layers: Vec<_> = layers.iter().map(layer).collect();
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
    put_by(by.manifest, layout, MANIFEST, manifest.to_string().as_bytes())
}

fn begin(layout: &Path) {
    fs::create_dir_all(layout.join("blobs/sha256")).expect("a layout's directories");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a layout's marker");
}

fn end(layout: &Path, entries: &Value) {
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    fs::write(layout.join("index.json"), index.to_string()).expect("a layout's index");
}

/// Writes a layout of one image with these layers. Returns the digest of its manifest.
pub fn write(layout: &Path, layers: &[Vec<u8>]) -> String {
    begin(layout);
    let manifest = put_image(layout, layers, &json!({ "architecture": "amd64", "os": "linux" }));
    end(layout, &json!([manifest]));
    manifest["digest"].as_str().expect("a digest").to_owned()
}

/// Writes a layout of one image whose digests use these algorithms. Returns the digest of its manifest.
#[allow(dead_code, reason = "no bench does")]
pub fn write_by(by: Algorithms, layout: &Path, layers: &[Vec<u8>]) -> String {
    begin(layout);
    let manifest = put_image_by(by, layout, layers, &json!({ "architecture": "amd64", "os": "linux" }));
    end(layout, &json!([manifest]));
    manifest["digest"].as_str().expect("a digest").to_owned()
}

/// Writes a layout of one image with this configuration and name. Returns the digest of its manifest.
pub fn write_called(layout: &Path, layers: &[Vec<u8>], config: &Value, name: &str) -> String {
    begin(layout);
    let mut manifest = put_image(layout, layers, config);
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    end(layout, &json!([manifest]));
    manifest["digest"].as_str().expect("a digest").to_owned()
}

/// Writes an image for two architectures to a layout, and returns the descriptor of its index.
fn put_platforms(layout: &Path) -> Value {
    let shared = noise(3_000, 1);
    let entries: Vec<_> = ["amd64", "arm64"]
        .into_iter()
        .zip(2..)
        .map(|(architecture, seed)| {
            let config = json!({ "architecture": architecture, "os": "linux" });
            let mut manifest = put_image(layout, &[shared.clone(), noise(5_000, seed)], &config);
            manifest["platform"] = config;
            manifest
        })
        .collect();
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    put(layout, INDEX, index.to_string().as_bytes())
}

/// Writes a layout with an image for two architectures. Returns the digest of the index.
pub fn write_platforms(layout: &Path) -> String {
    begin(layout);
    let index = put_platforms(layout);
    end(layout, &json!([index]));
    index["digest"].as_str().expect("a digest").to_owned()
}

/// Writes a layout with two images, one of which is for two architectures and has the tag. Returns the digest of that
/// image's index.
pub fn write_multi_arch(layout: &Path, tag: &str) -> String {
    begin(layout);
    let mut index = put_platforms(layout);
    index["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    let mut other = put_image(layout, &[noise(100, 9)], &json!({}));
    other["annotations"] = json!({ "org.opencontainers.image.ref.name": "other" });
    end(layout, &json!([other, index]));
    index["digest"].as_str().expect("a digest").to_owned()
}

/// Writes a layout of one image with layers of these sizes in bytes. Writes one layer at a time, because all layers
/// together may be larger than memory.
#[allow(dead_code, reason = "the bench of carrying uses it")]
pub fn write_sizes(layout: &Path, sizes: &[usize]) {
    begin(layout);
    let layer = |(seed, &size): (u64, &usize)| {
        let path = layout.join("blobs/sha256/new");
        let mut file = fs::File::create(&path).expect("a file");
        let mut hash = Sha256::new();
        let mut left = size;
        let mut block = noise(1 << 20, seed + 1);
        for number in 0u64.. {
            if left == 0 {
                break;
            }
            block[..8].copy_from_slice(&number.to_le_bytes());
            let length = left.min(block.len());
            hash.update(&block[..length]);
            std::io::Write::write_all(&mut file, &block[..length]).expect("it is written");
            left -= length;
        }
        let digest = format!("sha256:{}", hex::encode(hash.finalize()));
        fs::rename(path, blob_path(layout, &digest)).expect("it is renamed");
        json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size })
    };
    let layers: Vec<_> = (0..).zip(sizes).map(layer).collect();
    let config = json!({ "architecture": "amd64", "os": "linux" }).to_string();
    let config = put(layout, "application/vnd.oci.image.config.v1+json", config.as_bytes());
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
    end(layout, &json!([put(layout, MANIFEST, manifest.to_string().as_bytes())]));
}

/// Returns the paths of all files below a directory, including those in subdirectories.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let mut open = vec![directory.to_owned()];
    let mut files_found = Vec::new();
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { open.push(path) } else { files_found.push(path) }
        }
    }
    files_found
}

/// Copies all files below a directory to another directory, keeping their relative paths.
pub fn copy_tree(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).expect("it is below"));
        std::fs::create_dir_all(target.parent().expect("a directory")).expect("directories");
        std::fs::copy(file, target).expect("a copy");
    }
}

/// Returns the digests of the layers of a layout's first image, in the order of its manifest.
pub fn layers(layout: &Path) -> Vec<String> {
    let index: Value = read(&layout.join("index.json"));
    let manifest = index["manifests"][0]["digest"].as_str().expect("a digest");
    let manifest: Value = read(&blob_path(layout, manifest));
    let layers = manifest["layers"].as_array().expect("layers");
    layers.iter().map(|layer| layer["digest"].as_str().expect("a digest").to_owned()).collect()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("it is there")).expect("it is JSON")
}

/// Verifies that every file that a layout's index references, directly or indirectly, exists and has the stated digest,
/// and that no other file exists. Returns the digest of the root.
pub fn verify(layout: &Path) -> String {
    let index = read(&layout.join("index.json"));
    let entries = index["manifests"].as_array().expect("entries");
    assert_eq!(entries.len(), 1, "one image a layout");
    let mut open: Vec<Value> = entries.clone();
    let mut seen = std::collections::BTreeSet::new();
    while let Some(descriptor) = open.pop() {
        let expected = descriptor["digest"].as_str().expect("a digest").to_owned();
        let content = fs::read(blob_path(layout, &expected)).unwrap_or_else(|error| panic!("{expected}: {error}"));
        assert!(matches(&expected, &content), "{expected} in {}", layout.display());
        assert_eq!(Some(content.len() as u64), descriptor["size"].as_u64());
        if seen.insert(expected) && [MANIFEST, INDEX].contains(&descriptor["mediaType"].as_str().unwrap_or_default()) {
            let content: Value = serde_json::from_slice(&content).expect("a manifest");
            let lists = ["manifests", "layers"].iter().filter_map(|key| content[key].as_array());
            open.extend(lists.flatten().cloned().chain(content.get("config").cloned()));
        }
    }
    let blobs = layout.join("blobs");
    let name = |file: PathBuf| {
        let below = file.strip_prefix(&blobs).expect("it is below").to_string_lossy().into_owned();
        below.replacen('/', ":", 1)
    };
    let files: std::collections::BTreeSet<_> = files(&blobs).into_iter().map(name).collect();
    assert_eq!(files, seen, "what lies in {} is what its index needs", layout.display());
    entries[0]["digest"].as_str().expect("a digest").to_owned()
}

/// Returns whether a layout has a published image.
pub fn visible(layout: &Path) -> bool {
    layout.join("index.json").exists()
}
