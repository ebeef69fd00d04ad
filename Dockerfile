# The service in a small image: docker build -t appferry .
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /build
# The dependencies alone, with nothing of the program: this layer is built again only when they change.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
COPY migrations/Cargo.toml migrations/
RUN mkdir -p src benches/accept benches/carry benches/chaos benches/queue migrations/src \
    && echo 'fn main() {}' | tee build.rs src/main.rs benches/accept/main.rs benches/carry/main.rs benches/chaos/main.rs \
       benches/queue/main.rs benches/memory.rs > /dev/null \
    && touch src/lib.rs migrations/src/lib.rs \
    && cargo build --release --locked --bin appferry \
    && rm -r build.rs src benches migrations/src
COPY build.rs ./
COPY proto proto
COPY migrations migrations
COPY benches benches
COPY src src
# Newer than what was built of the empty program.
RUN touch build.rs src/main.rs src/lib.rs migrations/src/lib.rs && cargo build --release --locked --bin appferry

FROM debian:bookworm-slim
# Registries and buckets are trusted by the system's certificates.
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/appferry appferry
COPY --from=build /build/target/release/appferry /usr/local/bin/appferry
USER 10001
WORKDIR /var/lib/appferry
VOLUME /var/lib/appferry
EXPOSE 50051
# The service listens on the loopback address unless it is told otherwise, with APPFERRY_SERVER__LISTEN=0.0.0.0:50051 and, where
# the network is trusted, APPFERRY_SERVER__ALLOW_PLAINTEXT=true.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["appferry", "health"]
ENTRYPOINT ["appferry"]
CMD ["serve"]
