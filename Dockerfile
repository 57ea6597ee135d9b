# One image: both binaries, static, and nft.
#
#   docker build -t easynet:dev .                       from source
#   docker build -t easynet:dev --target prebuilt .     from what `make image` left in dist/root; needs no base image
#
# `make image` writes the same image without any engine.
ARG RUST=rust:1.95-bookworm
ARG DEBIAN=debian:bookworm-slim

FROM scratch AS prebuilt
COPY dist/root/tools/ /
COPY dist/root/easynet/ /
ENV PATH=/bin:/usr/sbin
ENTRYPOINT ["/bin/easynet"]

FROM ${RUST} AS build
WORKDIR /src
COPY . .
RUN RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --locked --profile dist --target "$(uname -m)-unknown-linux-gnu" -p sidecar -p operator --bins \
 && mkdir /out && cp target/*/dist/easynet target/*/dist/easynet-operator /out/

FROM ${DEBIAN} AS root
RUN apt-get update && apt-get install -y --no-install-recommends binutils nftables
COPY image/root /image-root
COPY --from=build /out /out
RUN /image-root /out /root-of-image

FROM scratch
COPY --from=root /root-of-image/tools/ /
COPY --from=root /root-of-image/easynet/ /
ENV PATH=/bin:/usr/sbin
ENTRYPOINT ["/bin/easynet"]
