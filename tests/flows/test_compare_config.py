"""How a comparison is asked for: methods, noises, protocols, and one sentence for what is wrong."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from flows.choices import MethodChoice
from flows.compare_config import CompareConfig, parse_candidate, slug
from flows.config import RunConfig
from flows.config_files import ConfigError, build, read_toml


def config(**options: object) -> CompareConfig:
    return build({"input": "in", "output": "out", "noise": "gauss:25", **options}, CompareConfig)


@pytest.mark.parametrize(
    ("written", "spelt"),
    [
        ("zs-fit", "zs-fit"),
        ("zs-fit:fast", "zs-fit"),
        (" zs-n2n : paper ", "zs-n2n:paper"),
        ("zs-fit:directory:best", "zs-fit:best:directory"),
        ("zs-fit:best:directory", "zs-fit:best:directory"),
        ("zs-fit:auto", "zs-fit"),
        ("none", "none"),
    ],
)
def test_a_method_has_one_spelling(written: str, spelt: str) -> None:
    assert str(parse_candidate(written)) == spelt
    assert str(parse_candidate(spelt)) == spelt


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("bm4d", "there is no method 'bm4d'"),
        ("auto", "there is no method 'auto'"),
        ("", "there is no method"),
        ("zs-fit:paper", "has no preset paper"),
        ("nlm:best", "has no preset best"),
        ("nlm:image", "only zs-fit has a scope"),
        ("zs-fit:image:stack", "METHOD"),
        ("zs-fit:best:best", "METHOD"),
        ("zs-fit:quick", "METHOD"),
        ("zs-fit:", "METHOD"),
    ],
)
def test_what_is_no_method_is_one_sentence(written: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_candidate(written)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"methods": "zs-fit,bm4d"}, "--methods: there is no method"),
        ({"methods": "zs-fit,zs-fit:fast"}, "--methods: zs-fit is given twice"),
        ({"methods": ","}, "--methods"),
        ({"noise": "gauss:25,gauss:25.0"}, "--noise: gauss:25 is given twice"),
        ({"noise": "gauss"}, "--noise"),
        ({"noise": "none"}, "--noise"),
        ({"noise": ""}, "--noise is missing"),
        ({"reference": "clean"}, "--reference"),
        ({"noise": "", "reference": "clean", "clip_noise": True}, "--clip-noise"),
        ({"against": "nlm", "methods": "zs-fit,tv"}, "--against"),
        ({"against": "bm4d"}, "--against"),
        ({"seeds": 0}, "--seeds"),
        ({"seed": 2**63 - 1, "seeds": 2}, "--seeds: the last one would be 9223372036854775808"),
        ({"crop": 0}, "--crop"),
        ({"protocol": "theirs"}, "--protocol"),
        ({"protocol": "zsn2n-paper"}, "decides --noise"),
        ({"protocol": "zsn2n-paper", "noise": None, "crop": 128}, "decides --crop"),
        ({"model": "m.safetensors"}, "no option of denoise compare"),
        ({"input": ""}, "INPUT"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_the_option(options: dict[str, object], said: str) -> None:
    given = {name: value for name, value in options.items() if value is not None}
    if options.get("noise", "") is None:
        with pytest.raises(ConfigError) as raised:
            build({"input": "in", "output": "out", **given}, CompareConfig)
    else:
        with pytest.raises(ConfigError) as raised:
            config(**given)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_last_seed_is_that_of_a_run() -> None:
    found = config(seed=2**63 - 2, seeds=2)
    assert found.cell("nlm", "gauss:25", 2**63 - 1).seed == 2**63 - 1
    with pytest.raises(ValueError, match="seed"):
        found.cell("nlm", "gauss:25", 2**63)


def test_the_published_protocol_clips_gaussian_noise_only() -> None:
    paper = build({"input": "in", "output": "out", "protocol": "zsn2n-paper"}, CompareConfig)
    assert paper.crop == 256
    assert len(paper.noises) == 6
    assert {noise: paper.clips(noise) for noise in paper.noises} == {
        noise: noise.startswith("gauss") for noise in paper.noises
    }
    cell = paper.cell("zs-n2n:paper", "gauss:25", 3)
    assert (cell.method, cell.preset, cell.noise, cell.clip_noise, cell.crop, cell.seed) == (
        MethodChoice.ZS_N2N, "paper", "gauss:25", True, 256, 3,
    )  # fmt: skip
    assert paper.cell("zs-n2n:paper", "poisson:25", 3).clip_noise is False


def test_toml_round_trip(tmp_path: Path) -> None:
    for before in (
        config(methods="zs-fit:best,nlm", noise="gauss:25,poisson:30", crop=64, against="nlm", seeds=3),
        build({"input": "in", "output": "out", "protocol": "zsn2n-paper"}, CompareConfig),
    ):
        file = tmp_path / "compare.toml"
        file.write_text(before.to_toml(), encoding="utf-8")
        assert build(read_toml(file), CompareConfig) == before


def test_every_cell_has_a_folder_and_a_digest_of_its_own() -> None:
    found = config(methods="zs-fit,zs-fit:best,zs-fit:image,nlm", noise="gauss:25,gauss:2.5,poisson:25", seeds=2)
    cells = [found.cell(*cell) for cell in itertools.product(found.methods, found.noises, (0, 1))]
    assert len({cell.output for cell in cells}) == len({cell.digest() for cell in cells}) == 24
    assert slug("poisson-gauss:30/5") == "poisson-gauss-30_5" != slug("poisson-gauss:30-5")


def test_options_that_a_run_has_too_are_described_alike() -> None:
    shared = set(CompareConfig.model_fields) & set(RunConfig.model_fields) - {"output", "noise"}
    assert {"input", "seed", "device", "slots", "crop", "clip_noise", "reference"} <= shared
    for name in shared:
        assert CompareConfig.model_fields[name].description == RunConfig.model_fields[name].description
    assert all(field.description for field in CompareConfig.model_fields.values())


def test_the_crop_is_part_of_a_run_s_digest() -> None:
    digests = {build({"input": "in", "output": "out", "crop": crop}, RunConfig).digest() for crop in (None, 64, 65)}
    assert len(digests) == 3
