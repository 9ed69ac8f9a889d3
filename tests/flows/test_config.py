"""The configuration: one model for the command line, TOML and the Prefect form."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.config import RunConfig
from flows.config_files import ConfigError, build, read_toml


def config(**options: object) -> RunConfig:
    return build({"input": "in", "output": "out", **options}, RunConfig)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "bm4d"}, "--method"),
        ({"preset": "rough"}, "--preset"),
        ({"preset": "best", "method": "zs-n2n"}, "has no preset best"),
        ({"scope": "stack", "method": "zs-n2n"}, "--scope"),
        ({"scope": "stack", "preset": "paper"}, "--scope"),
        ({"model": "m.safetensors", "method": "none"}, "--model"),
        ({"model": "m.safetensors", "scope": "image"}, "--model"),
        ({"noise": "gauss"}, "gauss:25"),
        ({"noise": "gauss:-3"}, "gauss"),
        ({"noise": "laplace:3"}, "gauss"),
        ({"noise": "gauss:nan"}, "gauss"),
        ({"noise": "jpeg:30.5"}, "a whole number from 1 to 100"),
        ({"noise": "gauss:50-5"}, "gauss:5-50"),
        ({"device": "tpu"}, "--device"),
        ({"slots": 0}, "--slots"),
        ({"slots": "many"}, "--slots"),
        ({"chunk": -1}, "--chunk"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**63}, "--seed"),
        ({"max_megapixels": 0}, "--max-megapixels"),
        ({"on_existing": "ask"}, "--on-existing"),
        ({"scope": "city"}, "--scope"),
        ({"noise": "gauss:25", "reference": "clean"}, "--reference"),
        ({"clip_noise": True}, "--clip-noise"),
        ({"max_failed": 1.5}, "--max-failed"),
        ({"max_failed": "nan"}, "--max-failed"),
        ({"max_failed": 0.5, "strict": True}, "--max-failed"),
        ({"method": "none", "preset": "paper"}, "no preset paper"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_the_option(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config(**options)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_kind_of_noise_is_in_the_help() -> None:
    from denoise_core.noise import KINDS

    said = RunConfig.model_fields["noise"].description or ""
    assert all(kind.example in said for kind in KINDS.values())


def test_one_noise_has_one_digest() -> None:
    assert config(noise="gauss: 25.0").digest() == config(noise="gauss:25").digest()
    assert config(noise="gauss:5.0 - 50").noise == "gauss:5-50"


def test_toml_round_trip(tmp_path: Path) -> None:
    before = config(noise="poisson:30", seed=7, chunk=3, reference=None, max_megapixels=1.5, clip_noise=True)
    file = tmp_path / "run.toml"
    file.write_text(before.to_toml(), encoding="utf-8")
    assert build(read_toml(file), RunConfig) == before


def test_toml_takes_the_command_lines_spelling(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('on-existing = "error"\nclip_noise = false\n', encoding="utf-8")
    assert read_toml(file) == {"on_existing": "error", "clip_noise": False}


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe\x00", b"[[["])
def test_a_broken_toml_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="--config"):
        read_toml(file)


def test_the_digest_follows_what_decides_the_result_and_nothing_else() -> None:
    base = config()
    assert base.digest() == config(method="zs-fit").digest(), "auto is what it stands for"
    assert base.digest() == config(slots=3, chunk=9, device="cpu", on_existing="overwrite", output="elsewhere").digest()
    assert base.digest() == config(strict=True).digest() == config(max_failed=0.5).digest()
    different = [
        config(seed=1),
        config(preset="paper"),
        config(noise="gauss:25"),
        config(method="none"),
        config(reference="r"),
        config(method="nl-bayes"),
        config(scope="image"),
        config(preset="best"),
        config(model="m.safetensors"),
    ]
    digests = {base.digest(), *(c.digest() for c in different)}
    assert len(digests) == len(different) + 1


def test_the_digest_follows_what_a_model_holds(tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    model.write_bytes(b"one")
    before = config(model=str(model)).digest()
    copy = tmp_path / "folder"
    copy.mkdir()
    (copy / "other.safetensors").write_bytes(b"one")
    assert config(model=str(copy)).digest() == before
    model.write_bytes(b"two")
    assert config(model=str(model)).digest() != before


def test_every_option_is_described() -> None:
    undescribed = [name for name, field in RunConfig.model_fields.items() if not field.description]
    assert undescribed == []


def test_axes_and_channels_decide_the_digest_only_where_they_are_given() -> None:
    plain = build({"input": "a", "output": "b"}, RunConfig)
    assert plain.digest() != build({"input": "a", "output": "b", "axes": "ZYX"}, RunConfig).digest()
    assert plain.digest() != build({"input": "a", "output": "b", "channels": "joint"}, RunConfig).digest()
    for wrong in ("XY", "zyx", "TZ", "YXT", ""):
        with pytest.raises(ConfigError, match=r"--axes: .* is no order of axes"):
            build({"input": "a", "output": "b", "axes": wrong}, RunConfig)
