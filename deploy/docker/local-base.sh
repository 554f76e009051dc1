#!/usr/bin/env bash
# A base image of Debian's own Python, where no registry is reached: deploy/docker/local-base.sh NAME
# Needs mmdebstrap and buildah. It brings this machine's certificates along, and tini.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mmdebstrap --quiet --variant=apt --include=python3,python3-venv,python-is-python3,ca-certificates,tini bookworm "$work/root.tar"
container=$(buildah from scratch)
buildah add --quiet "$container" "$work/root.tar" / >/dev/null
buildah copy --quiet "$container" /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt >/dev/null
buildah commit --quiet --rm "$container" "$1" >/dev/null
