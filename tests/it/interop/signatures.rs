//! cosign signatures are copied with their image, to the place where clients look for them. (`cosign/` contains the
//! output of cosign 3.1.3; `scripts/signatures` verifies the copies with cosign itself.)

use std::path::{Path, PathBuf};

use appferry::contract::v1::SynchronizationState;

use super::{Tools, tools::text};
use crate::harness::{
    images,
    oci_registry::OciRegistry,
    process::{self, Served},
    registry::Registry,
    site::{self, ADMIN, HOME, Site, app_sync, container, images_client},
};

/// The image, and cosign's bundle, which refers to it by the referrers API.
const IMAGE: &str = "sha256:1d979d388c6fc3dd1f179658d10a1dc8de6b42a77ab51769c4d599c73b92464b";
const SIGNATURE: &str = "sha256:b21bcf26f55782eefa9c0860b4be344fdbbe049541def401e362a14e2acc7239";

fn signed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/interop/cosign/bundle")
}

/// A directory region and two registry regions, one with the referrers API.
struct Fixture {
    tools: Tools,
    site: Site,
    served: Served,
    registry: Registry,
    oci_registry: OciRegistry,
}

impl Fixture {
    async fn build(home: Option<String>) -> Self {
        let (registry, oci_registry) = (Registry::start().await, OciRegistry::start().await);
        let mut site = Site::new();
        if let Some(home) = home {
            site = site.with(HOME, home, "");
        }
        let site =
            site.with("cn-shanghai", registry.store("apps"), "").with("cn-shenzhen", oci_registry.store("apps"), "");
        let served = site.serve().await;
        Self { tools: Tools::new(), site, served, registry, oci_registry }
    }

    /// Copies the image, and looks for the signature in every region. `name` is the image's name in the registries.
    async fn signature_arrives(&self, name: &str) {
        let mut client = app_sync(self.served.address, Some(ADMIN)).await;
        let request = client.synchronize_app(site::ask("signed", &[])).await.expect("it is accepted").into_inner();
        let done = site::finished(&mut client, &request.request_id).await;
        assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
        for address in [self.registry.address, self.oci_registry.address] {
            let image = format!("{address}/apps/{name}");
            let output = self.tools.run("oras", &["discover", "--plain-http", "--format", "json", &image]);
            assert!(output.contains(SIGNATURE), "{image}: {output}");
            // The copy has the image, the signature and its bundle.
            let copy = format!("{}:copy", self.tools.path(&format!("of-{}", address.port())).display());
            self.tools.run("oras", &["cp", "--recursive", "--from-plain-http", &image, "--to-oci-layout", &copy]);
        }
        let layout = self.site.image("cn-beijing", "signed");
        assert_eq!(super::writers::only_entry(&layout), IMAGE);
        let signatures = format!("{}/signatures:latest", layout.display());
        let output = self.tools.run("oras", &["discover", "--oci-layout", "--format", "json", &signatures]);
        assert!(output.contains(SIGNATURE), "{output}");
        let listed =
            self.tools.run("regctl", &["artifact", "list", &format!("ocidir://{}/signatures", layout.display())]);
        assert!(listed.contains(SIGNATURE), "{listed}");
        assert!(images::blob_path(&layout, SIGNATURE).exists());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cosigns_signature_arrives_from_a_registry() {
    let home = OciRegistry::start().await;
    let fixture = Fixture::build(Some(home.store("apps"))).await;
    let (from, to) = (format!("{}:v1", signed().display()), format!("{}/apps/signed:v1", home.address));
    fixture.tools.run("oras", &["cp", "--recursive", "--from-oci-layout", &from, "--to-plain-http", &to]);
    let mut images = images_client(fixture.served.address, Some(ADMIN)).await;
    images.add_image(container("signed", &to)).await.expect("it is registered");
    fixture.signature_arrives("signed:v1").await;
}

/// The layout that `oras cp --recursive` writes: it lists the signature beside the image, without a name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cosigns_signature_arrives_from_a_layout() {
    let fixture = Fixture::build(None).await;
    let (config, layout) = (fixture.site.directory.path().join("appferry.toml"), signed());
    let endpoint = format!("http://{}", fixture.served.address);
    let add = ["image", "add", "--name", "signed", "--id", "signed", "--oci", text(&layout), "--config", text(&config)];
    let mut add = process::command(fixture.site.directory.path(), &[&add[..], &["--endpoint", &endpoint]].concat());
    process::stdout(&add.env("APPFERRY_TOKEN", ADMIN).output().expect("the program runs"));
    fixture.signature_arrives("images:signed").await;
}
