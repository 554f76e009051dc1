"""How many cameras fit, who is let in, and what a worker says that cannot do it all."""

import threading
import time
from typing import Literal

import pytest
from coatstream.cameras.capacity import (
    Capacity,
    DecodeCost,
    Sampling,
    admit,
    cores_of,
    demand,
    measure_rates,
    overload_warning,
    served,
)
from coatstream.frames.frame import Pixels, Scores
from coatstream.settings.model import CameraSettings
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.support.doubles import FixedEngine, SettableClock
from tests.support.load import slack

COST = DecodeCost(picture=0.004, keys_only=0.0004, sampled=0.002)


def camera(
    name: str = "door",
    *,
    fps: float = 5.0,
    priority: float = 1.0,
    keyframes_only: bool = False,
    view: Literal["auto", "centre", "whole"] = "centre",
) -> CameraSettings:
    url = SecretStr("rtsp://10.0.0.1/1")
    return CameraSettings(name=name, url=url, fps=fps, priority=priority, keyframes_only=keyframes_only, view=view)


def test_a_camera_that_shows_the_whole_picture_asks_for_two_inputs_a_frame() -> None:
    assert demand(camera(fps=5, view="centre")) == 5
    assert demand(camera(fps=5, view="whole")) == demand(camera(fps=5, view="auto")) == 10
    at = {"name": "a", "at": ((0, 0), (1, 1))}
    regions = CameraSettings.model_validate({"name": "door", "url": "rtsp://h/1", "fps": 5, "view": [at] * 1})
    assert demand(regions) == 5


def test_cameras_of_one_priority_get_the_same_frames_whatever_inputs_these_have() -> None:
    small, wide = camera("small", fps=10), camera("wide", fps=10, view="whole")

    shares = served([small, wide], engine_rate=15)

    assert shares == pytest.approx({"small": 0.5, "wide": 0.5})  # 5 frames each are 5 + 10 inputs


class SlowEngine(FixedEngine):
    """Takes 10 ms and 2 ms a frame, by a clock that is set."""

    def __init__(self, clock: SettableClock) -> None:
        super().__init__()
        self._settable = clock

    def classify(self, pixels: Pixels) -> Scores:
        self._settable.now += 0.010 + 0.002 * len(pixels)
        return super().classify(pixels)


# ---- how many fit


def test_a_camera_costs_every_picture_and_what_is_sampled_of_it() -> None:
    assert cores_of(COST, Sampling(taken=5)) == pytest.approx(25 * 0.004 + 5 * 0.002)
    assert cores_of(COST, Sampling(taken=0.5, keyframes_only=True)) == pytest.approx(25 * 0.0004 + 0.5 * 0.002)


def test_with_a_model_of_its_own_the_scarcer_of_both_limits() -> None:
    many = Capacity(engine_rate=1000, cores=4, shares_cores=False).fit(COST, Sampling(taken=5))
    few = Capacity(engine_rate=50, cores=4, shares_cores=False).fit(COST, Sampling(taken=5))

    assert (many.cameras, many.limit) == (25, "decode")  # 0.7 x 4 / 0.11
    assert (few.cameras, few.limit) == (7, "engine")  # 0.7 x 50 / 5


def test_where_the_model_runs_on_the_same_cores_both_add_up() -> None:
    fit = Capacity(engine_rate=50, cores=4, shares_cores=True).fit(COST, Sampling(taken=5))

    assert (fit.cameras, fit.limit) == (5, "engine")  # 0.7 / (0.11 / 4 + 5 / 50)


@given(st.floats(1, 1e5), st.integers(1, 256), st.booleans(), st.floats(0.1, 25))
def test_what_fits_stays_below_the_load_and_one_more_does_not(
    rate: float, cores: int, shares: bool, taken: float
) -> None:
    fit = Capacity(rate, cores, shares).fit(COST, Sampling(taken=taken))

    decode, engine = fit.cores / cores, taken / rate
    each = decode + engine if shares else max(decode, engine)
    assert fit.cameras * each <= 0.7 + 1e-6
    assert (fit.cameras + 1) * each > 0.7 - 1e-6


# ---- who is let in


def test_every_picture_is_taken_to_be_25_a_second_and_key_frames_come_every_two() -> None:
    assert demand(camera(fps=0)) == 25
    assert demand(camera(fps=0.2)) == 0.2
    assert demand(camera(fps=0, keyframes_only=True)) == 0.5


def test_cameras_are_let_in_by_priority_and_stay_in_their_order() -> None:
    cameras = [
        camera("a", fps=10),
        camera("b", fps=10, priority=5),
        camera("c", fps=10),
        camera("d", fps=10, priority=2),
    ]

    accepted, refused = admit(cameras, 34)  # nine tenths: 30.6

    assert [one.name for one in accepted] == ["a", "b", "d"]
    assert [one.name for one in refused] == ["c"]


def test_nobody_gets_past_a_camera_of_higher_priority_that_was_refused_but_its_equals_may() -> None:
    cameras = [camera("big", fps=25, priority=2), camera("small", fps=5, priority=2), camera("low", fps=1)]

    accepted, refused = admit(cameras, 20)

    assert [one.name for one in accepted] == ["small"]
    assert [one.name for one in refused] == ["big", "low"]


@given(st.lists(st.tuples(st.floats(0.1, 25), st.sampled_from([1.0, 2.0, 3.0]))), st.floats(0.1, 500))
def test_what_is_let_in_fits_and_all_are_let_in_where_all_fit(asked: list[tuple[float, float]], rate: float) -> None:
    cameras = [camera(f"c{number}", fps=fps, priority=priority) for number, (fps, priority) in enumerate(asked)]

    accepted, refused = admit(cameras, rate)

    assert len(accepted) + len(refused) == len(cameras)
    assert sum(map(demand, accepted)) <= 0.9 * rate + 1e-6
    assert not refused or sum(map(demand, cameras)) > 0.9 * rate - 1e-6
    if accepted and refused:
        assert min(one.priority for one in accepted) >= max(one.priority for one in refused)


def test_the_served_share_follows_priority() -> None:
    shares = served([camera("low", fps=10), camera("high", fps=10, priority=3)], 8)

    assert shares == pytest.approx({"low": 0.2, "high": 0.6})


def test_an_overload_is_said_in_one_line_and_only_then() -> None:
    cameras = [camera("low", fps=10), camera("high", fps=10, priority=3)]

    said = overload_warning(cameras, 8)

    assert said is not None
    assert "ask for 20 inputs/s" in said
    assert "'low' gets 20% of its own" in said
    assert "\n" not in said
    assert overload_warning(cameras, 21) is None
    assert overload_warning([], 21) is None


# ---- the engine's rate


def test_a_rate_is_told_for_each_batch_size() -> None:
    clock = SettableClock()

    rates = measure_rates(SlowEngine(clock), (1, 2, 4, 8), seconds=1.0, clock=clock)

    assert rates[1] == pytest.approx(1 / 0.012)
    assert rates[8] == pytest.approx(8 / 0.026)


def test_a_slow_engine_is_measured_at_its_smallest_batch_only() -> None:
    clock = SettableClock()

    rates = measure_rates(SlowEngine(clock), (1, 1024), seconds=0.1, most=1.0, clock=clock)

    assert list(rates) == [1]


def test_measuring_ends_in_time_and_keeps_all_streams_busy() -> None:
    engine = FixedEngine(streams=3)
    threads: set[int] = set()
    classify = engine.classify

    def noting(pixels: Pixels) -> Scores:
        threads.add(threading.get_ident())
        time.sleep(0.002)
        return classify(pixels)

    engine.classify = noting  # type: ignore[method-assign]
    began = time.monotonic()

    assert min(measure_rates(engine, engine.prepared, seconds=0.4).values()) > 0

    assert len(threads) == 3
    assert time.monotonic() - began < 3 + slack()
