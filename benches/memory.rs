//! Peak memory of `appferry demo --image FILE --exit` with a file of 4 GiB, relative to its limit of 128 MiB; and its
//! duration, relative to four copies of the file by `cp`, each synced to disk.
//!
//! The demo reads the file to compute its digest, writes it four times (the home region and three others), reads each
//! copy again before publishing it, and verifies each once more at the end; of these five reads, `cp` does one.
//!
//! Prints `ratio demo_resident_of_128_mib VALUE` and `ratio demo_time_of_cp VALUE`. `-- --mib N` sets another size.

use std::{
    error::Error,
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// The memory limit of the demo in KiB.
const BOUND_KIB: u64 = 128 << 10;
/// The sampling interval. The kernel tracks the peak, so sampling misses only memory that is allocated after the last
/// sample.
const LOOK: Duration = Duration::from_millis(20);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--mib").skip(1);
    let mib: usize = arguments.next().map_or(Ok(4_096), |text| text.parse())?;
    let directory = tempfile::tempdir()?;
    let disk = directory.path().join("disk.img");
    write(&disk, mib)?;

    let started = Instant::now();
    for copy in 0..4 {
        let to = directory.path().join(format!("copy-{copy}"));
        run(Command::new("cp").arg(&disk).arg(&to))?;
        run(Command::new("sync").arg(&to))?;
    }
    let floor = started.elapsed();
    for copy in 0..4 {
        fs::remove_file(directory.path().join(format!("copy-{copy}")))?;
    }

    let started = Instant::now();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_appferry"))
        .args(["demo", "--exit", "--image"])
        .arg(&disk)
        .current_dir(directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut peak = 0;
    let status = loop {
        peak = peak.max(resident_peak(demo.id()).unwrap_or(0));
        match demo.try_wait()? {
            Some(status) => break status,
            None => pause(),
        }
    };
    let took = started.elapsed();
    if !status.success() || peak == 0 {
        return Err(format!("the demo ended with {status}").into());
    }
    println!("{mib} MiB to four regions: {} MiB resident at most, {took:.1?}; four times cp: {floor:.1?}", peak >> 10);
    println!("ratio demo_resident_of_128_mib {:.3}", ratio(peak, BOUND_KIB));
    println!("ratio demo_time_of_cp {:.3}", took.as_secs_f64() / floor.as_secs_f64());
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "there is no runtime here, and nothing else to wait for")]
fn pause() {
    std::thread::sleep(LOOK);
}

fn ratio(part: u64, whole: u64) -> f64 {
    let exact = |number: u64| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
    exact(part) / exact(whole)
}

/// Writes a file in which no two mebibytes are equal.
fn write(path: &Path, mib: usize) -> Result<()> {
    let mut file = File::create(path)?;
    let mut block: Vec<u8> = (0..1usize << 20).map(|n| u8::try_from((n * 31 + n / 253) % 251).unwrap_or(0)).collect();
    for number in 0..mib {
        block[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} ended with {status}").into()) }
}

/// Returns the peak resident memory of a process in KiB (proc(5), `VmHWM`).
fn resident_peak(id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()
}
