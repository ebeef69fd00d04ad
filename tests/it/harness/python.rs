//! Python programs, with the packages that `scripts/tools` installs.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

/// Runs a Python program with `input` on standard input, and returns its standard output.
pub async fn python(program: &'static [&'static str], input: String) -> Vec<u8> {
    let run = move || {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut python = Command::new(root.join(".tools/bin/python"))
            .args(program)
            .current_dir(root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python runs: source scripts/tools");
        let mut pipe = python.stdin.take().expect("it is piped");
        pipe.write_all(input.as_bytes()).expect("it reads");
        drop(pipe);
        python.wait_with_output().expect("it ends")
    };
    let output = tokio::task::spawn_blocking(run).await.expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
