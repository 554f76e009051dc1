"""`python -m bench peers`: the same work through coatstream and through what else one would take for it.

1080p JPEGs in, five labels out, the same random weights, on the CPU. Each peer's settings are tried first and the best
of them kept; then every round starts, warms, measures and stops each system, forwards and backwards in turn.
What each figure means, and where it ends: README.md beside this file.
"""

import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from coatstream.commands.bench.report import Report, Value, figure, machine, percentile, ratio
from coatstream.commands.options import settings_of
from coatstream.engine.cores import usable_cores
from coatstream.errors import CoatstreamError, ConfigError

from bench.peers.environment import SERVERS, Environment
from bench.peers.pictures import prepare_job
from bench.peers.systems import MEASURES, Job, NotMeasurable, Sample, Setting, Span, grid

OURS = "coatstream"
SYSTEMS = tuple(MEASURES)
CLIENTS = 32  # requests in flight for frames a second, at every system
TOLERANCE = 0.25  # a label's probability may be off by this share of the picture's largest; bfloat16 is by up to .2
SAME_FIRST = 0.9  # share of frames whose first label is the reference's; random weights have many near ties

# Bars, against the peer with the most frames a second: at least so many times its frames, its CPU time and its p99.
BARS = {"frames_ratio": 5.0, "cpu_ratio": 2.0, "p99_ratio": 5.0}


@dataclass
class Competitor:
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
        found = [float(sample["labels"][key]) for sample in self.samples]
        return max(found) if key == "worst" else min(found)

    @property
    def agrees(self) -> bool:
        return self.labels("worst") <= TOLERANCE and self.labels("first") >= SAME_FIRST


@dataclass(frozen=True)
class Options:
    """What is compared, and how.

    rounds     0: only find the peers' best settings
    seconds    of each closed loop; half load takes 1.5 times that
    folder     kept for the next run: packages, and the settings found best; None: a temporary one
    tune       try the peers' settings again, though the folder has them
    quick      one short round of coatstream and the naive loop
    variables  of the peers' environment
    arguments  of `coatstream run`
    """

    rounds: int
    seconds: float
    systems: tuple[str, ...]
    folder: Path | None
    tune: bool
    quick: bool
    model: str
    clients: int = CLIENTS
    variables: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


def main(
    rounds: Annotated[int, typer.Option(help="Rounds of all systems; 0 = only find the peers' settings.", min=0)] = 5,
    seconds: Annotated[float, typer.Option(help="Of each run at full load.", min=0.1, max=60)] = 4.0,
    systems: Annotated[str, typer.Option(metavar="LIST", help="Which of them.")] = ",".join(SYSTEMS),
    folder: Annotated[
        Path | None,
        typer.Option(help="Kept for the next run: packages, settings. Default: a temporary one.", show_default=False),
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Find the peers' settings anew.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="One round of coatstream and the naive loop.")] = False,
    model: Annotated[str, typer.Option(metavar="NAME", help="Any timm classifier.")] = "coat_lite_mini.in1k",
    peer_env: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the peers only.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="For coatstream's worker only.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="For coatstream's worker only.")
    ] = None,
) -> int:
    if sys.platform != "linux":
        raise ConfigError("this benchmark reads /proc to count all processes of a system: it runs on Linux only")
    settings_of(config, set_, {})  # raises what each worker would only log
    wanted = ("coatstream", "naive") if quick else tuple(systems.split(","))
    if unknown := [system for system in wanted if system not in SYSTEMS]:
        raise ConfigError(f"--systems: no such system: {', '.join(unknown)} (there are {', '.join(SYSTEMS)})")
    if wrong := [pair for pair in peer_env or [] if "=" not in pair]:
        raise ConfigError(f"--peer-env is NAME=VALUE, not {wrong[0]}")
    arguments = [f"--config={config.resolve()}"] if config else []
    arguments += [f"--set={pair}" for pair in set_ or []]
    variables = dict(pair.split("=", 1) for pair in peer_env or [])
    rounds = 1 if quick else rounds
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the systems would outlive us
    return compare(
        Options(rounds, seconds, wanted, folder, tune, quick, model, variables=variables, arguments=tuple(arguments))
    )


def compare(options: Options) -> int:
    """0 where all that was measured gave the reference's labels, else 1."""
    with _folder(options.folder) as folder:
        say(f"a folder for pictures, weights and the peers' packages: {folder}")
        peers, versions = (None, {}) if options.quick else _environment(folder, options.systems)
        job = Job(
            folder=folder,
            model=options.model,
            cores=usable_cores(),
            clients=options.clients,
            peers_python=peers.python if peers else None,
            arguments=options.arguments,
            variables=options.variables,
        )
        mean_bytes = prepare_job(folder, job.model, job.cores)
        report = Report("peers", machine(**versions, model=job.model, clients=job.clients, jpeg_bytes=mean_bytes))
        here = [system for system in options.systems if system in (OURS, "naive") or (peers and _has(peers, system))]
        return _measure(job, here, options, report)


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


def _environment(folder: Path, systems: Sequence[str]) -> tuple[Environment | None, dict[str, str]]:
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


def _measure(job: Job, systems: list[str], options: Options, report: Report) -> int:
    span = Span(warm=min(1.5, options.seconds / 2), closed=options.seconds, paced=1.5 * options.seconds)
    settings = _settings(job, systems, options, report)
    competitors = [Competitor(name, name.partition("_")[0], setting) for name, setting in settings.items()]
    if OURS in systems and options.rounds and not options.quick:
        # Its first start converts and chooses; the rounds see warm caches, as every later start does.
        ours = next(competitor for competitor in competitors if competitor.name == OURS)
        if first := _sample(job, ours, Span(0.1, 0.1, 0.0)):
            say(f"{OURS}'s first start, with no cache of its own, took {first['start_s']:.1f} s; this was not counted")
        ours.samples.clear()
    began = time.monotonic()
    for number in range(options.rounds):
        for competitor in competitors if number % 2 == 0 else reversed(competitors):
            if not competitor.left_out:
                _sample(job, competitor, span)
        took = (time.monotonic() - began) / (number + 1)
        say(f"round {number + 1} of {options.rounds}; about {took * (options.rounds - number - 1) / 60:.0f} min left")
    return _report(competitors, report)


def _sample(job: Job, competitor: Competitor, span: Span) -> Sample | None:
    """One measurement; a system that fails is left out of all later ones, with a line."""
    try:
        sample: Sample = MEASURES[competitor.system](job, competitor.setting, span)
    except (NotMeasurable, CoatstreamError) as error:
        competitor.left_out = str(error)
        say(f"{competitor.name} is left out: {error}")
        return None
    competitor.samples.append(sample)
    say(
        f"{competitor.name:12} {sample['frames_per_s']:7.1f} frames/s {1000 * sum(sample['cpu'].values()):7.1f} CPU ms"
        + (f" {percentile(sample['paced_ms'], 99):7.0f} ms p99" if sample["paced_ms"] else "")
        + f"   {competitor.told_setting}"
    )
    return sample


def _settings(job: Job, systems: list[str], options: Options, report: Report) -> dict[str, Setting]:
    """Each competitor's setting: the naive loop also as it is written first, with batches of one.

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


def _best(job: Job, system: str, tried: list[Setting], options: Options, report: Report) -> Setting:
    competitors = [Competitor(f"{system}?", system, setting) for setting in tried]
    for competitor in competitors:
        _sample(job, competitor, Span(min(1.5, options.seconds / 2), 0.7 * options.seconds, 0.0))
    there = [competitor for competitor in competitors if competitor.samples]
    for competitor in there:
        report.add(case=f"tried_{system}", setting=competitor.told_setting, frames_per_s=competitor.frames_per_s)
    return max(there, key=lambda competitor: competitor.frames_per_s).setting if there else tried[0]


# ---- reporting


def _report(competitors: list[Competitor], report: Report) -> int:
    for competitor in competitors:
        report.add(**_row(competitor))
    measured = [competitor for competitor in competitors if competitor.samples and not competitor.left_out]
    ours = next((competitor for competitor in measured if competitor.name == OURS), None)
    peers = [competitor for competitor in measured if competitor.name != OURS]
    best = max(peers, key=lambda peer: peer.frames_per_s, default=None)
    if ours is not None:
        for peer in peers:
            report.add(**_against(ours, peer, best=peer is best))
    report.show()
    strangers = [competitor.name for competitor in measured if not competitor.agrees]
    if strangers:
        print(f"coatstream: other labels than the reference's: {', '.join(strangers)}", file=sys.stderr)
    return int(bool(strangers) or any(competitor.name == OURS for competitor in competitors if competitor.left_out))


def _row(competitor: Competitor) -> dict[str, Value]:
    if competitor.left_out or not competitor.samples:
        return {"case": competitor.name, "setting": competitor.told_setting, "left_out": competitor.left_out}
    servers = [1000 * sample["cpu"]["server"] for sample in competitor.samples if "server" in sample["cpu"]]
    paced = competitor.paced_ms
    return {
        "case": competitor.name,
        "setting": competitor.told_setting,
        "frames_per_s": figure(competitor.of("frames_per_s")),
        "cpu_ms_per_frame": figure(competitor.cpu_ms),
        "server_cpu_ms": figure(servers) if servers else None,
        "half_load_p50_ms": percentile(paced, 50) if paced else None,
        "half_load_p99_ms": percentile(paced, 99) if paced else None,
        "half_load_frames": len(paced),
        "full_load_p50_ms": figure(competitor.of("busy_ms")),
        "server_memory_mb": max(sample["memory"]["server"] for sample in competitor.samples) if servers else None,
        "memory_mb": figure([sum(sample["memory"].values()) for sample in competitor.samples]),
        "start_s": figure(competitor.of("start_s")),
        "same_first_label": competitor.labels("first"),
        "same_five_labels": competitor.labels("five"),
        "probability_off": competitor.labels("worst"),
        "labels_agree": str(competitor.agrees).lower(),
    }


def _against(ours: Competitor, peer: Competitor, *, best: bool) -> dict[str, Value]:
    """How many times better, round by round; `bars` only against the best peer."""
    ratios: dict[str, Value] = {
        "frames_ratio": ratio(ours.of("frames_per_s"), peer.of("frames_per_s")),
        "cpu_ratio": ratio(peer.cpu_ms, ours.cpu_ms),
    }
    if ours.paced_ms and peer.paced_ms:
        ratios["p99_ratio"] = percentile(peer.paced_ms, 99) / percentile(ours.paced_ms, 99)
    held = {name: _middle(value) >= BARS[name] for name, value in ratios.items()}
    missed = [f"{name} {BARS[name]:g}" for name, well in held.items() if not well]
    bars = ("missed: " + ", ".join(missed) if missed else "held") if best else None
    return {"case": f"against_{peer.name}", **ratios, "bars": bars}


def _middle(value: Any) -> float:
    return float(getattr(value, "median", value))


def say(text: str) -> None:
    """Progress, on stderr: stdout is for the JSON lines."""
    print(text, file=sys.stderr, flush=True)
