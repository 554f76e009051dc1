#!/usr/bin/env bash
# Makes the lock files anew. cpu.torch is kept by hand: the CPU builds of torch and torchvision are in PyTorch's own index.
set -euo pipefail
cd "$(dirname "$0")"
compile() { # OUTPUT INPUT ARGUMENTS...
  local output=$1 input=$2; shift 2
  uv pip compile "$input" --generate-hashes --no-header --no-annotate --no-emit-find-links --no-emit-index-url \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 --quiet --output-file "$output" "$@"
}
compile cpu.lock ../../pyproject.toml --extra openvino --constraint cpu.constraints \
  --no-emit-package torch --no-emit-package torchvision
sed -i -E '/^(nvidia-|cuda-|triton==)/,/[^\\]$/d' cpu.lock # what the CUDA build of torch would want
cat cpu.torch >> cpu.lock
compile cuda.lock ../../pyproject.toml --constraint cuda.constraints
compile tools.lock tools.in
