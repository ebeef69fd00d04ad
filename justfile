# Everyday commands: `just` lists them, `just NAME` runs one (https://just.systems).

set shell := ["bash", "-euo", "pipefail", "-c"]

# Lists the commands.
default:
    @just --list

# Compiles everything, tests included.
check:
    cargo check --workspace --all-targets --locked

# Formats the code and the contract.
format:
    source scripts/tools && cargo fmt --all && buf format --write

# Runs the checks that run no test.
lint:
    scripts/lint

# Runs unit tests whose name contains NAME.
unit NAME="":
    cargo test --workspace --locked --lib -- {{ NAME }}

# Runs integration tests whose name contains NAME, with the tools and databases that they need.
it NAME="":
    source scripts/tools && source scripts/databases && cargo test --locked --test it -- {{ NAME }}

# Writes the generated reference documents.
reference:
    APPFERRY_WRITE=1 cargo test --locked --test it -- reference

# Runs one bench.
bench NAME:
    cargo bench --locked --bench {{ NAME }}

# Starts the embedded service, copies an image, and ends.
demo:
    cargo run --locked -- demo --exit

# Runs every check and every test.
test:
    scripts/test
