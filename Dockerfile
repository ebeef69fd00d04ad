# The service in a small image: docker build -t appferry .
FROM docker.io/library/rust:1.95-slim-bookworm AS build
WORKDIR /build
COPY . .
# The builder caches compiled dependencies outside the image. Touching our sources makes them newer than the cache.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/build/target \
    find build.rs crates migrations proto src -type f -exec touch {} + \
    && cargo build --release --locked --bin appferry \
    && cp target/release/appferry /appferry \
    && mkdir /state

# No shell and no package manager: only the C library, and the certificates for registries and buckets.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /appferry /usr/local/bin/appferry
# The only writable directory, used only by the embedded default.
COPY --from=build --chown=65532:65532 /state /var/lib/appferry
USER 65532:65532
WORKDIR /var/lib/appferry
VOLUME /var/lib/appferry
# Calls; probes and metrics, if [http] is configured.
EXPOSE 50051 8081
# By default the service listens on the loopback address. Set APPFERRY_SERVER__LISTEN=0.0.0.0:50051 and, if the network is
# trusted, APPFERRY_SERVER__ALLOW_PLAINTEXT=true.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/usr/local/bin/appferry", "health"]
ENTRYPOINT ["/usr/local/bin/appferry"]
CMD ["serve"]
