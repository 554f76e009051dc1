"""`coatstream bench peers`: the same work through coatstream and through what else one would take for it.

1080p JPEGs in, five labels out, the same random weights, on the CPU. Each peer's settings are tried first and the best
of them kept; then every round starts, warms, measures and stops each system, forwards and backwards in turn.
What each figure means, and where it ends: README.md beside this file.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from coatstream.commands.bench.report import Report, Value, figure, machine, ratio
from coatstream.engine.cores import usable_cores
from coatstream.errors import CoatstreamError
from environment import SERVERS, Environment
from pictures import prepare_job
from systems import MEASURES, Job, LeftOut, Sample, Setting, Span, grid

OURS = "coatstream"
SYSTEMS = tuple(MEASURES)
CLIENTS = 32  # requests in flight for frames a second, at every system
TOLERANCE = 0.25  # a label's probability may be off by this share of the picture's largest; bfloat16 is by up to .2
SAME_FIRST = 0.9  # share of frames whose first label is the reference's; random weights have many near ties

# Bars, against the peer with the most frames a second: at least so many times its frames, its CPU time and its p99.
BARS = {"frames_ratio": 5.0, "cpu_ratio": 2.0, "p99_ratio": 5.0}


@dataclass
class Contender:
    """A system in one setting, and what was measured of it, one sample a round."""

    name: str
    system: str
    setting: Setting
    samples: list[Sample] = field(default_factory=list)
    left_out: str = ""

    def of(self, key: str) -> list[float]:
        return [sample[key] for sample in self.samples]

    @property
    def frames_per_s(self) -> float:
        return median(self.of("frames_per_s"))

    @property
    def cpu_ms(self) -> list[float]:
        """Of all its processes, a server of coatstream's included."""
        return [1000 * sum(sample["cpu"].values()) for sample in self.samples]

    @property
    def paced_ms(self) -> list[float]:
        return [wait for sample in self.samples for wait in sample["paced_ms"]]

    @property
    def told_setting(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.setting.items()) or "defaults"

    def labels(self, key: str) -> float:
        """Of every frame that was answered, the least of all rounds; `worst` is the most."""
        found = [sample["labels"][key] for sample in self.samples]
        return max(found) if key == "worst" else min(found)

    @property
    def agrees(self) -> bool:
        return self.labels("worst") <= TOLERANCE and self.labels("first") >= SAME_FIRST


def main() -> int:
    options = _options()
    with _folder(options.folder) as folder:
        say(f"a folder for pictures, weights and the peers' packages: {folder}")
        peers, versions = (None, {}) if options.quick else _environment(folder, options.systems)
        job = Job(
            folder=folder,
            model=options.model,
            cores=usable_cores(),
            clients=options.clients,
            peers_python=peers.python if peers else None,
            arguments=tuple(options.worker),
            variables=dict(pair.split("=", 1) for pair in options.peer_env),
        )
        mean_bytes = prepare_job(folder, job.model, job.cores)
        report = Report("peers", machine(**versions, model=job.model, clients=job.clients, jpeg_bytes=mean_bytes))
        here = [system for system in options.systems if system in (OURS, "naive") or (peers and _has(peers, system))]
        return _measure(job, here, options, report)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="coatstream bench peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="0: only find the peers' best settings")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="of each closed loop; half load takes 1.5 times that"
    )
    parser.add_argument("--systems", type=lambda text: text.split(","), default=list(SYSTEMS))
    parser.add_argument("--folder", type=Path, help="kept for the next run: packages, and the settings found best")
    parser.add_argument("--tune", action="store_true", help="try the peers' settings again, though the folder has them")
    parser.add_argument("--quick", action="store_true", help="one short round of coatstream and the naive loop")
    parser.add_argument("--model", default="coat_lite_mini.in1k")
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--peer-env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--worker", action="append", default=[], help="one more argument of `coatstream run`")
    options = parser.parse_args()
    if unknown := [system for system in options.systems if system not in SYSTEMS]:
        parser.error(f"no such system: {', '.join(unknown)} (there are {', '.join(SYSTEMS)})")
    if wrong := [pair for pair in options.peer_env if "=" not in pair]:
        parser.error(f"--peer-env is NAME=VALUE, not {wrong[0]}")
    if options.quick:
        options.rounds, options.systems = 1, [OURS, "naive"]
    return options


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """The user's, which stays; or a temporary one, which goes."""
    if given:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="peers-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _environment(folder: Path, systems: list[str]) -> tuple[Environment | None, dict[str, str]]:
    """The peers' packages, as far as they can be had; none where no server is asked for."""
    if not set(systems) & set(SERVERS):
        return None, {}
    environment = Environment(folder / "environment")
    try:
        if not environment.made:
            say("making the peers' environment: about 0.6 GB and a minute, once per folder")
        if failed := environment.make():
            say(failed)
        return environment, environment.versions()
    except OSError as error:
        say(f"the peers' environment cannot be made: {error}")
        return None, {}


def _has(environment: Environment, system: str) -> bool:
    there = environment.has(SERVERS[system])
    if not there:
        say(f"{system} is left out: its package cannot be used here")
    return there


# ---- measuring


def _measure(job: Job, systems: list[str], options: argparse.Namespace, report: Report) -> int:
    span = Span(warm=min(1.5, options.seconds / 2), closed=options.seconds, paced=1.5 * options.seconds)
    settings = _settings(job, systems, options, report)
    contenders = [Contender(name, name.partition("_")[0], setting) for name, setting in settings.items()]
    if OURS in systems and options.rounds and not options.quick:
        # Its first start converts and chooses; the rounds see warm caches, as every later start does.
        ours = next(contender for contender in contenders if contender.name == OURS)
        if first := _sample(job, ours, Span(0.1, 0.1, 0.0)):
            say(f"{OURS}'s first start, with no cache of its own, took {first['start_s']:.1f} s; this was not counted")
        ours.samples.clear()
    began = time.monotonic()
    for number in range(options.rounds):
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            if not contender.left_out:
                _sample(job, contender, span)
        took = (time.monotonic() - began) / (number + 1)
        say(f"round {number + 1} of {options.rounds}; about {took * (options.rounds - number - 1) / 60:.0f} min left")
    return _report(contenders, report)


def _sample(job: Job, contender: Contender, span: Span) -> Sample | None:
    """One measurement; a system that fails is left out of all later ones, with a line."""
    try:
        sample = MEASURES[contender.system](job, contender.setting, span)
    except (LeftOut, CoatstreamError) as error:
        contender.left_out = str(error)
        say(f"{contender.name} is left out: {error}")
        return None
    contender.samples.append(sample)
    say(
        f"{contender.name:12} {sample['frames_per_s']:7.1f} frames/s {1000 * sum(sample['cpu'].values()):7.1f} CPU ms"
        + (f" {_percentile(sample['paced_ms'], 99):7.0f} ms p99" if sample["paced_ms"] else "")
        + f"   {contender.told_setting}"
    )
    return sample


def _settings(job: Job, systems: list[str], options: argparse.Namespace, report: Report) -> dict[str, Setting]:
    """Each contender's setting: the naive loop also as it is written first, with batches of one.

    A few are tried on this machine, shortly and one after the other; what was best is kept in the folder.
    """
    kept = job.folder / "settings.json"
    known = json.loads(kept.read_text()) if kept.is_file() and not options.tune else {}
    chosen: dict[str, Setting] = {}
    for system in systems:
        tried = grid(system, job.cores)
        key = f"{system} {job.model} {job.cores} {json.dumps(tried)}"
        if key not in known:
            known[key] = tried[0] if len(tried) == 1 or options.quick else _best(job, system, tried, options, report)
            if not options.quick:
                kept.write_text(json.dumps(known, indent=1))
        if system == "naive":
            chosen["naive_b1"] = tried[0]
            if known[key] != tried[0]:
                chosen[f"naive_b{known[key]['batch']}"] = known[key]
        else:
            chosen[system] = known[key]
    return chosen


def _best(job: Job, system: str, tried: list[Setting], options: argparse.Namespace, report: Report) -> Setting:
    contenders = [Contender(f"{system}?", system, setting) for setting in tried]
    for contender in contenders:
        _sample(job, contender, Span(min(1.5, options.seconds / 2), 0.7 * options.seconds, 0.0))
    there = [contender for contender in contenders if contender.samples]
    for contender in there:
        report.add(case=f"tried_{system}", setting=contender.told_setting, frames_per_s=contender.frames_per_s)
    return max(there, key=lambda contender: contender.frames_per_s).setting if there else tried[0]


# ---- reporting


def _report(contenders: list[Contender], report: Report) -> int:
    for contender in contenders:
        report.add(**_row(contender))
    measured = [contender for contender in contenders if contender.samples and not contender.left_out]
    ours = next((contender for contender in measured if contender.name == OURS), None)
    peers = [contender for contender in measured if contender.name != OURS]
    best = max(peers, key=lambda peer: peer.frames_per_s, default=None)
    for peer in peers if ours else ():
        report.add(**_against(ours, peer, best=peer is best))
    report.show()
    strangers = [contender.name for contender in measured if not contender.agrees]
    if strangers:
        print(f"coatstream: other labels than the reference's: {', '.join(strangers)}", file=sys.stderr)
    return int(bool(strangers) or any(contender.name == OURS for contender in contenders if contender.left_out))


def _row(contender: Contender) -> dict[str, Value]:
    if contender.left_out or not contender.samples:
        return {"case": contender.name, "setting": contender.told_setting, "left_out": contender.left_out}
    servers = [1000 * sample["cpu"]["server"] for sample in contender.samples if "server" in sample["cpu"]]
    paced = contender.paced_ms
    return {
        "case": contender.name,
        "setting": contender.told_setting,
        "frames_per_s": figure(contender.of("frames_per_s")),
        "cpu_ms_per_frame": figure(contender.cpu_ms),
        "server_cpu_ms": figure(servers) if servers else None,
        "half_load_p50_ms": _percentile(paced, 50) if paced else None,
        "half_load_p99_ms": _percentile(paced, 99) if paced else None,
        "half_load_frames": len(paced),
        "full_load_p50_ms": figure(contender.of("busy_ms")),
        "server_memory_mb": max(sample["memory"]["server"] for sample in contender.samples) if servers else None,
        "memory_mb": figure([sum(sample["memory"].values()) for sample in contender.samples]),
        "start_s": figure(contender.of("start_s")),
        "same_first_label": contender.labels("first"),
        "same_five_labels": contender.labels("five"),
        "probability_off": contender.labels("worst"),
        "labels_agree": str(contender.agrees).lower(),
    }


def _against(ours: Contender, peer: Contender, *, best: bool) -> dict[str, Value]:
    """How many times better, round by round; `bars` only against the best peer."""
    ratios: dict[str, Value] = {
        "frames_ratio": ratio(ours.of("frames_per_s"), peer.of("frames_per_s")),
        "cpu_ratio": ratio(peer.cpu_ms, ours.cpu_ms),
    }
    if ours.paced_ms and peer.paced_ms:
        ratios["p99_ratio"] = _percentile(peer.paced_ms, 99) / _percentile(ours.paced_ms, 99)
    held = {name: _middle(value) >= BARS[name] for name, value in ratios.items()}
    missed = [f"{name} {BARS[name]:g}" for name, well in held.items() if not well]
    bars = ("missed: " + ", ".join(missed) if missed else "held") if best else None
    return {"case": f"against_{peer.name}", **ratios, "bars": bars}


def _middle(value: Any) -> float:
    return float(getattr(value, "median", value))


def _percentile(samples: list[float], percent: int) -> float:
    """By linear interpolation, within what was measured."""
    return quantiles(samples, n=100, method="inclusive")[percent - 1]


def say(text: str) -> None:
    """For whoever waits; stdout is for the JSON lines."""
    print(text, file=sys.stderr, flush=True)


def run(call: Callable[[], int]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the systems would outlive us
    try:
        return call()
    except CoatstreamError as error:
        say(f"coatstream: {error}")
        return 1
    except KeyboardInterrupt:
        say("coatstream: interrupted")
        return 1


if __name__ == "__main__":
    sys.exit(run(main))
