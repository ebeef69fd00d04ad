//! The programs that the service is compared with: skopeo, one copy per region, and curl, one upload per region, all
//! concurrently.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Instant,
};

use super::{
    harness::registry::Registry,
    setup::{Measured, Result, Setup, cpu_of_children},
};

pub fn run_all(commands: Vec<Command>) -> Result<Measured> {
    let before = cpu_of_children();
    let started = Instant::now();
    let children: std::io::Result<Vec<Child>> =
        commands.into_iter().map(|mut command| command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()).collect();
    for child in children? {
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
    }
    Ok(Measured { wall: started.elapsed(), cpu: cpu_of_children().saturating_sub(before), resident_kib: 0 })
}

impl Setup {
    pub async fn skopeo(&self, regions: usize) -> Result<Measured> {
        self.skopeo_to(&self.registries(regions).await)
    }

    pub fn skopeo_to(&self, registries: &[Registry]) -> Result<Measured> {
        let copy = |registry: &Registry| {
            let mut command = Command::new("skopeo");
            command.args(["copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false"]);
            command.arg(self.image()).arg(registry.docker("apps/gromacs:2026.1"));
            command
        };
        run_all(registries.iter().map(copy).collect())
    }

    /// Uploads the blobs of the image. Opening the uploads is not measured.
    pub async fn curl(&self, regions: usize) -> Result<Measured> {
        let registries = self.registries(regions).await;
        let client = reqwest::Client::new();
        let mut commands = Vec::new();
        for registry in &registries {
            let mut command = Command::new("curl");
            command.args(["--silent", "--show-error", "--fail"]);
            for (place, blob) in fs::read_dir(self.layout.join("blobs/sha256"))?.enumerate() {
                let path = blob?.path();
                let begun =
                    client.post(format!("http://{}/v2/apps/gromacs/blobs/uploads/", registry.address)).send().await?;
                let location = begun.headers().get("location").ok_or("a Location")?.to_str()?.to_owned();
                let hex = path.file_name().ok_or("a name")?.to_string_lossy().into_owned();
                if place > 0 {
                    command.arg("--next").args(["--silent", "--show-error", "--fail"]);
                }
                command.arg("--upload-file").arg(&path).arg(format!("{location}&digest=sha256:{hex}"));
            }
            commands.push(command);
        }
        run_all(commands)
    }
}
