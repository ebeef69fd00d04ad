# The service in a small image: docker build -t appferry .
FROM docker.io/library/rust:1.95-slim-bookworm AS build
WORKDIR /build
COPY . .
# What was compiled before is kept by the builder, and not by the image. Whatever is ours is newer than that.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/build/target \
    find build.rs migrations proto src -type f -exec touch {} + \
    && cargo build --release --locked --bin appferry \
    && cp target/release/appferry /appferry \
    && mkdir /state

# No shell and no package manager: the C library, and the certificates by which registries and buckets are trusted.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /appferry /usr/local/bin/appferry
# The only place that is written to, and that only by the embedded default.
COPY --from=build --chown=65532:65532 /state /var/lib/appferry
USER 65532:65532
WORKDIR /var/lib/appferry
VOLUME /var/lib/appferry
# Calls; probes and metrics, where [http] is configured.
EXPOSE 50051 8081
# The service listens on the loopback address unless it is told otherwise, with APPFERRY_SERVER__LISTEN=0.0.0.0:50051 and, where
# the network is trusted, APPFERRY_SERVER__ALLOW_PLAINTEXT=true.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/usr/local/bin/appferry", "health"]
ENTRYPOINT ["/usr/local/bin/appferry"]
CMD ["serve"]
