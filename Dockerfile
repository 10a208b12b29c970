# Both binaries in one image; the command chooses the role: `requestor serve` or `provider serve`.

# Any Rust image from 1.95 on; RUST=1.95.0 builds with exactly the pinned toolchain.
ARG RUST=1

FROM rust:${RUST}-slim-trixie AS builder
# How it is compiled: `docker compose build --build-arg PROFILE=quick` takes less than two thirds of the time and makes slower programs.
ARG PROFILE=release
WORKDIR /src
COPY . .
# The caches outlive the layer, so a change to the sources compiles only this workspace. Cargo compares modification
# times, and the cached target may come from a newer checkout: touching the sources rules out a stale binary.
RUN --mount=type=cache,id=arr-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=arr-target,target=/src/target,sharing=locked \
    find crates -name '*.rs' -exec touch {} + \
 && cargo build --profile "$PROFILE" --locked -p requestor -p provider \
 && install -D -t /out "target/$PROFILE/requestor" "target/$PROFILE/provider"

FROM debian:trixie-slim
LABEL org.opencontainers.image.title="arr" \
      org.opencontainers.image.description="Asynchronous request-reply over RabbitMQ: requestor and provider" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/debian:trixie-slim"
# A fresh named volume takes its owner from this directory; created as root, it would refuse the databases.
RUN install -d -o 65532 -g 65532 -m 0750 /var/lib/arr
# amqps verifies certificates, and the slim base has no authorities of its own.
COPY --from=builder /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=builder /out/ /usr/local/bin/
WORKDIR /var/lib/arr
# By number, so that an orchestrator can see that it is not root.
USER 65532:65532
# The binaries drain on SIGTERM; as process 1, with no shell between, they receive it.
STOPSIGNAL SIGTERM
CMD ["requestor", "--help"]
