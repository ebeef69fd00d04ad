//! Compiles `proto/` with protox, so that the build needs no `protoc`. Keeps the descriptors, because reflection serves
//! them, and the authorization and error tables are read from them.

use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 5] = [
    "appferry/v1/app_sync.proto",
    "appferry/v1/authorization.proto",
    "appferry/v1/error.proto",
    "appferry/v1/image.proto",
    "google/longrunning/operations.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(FILES)?;

    // Encoded by the compiler, because `prost_types` drops custom options.
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("appferry.v1.bin");
    fs::write(descriptors, compiler.encode_file_descriptor_set())?;

    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        // The type that tonic-types encodes error details with.
        .extern_path(".google.rpc.Status", "::tonic_types::pb::Status")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
