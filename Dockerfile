# The C libraries (librdkafka, OpenSSL, curl) are built from source with everything else, so the
# runtime image needs nothing but glibc and the certificate authorities. That of distroless has no
# shell; for one to look around with:
#     docker build --build-arg RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:debug-nonroot .
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM rust:1-bookworm AS build
# With OIDC, librdkafka is built with cmake. Any version serves.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends cmake && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# For `--version` and the log, because there is no repository in here:
# docker build --build-arg BUILD_COMMIT="$(git rev-parse --short=10 HEAD)" .
ARG BUILD_COMMIT=
# The caches outlive the layer; the program has to be copied out of them in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --features oidc --bin sessionizer \
    && install --strip target/release/sessionizer /usr/local/bin/sessionizer

FROM ${RUNTIME_IMAGE}
COPY --from=build /usr/local/bin/sessionizer /usr/local/bin/sessionizer
COPY LICENSE THIRD_PARTY /usr/share/doc/sessionizer/
# By number, so that Kubernetes can see that it is not root.
USER 10001
# That of Cargo.toml.
ARG VERSION=0.1.0
ARG BUILD_COMMIT=
LABEL org.opencontainers.image.title="sessionizer" \
    org.opencontainers.image.description="Sessions from a Kafka topic of web events into PostgreSQL, exactly once" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$BUILD_COMMIT" \
    org.opencontainers.image.licenses="Apache-2.0"
# Asks the job in this container, by SESSIONIZER_HTTP if that is set, and expects the one that
# KAFKA_GROUP or SESSIONIZER_JOB names. Whoever runs another command in it, or gives --http with
# another port or --job as a flag, says --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=6s --start-period=90s --retries=3 CMD ["sessionizer", "health"]
ENTRYPOINT ["sessionizer"]
