//! Converts images to messages of the contract.

use super::convert::{count, region_state, time, verification};
use crate::{
    contract::v1,
    domain::{Content, Digest, Image, ImageKind, RegionId, Regions, Replica, Targets},
};

/// Converts an image with its state in those configured regions that are requested.
///
/// `url` is the address from which clients pull the image. `id_in` returns the image's id in a region, if it differs
/// from the image's own id. `shown_at_home` is the digest that the image's name refers to in the home region, if it is
/// not this image's digest.
pub fn image(
    image: &Image,
    url: String,
    replicas: &[(RegionId, Replica)],
    id_in: impl Fn(&RegionId) -> Option<String>,
    regions: &Regions,
    requested: &Targets,
    shown_at_home: Option<Digest>,
) -> v1::Image {
    let replica_in = |region: &RegionId| replicas.iter().find(|(r, _)| r == region).map(|(_, replica)| replica);
    let state_in = |region: &RegionId| {
        if *region == image.home {
            return v1::RegionState::Available;
        }
        replica_in(region).map_or(v1::RegionState::Unspecified, |replica| region_state(replica.status()))
    };
    let info = |region: &RegionId| {
        let status = state_in(region);
        let is_available = status == v1::RegionState::Available;
        v1::AdditionalRegionInfo {
            region_id: region.to_string(),
            image_id: if is_available { id_in(region).unwrap_or_else(|| image.id.to_string()) } else { String::new() },
            status: status.into(),
            verification: verification(replica_in(region).and_then(Replica::verification)).into(),
            warnings: replica_in(region).map(|replica| replica.warnings.to_texts()).unwrap_or_default(),
            shown_digest: shown_at_home
                .filter(|_| *region == image.home)
                .map_or_else(String::new, |digest| digest.to_string()),
        }
    };
    let (image_type, spec) = match image.kind {
        ImageKind::Vm => (
            v1::ImageType::Vm,
            v1::image::ImageSpec::VmImageSpec(v1::VmImageSpec { image_id: image.source.to_string() }),
        ),
        ImageKind::Container => (
            v1::ImageType::Container,
            v1::image::ImageSpec::ContainerImageSpec(v1::ContainerImageSpec { registry_url: url }),
        ),
    };
    v1::Image {
        image_id: image.id.to_string(),
        name: image.name.clone(),
        image_version: image.version.clone(),
        description: image.description.clone(),
        image_type: image_type.into(),
        image_spec: Some(spec),
        home_region_id: image.home.to_string(),
        digest: match &image.content {
            Content::Blobs(root) => root.digest.to_string(),
            Content::Ecs => String::new(),
        },
        size_bytes: count(image.size),
        create_time: Some(time(image.created_at)),
        additional_regions_info: match requested {
            Targets::All => regions.iter().map(info).collect(),
            Targets::Named(named) => named.iter().map(info).collect(),
        },
        superseded_by: image.superseded_by.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}
