use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
};

use domain::{Algorithm, Digest, ImageName};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

use super::Archive;
use crate::{MANIFEST_TYPE, Result, Source as _};

/// Writes an archive with the given files.
fn archive(directory: &Path, members: &[(&str, Vec<u8>)]) -> PathBuf {
    let path = directory.join("saved.tar");
    let mut archive = tar::Builder::new(File::create(&path).expect("a file"));
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content.as_slice()).expect("a member");
    }
    archive.finish().expect("a tar");
    path
}

/// Opens an archive in docker's older format, with the given layers and with the given `rootfs` in its configuration.
async fn open(layers: &[Vec<u8>], rootfs: Value) -> Result<(tempfile::TempDir, Archive)> {
    let names: Vec<String> = (0..layers.len()).map(|number| format!("layer{number}.tar")).collect();
    let list = json!([{ "Config": "config.json", "RepoTags": ["apps/solver:v1"], "Layers": names }]);
    let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": rootfs });
    let mut members =
        vec![("manifest.json", list.to_string().into_bytes()), ("config.json", config.to_string().into_bytes())];
    members.extend(names.iter().map(String::as_str).zip(layers.iter().cloned()));
    let directory = tempfile::tempdir().expect("a directory");
    let opened = Archive::open(&archive(directory.path(), &members), None).await?;
    Ok((directory, opened))
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).expect("memory");
    encoder.finish().expect("memory")
}

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 1).expect("memory")
}

/// Returns layers with each kind of compression, and the digests of their uncompressed content. Two of the layers
/// consist of two compressed members each.
fn layers() -> (Vec<Vec<u8>>, Vec<String>) {
    let plain: Vec<Vec<u8>> = (1..=5_u8).map(|seed| vec![seed; 300_000 + usize::from(seed)]).collect();
    let halves = |pack: fn(&[u8]) -> Vec<u8>, content: &[u8]| {
        let (first, second) = content.split_at(1_000);
        [pack(first), pack(second)].concat()
    };
    let packed =
        vec![plain[0].clone(), gzip(&plain[1]), zstd(&plain[2]), halves(gzip, &plain[3]), halves(zstd, &plain[4])];
    (packed, plain.iter().map(|content| Algorithm::CANONICAL.digest(content).to_string()).collect())
}

#[tokio::test]
async fn layers_that_their_configuration_names_are_taken() {
    let (layers, diff_ids) = layers();
    let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
    let (_directory, opened) = open(&layers, rootfs).await.expect("an image");
    let name = ImageName("saved".into());
    let root = opened.root(&name).await.expect("an index").expect("an image");
    assert_eq!(root.media_type, MANIFEST_TYPE);
    let manifest = opened.read_manifest(&name, &root).await.expect("a manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    for (place, (layer, kind)) in layers.iter().zip(["", "+gzip", "+zstd", "+gzip", "+zstd"]).enumerate() {
        let listed = &manifest["layers"][place];
        assert_eq!(listed["digest"], Algorithm::CANONICAL.digest(layer).to_string());
        assert_eq!(listed["mediaType"], format!("application/vnd.oci.image.layer.v1.tar{kind}"));
    }
}

#[tokio::test]
async fn a_layer_that_is_not_the_one_of_the_configuration_is_named() {
    let (layers, diff_ids) = layers();
    let refused = async |layers: &[Vec<u8>], rootfs: Value| {
        open(layers, rootfs).await.map(|_| ()).expect_err("it is refused").to_string()
    };
    let other = Digest::Sha256([7; 32]).to_string();
    for wrong in 0..layers.len() {
        let mut listed = diff_ids.clone();
        let actual = std::mem::replace(&mut listed[wrong], other.clone());
        let said = refused(&layers, json!({ "diff_ids": listed })).await;
        let named = format!("layer{wrong}.tar");
        for part in [named.as_str(), &actual, &other, "write the archive again"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    // Truncated layers.
    let mut cut = layers.clone();
    for place in [1, 2] {
        let whole = layers[place].len();
        cut[place].truncate(whole / 2);
        let said = refused(&cut, json!({ "diff_ids": diff_ids })).await;
        assert!(said.contains(&format!("layer{place}.tar")) && said.contains("can't be uncompressed"), "{said}");
        cut[place].clone_from(&layers[place]);
    }
    for rootfs in [json!({ "diff_ids": diff_ids[1..] }), json!({ "diff_ids": null }), json!({})] {
        let said = refused(&layers, rootfs).await;
        assert!(said.contains("names 5 layers") && said.contains("config.json"), "{said}");
    }
    let said = refused(&layers, json!({ "diff_ids": ["md5:00", "a", "b", "c", "d"] })).await;
    assert!(said.contains("config.json") && said.contains("md5:00"), "{said}");
}
