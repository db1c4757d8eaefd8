# The C libraries (librdkafka, OpenSSL, curl) are built from source with everything else, so the
# runtime image needs nothing but libc and the certificate authorities.
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
    && install target/release/sessionizer /usr/local/bin/sessionizer

FROM debian:bookworm-slim
# The newest certificate authorities are the right ones, so no version is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin sessionizer
COPY --from=build /usr/local/bin/sessionizer /usr/local/bin/sessionizer
# By number, so that Kubernetes can see that it is not root.
USER 10001
# Asks the job in this container, by SESSIONIZER_HTTP if that is set. Whoever runs another command
# in it, or --http with another port, says --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=6s --start-period=90s --retries=3 CMD ["sessionizer", "health"]
ENTRYPOINT ["sessionizer"]
