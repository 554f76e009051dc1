#!/usr/bin/env bash
# Makes the lock files anew: deploy/docker/lock.sh [more arguments of uv pip compile, such as --find-links FOLDER]
# cpu.lock takes torch from PyTorch's own index of CPU builds, since the default index has the CUDA build for x86-64.
set -euo pipefail
cd "$(dirname "$0")"
compile() { # OUTPUT INPUT ARGUMENTS...
  local output=$1 input=$2; shift 2
  uv pip compile "$input" --generate-hashes --no-header --no-annotate --no-emit-find-links --no-emit-index-url \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 --quiet --output-file "$output" "$@"
}
compile cpu.lock ../../pyproject.toml --extra openvino --constraint cpu.constraints "$@"
compile cuda.lock ../../pyproject.toml --constraint cuda.constraints
compile tools.lock tools.in
