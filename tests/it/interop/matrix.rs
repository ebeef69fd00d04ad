//! Every program that writes images, every kind of region, and every program that reads them.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, sync::Arc};

use appferry::contract::v1::SynchronizationState;
use futures_util::{StreamExt as _, stream};

use super::{
    Place, Tools,
    readers::{OF_LAYOUTS, OF_REGISTRIES, Reader, Spare},
    tools::text,
    writers::{Base, WRITERS, Writer, Written, base, only_entry},
};
use crate::harness::{
    bucket::{BUCKET, Bucket},
    oci_registry::OciRegistry,
    process::{self, Served},
    registry::Registry,
    site::{self, ADMIN, HOME, Site, app_sync},
};

/// The number of concurrent reads.
const AT_ONCE: usize = 3;
/// The document with the table of results.
const TABLE: &str = "docs/interop.md";
const BEGIN: &str = "<!-- the table: tests/it/interop -->\n";
const END: &str = "<!-- the end of the table -->\n";

/// A service with a directory as home region, and a region of each kind.
struct Fixture {
    tools: Tools,
    site: Site,
    served: Served,
    bucket: Bucket,
    registry: Registry,
    oci_registry: OciRegistry,
}

impl Fixture {
    async fn build() -> Self {
        let (bucket, registry, oci_registry) =
            (Bucket::start().await, Registry::start().await, OciRegistry::start().await);
        let mut site = Site::new()
            .with("cn-shanghai", format!("s3://{BUCKET}/images"), bucket.keys(bucket.address))
            .with("cn-shenzhen", registry.store("apps"), "");
        write!(site.more, "\n[[region]]\nid = \"us-east\"\nstore = \"{}\"\n", oci_registry.store("apps"))
            .expect("memory");
        let served = site.serve().await;
        Self { tools: Tools::new(), site, served, bucket, registry, oci_registry }
    }

    /// Adds the image that a program wrote to the home region, and copies it to all regions.
    async fn carry(&self, writer: &Writer, written: &Written) {
        let endpoint = format!("http://{}", self.served.address);
        let config = self.site.directory.path().join("appferry.toml");
        let arguments = ["image", "add", "--name", writer.id, "--id", writer.id, "--oci", &written.oci];
        let arguments = [&arguments[..], &["--config", text(&config), "--endpoint", &endpoint]].concat();
        let mut add = process::command(self.site.directory.path(), &arguments);
        process::stdout(&add.env("APPFERRY_TOKEN", ADMIN).output().expect("the program runs"));
        let mut client = app_sync(self.served.address, Some(ADMIN)).await;
        let request = client.synchronize_app(site::ask(writer.id, &[])).await.expect("it is accepted").into_inner();
        let done = site::finished(&mut client, &request.request_id).await;
        assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    }

    /// Returns the locations of an image in the regions.
    async fn places(&self, id: &str) -> [(&'static str, Place); 4] {
        let downloaded = self.tools.path(&format!("bucket-{id}"));
        self.bucket.pull(&format!("images/{id}"), &downloaded).await;
        let name = format!("apps/images:{id}");
        [
            ("directory", Place::Layout(self.site.image("cn-beijing", id))),
            ("bucket", Place::Layout(downloaded)),
            ("registry", Place::Registry(self.registry.address, name.clone())),
            ("registry with referrers", Place::Registry(self.oci_registry.address, name)),
        ]
    }
}

/// One read of an image.
struct Reading {
    writer: &'static Writer,
    kind: &'static str,
    place: Place,
    reader: &'static Reader,
    digest: Arc<str>,
}

/// The readers that failed, by writer and kind of region.
type Failures = BTreeMap<(&'static str, &'static str), Vec<String>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_writes_an_image_every_program_reads_it_in_every_kind_of_region() {
    let fixture = Arc::new(Fixture::build().await);
    let layout = fixture.tools.path("base");
    let digest = base(&layout);
    let pushed = format!("{}/made/solver:v1", fixture.oci_registry.address);
    fixture.tools.run("crane", &["push", text(&layout), &pushed]);
    let base = Base { layout, digest, pushed };

    let mut readings = Vec::new();
    for writer in WRITERS {
        let written = writer.write(&fixture.tools, &base);
        fixture.carry(writer, &written).await;
        // An image that was converted from Docker's format has a new digest, which is the same in all regions.
        let digest = only_entry(&fixture.site.image(HOME, writer.id));
        if let Some(known) = &written.digest {
            assert_eq!(&digest, known, "{}", writer.name);
        }
        let digest: Arc<str> = digest.into();
        for (kind, place) in fixture.places(writer.id).await {
            if let Place::Layout(layout) = &place {
                assert_eq!(only_entry(layout), *digest);
            }
            let readers = if matches!(place, Place::Layout(_)) { OF_LAYOUTS } else { OF_REGISTRIES };
            let reading = |reader| Reading { writer, kind, place: place.clone(), reader, digest: Arc::clone(&digest) };
            readings.extend(readers.iter().map(reading));
        }
    }
    assert_eq!(readings.len(), WRITERS.len() * 2 * (OF_LAYOUTS.len() + OF_REGISTRIES.len()));
    let failures = read_all(&fixture, readings).await;
    let table = table(&failures);
    println!("{table}");
    is_documented(&table);
    assert!(failures.values().all(Vec::is_empty), "{failures:#?}");
}

async fn read_all(fixture: &Arc<Fixture>, readings: Vec<Reading>) -> Failures {
    let read = |(number, reading): (usize, Reading)| {
        let fixture = Arc::clone(fixture);
        tokio::task::spawn_blocking(move || {
            let spare = Spare {
                number,
                path: text(&fixture.tools.path(&format!("read-{number}"))).to_owned(),
                pushed: format!("{}/read/solver:{number}", fixture.oci_registry.address),
            };
            let Reading { writer, kind, place, reader, digest } = reading;
            let failed = match reader.read(&fixture.tools, &place, &spare) {
                Err(error) => Some(error),
                Ok(Some(read)) if read != *digest => Some(format!("{}: {read} and not {digest}", reader.name)),
                Ok(_) => None,
            };
            (writer.name, kind, failed)
        })
    };
    let mut failures = Failures::new();
    let mut read = stream::iter(readings.into_iter().enumerate().map(read)).buffer_unordered(AT_ONCE);
    while let Some(read) = read.next().await {
        let (writer, kind, failed) = read.expect("no panic");
        failures.entry((writer, kind)).or_default().extend(failed);
    }
    failures
}

/// Returns the table, with one row for each writer and kind of region.
fn table(failures: &Failures) -> String {
    let names = |readers: &[Reader]| readers.iter().map(|reader| reader.name).collect::<Vec<_>>().join(", ");
    let mut table = "| written by | carried to | read there by |\n|---|---|---|\n".to_owned();
    for writer in WRITERS {
        for (kind, readers) in [
            ("directory", OF_LAYOUTS),
            ("bucket", OF_LAYOUTS),
            ("registry", OF_REGISTRIES),
            ("registry with referrers", OF_REGISTRIES),
        ] {
            let failed = failures.get(&(writer.name, kind)).map_or(0, Vec::len);
            let read = if failed == 0 { names(readers) } else { format!("{failed} of {} fail", readers.len()) };
            writeln!(table, "| {} | {kind} | {read} |", writer.name).expect("memory");
        }
    }
    table
}

/// Asserts that the documentation has the current table; with `APPFERRY_WRITE=1`, writes it.
fn is_documented(table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(TABLE);
    let page = fs::read_to_string(&path).expect("the page");
    let (before, rest) = page.split_once(BEGIN).expect("the beginning of the table");
    let (there, after) = rest.split_once(END).expect("the end of the table");
    if std::env::var_os("APPFERRY_WRITE").is_some() {
        fs::write(&path, format!("{before}{BEGIN}\n{table}\n{END}{after}")).expect("the page is written");
        return;
    }
    assert_eq!(there.trim(), table.trim(), "{TABLE} is out of date; APPFERRY_WRITE=1 writes it");
}
