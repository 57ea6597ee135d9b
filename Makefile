# What README and CI call. Each target installs what it lacks from the package registries and says so.

CARGO ?= cargo
TOOLS := cc:gcc ip:iproute2 nft:nftables ping:iputils-ping iperf3:iperf3 conntrack:conntrack tc:iproute2

.PHONY: demo demo-clusters demo-mesh test lint bench bench-scale image chart prepare prepare-kube root build build-release clean

## demo: two Kubernetes clusters behind NATs become one network by helm install, kubectl apply and join, explained line by line
demo: demo-clusters

## demo-mesh: the short one without Kubernetes: two sites behind NATs and a public server become one network, and what happens to it
demo-mesh: root prepare build-release
	@EASYNET_BIN=$(CURDIR)/target/release/easynet target/release/demo

## demo-clusters: the same as demo
demo-clusters: root prepare
	@echo "building the release (the first time takes some minutes)"
	$(CARGO) build --release --workspace --bins
	@EASYNET_BIN=$(CURDIR)/target/release/easynet target/release/demo_clusters

## test: everything there is; the first time it builds Kubernetes too, which takes some minutes
test: root prepare prepare-kube lint build
	@echo "running the tests (pure crates, simulator, then the lab in network namespaces)"
	$(CARGO) test --workspace --no-fail-fast -- --quiet

## lint: formatting and clippy, warnings are errors
lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

## bench: the targets of docs/performance.md, side by side with raw veth in one run
bench: root prepare build-release
	@EASYNET_BIN=$(CURDIR)/target/release/easynet target/release/bench

## bench-scale: two thousand nodes against one operator and a real API server, with times as a machine has them that does nothing else for two minutes
bench-scale: root prepare prepare-kube build
	EASYNET_TEST_STRICT_TIMES=1 $(CARGO) test --workspace --test operator_scale -- --nocapture

## image: dist/easynet-image.tar, a docker-archive named easynet:dev, and into a container engine if one answers
image: STATIC := $(shell uname -m)-unknown-linux-gnu
image:
	@tests/scripts/prepare cc:gcc nft:nftables readelf:binutils
	@echo "building static binaries (the first time takes some minutes)"
	@RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --profile dist --target $(STATIC) -p sidecar -p operator --bins
	@image/root target/$(STATIC)/dist dist/root
	@image/pack dist/root easynet:dev dist/easynet-image.tar
	@image/check dist/easynet-image.tar
	@image/load dist/easynet-image.tar

## chart: dist/easynet-VERSION.tgz, for helm install
chart:
	@tests/scripts/prepare npm:npm python3:python3 pip3:python3-pip
	@mkdir -p dist
	@$$(tests/scripts/kube-tools)/bin/helm package --destination dist charts/easynet

build:
	@echo "building (the first time takes some minutes)"
	$(CARGO) build --workspace --all-targets

build-release:
	@echo "building the release (the first time takes some minutes)"
	$(CARGO) build --release -p sidecar -p tests --bins --no-default-features

prepare:
	@tests/scripts/prepare $(TOOLS)
	@tests/scripts/prepare-cluster nodes

prepare-kube:
	@tests/scripts/prepare npm:npm python3:python3 pip3:python3-pip
	@tests/scripts/kube-tools --validate >/dev/null

root:
	@[ "$$(id -u)" -eq 0 ] || { echo "needs root: it makes network namespaces and TUN devices of its own. Run it with sudo." >&2; exit 1; }

clean:
	$(CARGO) clean
