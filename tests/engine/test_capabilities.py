from pathlib import Path

import pytest
from coatstream.engine.capabilities import precisions, processor

X86 = "processor\t: 0\nmodel name\t: some processor\nflags\t\t: fpu sse2 avx2 avx512f {}\nbugs\t\t: none\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd {}\nCPU part\t: 0xd40\n"


def cpuinfo(folder: Path, text: str) -> Path:
    (folder / "cpuinfo").write_text(text)
    return folder / "cpuinfo"


@pytest.mark.parametrize("text", [X86.format("avx512_bf16"), X86.format("amx_bf16 amx_tile"), ARM.format("bf16 i8mm")])
def test_a_cpu_with_bf16_of_its_own_tries_that_first(tmp_path: Path, text: str) -> None:
    assert precisions("cpu", cpuinfo(tmp_path, text)) == ("bf16", "fp32")


@pytest.mark.parametrize(
    "text",
    [
        X86.format("avx512_vnni"),
        ARM.format("i8mm"),
        X86.format("avx512_bf16_lookalike"),  # whole words only
        "processor\t: 0\nmodel name\t: bf16 avx512_bf16\n",  # a name is no flag
        "",
    ],
)
def test_a_cpu_that_would_emulate_it_does_not(tmp_path: Path, text: str) -> None:
    assert precisions("cpu", cpuinfo(tmp_path, text)) == ("fp32",)


def test_what_cannot_be_read_has_nothing_special(tmp_path: Path) -> None:
    assert precisions("cpu", tmp_path / "none") == ("fp32",)


def test_an_apple_gpu_runs_float32(tmp_path: Path) -> None:
    assert precisions("mps", cpuinfo(tmp_path, X86.format("avx512_bf16"))) == ("fp32",)


@pytest.mark.parametrize(("native", "expected"), [(True, ("bf16", "fp32")), (False, ("fp16", "fp32"))])
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_an_nvidia_gpu_without_bf16_of_its_own_runs_fp16(
    monkeypatch: pytest.MonkeyPatch, device: str, native: bool, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: native or including_emulation)

    assert precisions(device) == expected


def test_a_gpu_is_named_beside_its_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"some GPU as {device}")
    text = cpuinfo(tmp_path, X86.format("avx512f"))

    assert processor("cpu", text).startswith("cpu | some processor | fpu sse2")
    assert processor("cuda:1", text).startswith("some GPU as cuda:1 | some processor")
