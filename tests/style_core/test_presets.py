from dataclasses import replace

import pytest

from style_core import PRESETS, StylePreset, presets_within
from style_core.layers import reached

SEED = PRESETS["seed"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"style_layers": ("conv_1",)}, "no layer 'conv_1'"),
        ({"style_layers": (), "content_layers": ()}, "at least one"),
        ({"steps": 0}, "steps is 0"),
        ({"coarsest": 0}, "coarsest is 0"),
        ({"style_weight": float("nan")}, "expected 0 or more"),
        ({"content_weight": -1.0}, "expected 0 or more"),
        ({"distance": "l2"}, "distance is 'l2', expected gram or wasserstein"),
        ({"optimizer": "sgd"}, "expected lbfgs or adam"),
        ({"start": "style"}, "expected content or noise"),
        ({"padding": "reflect"}, "expected zeros or replicate"),
    ],
)
def test_a_preset_that_means_nothing_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SEED, **change)


def test_the_seeds_preset_is_the_seeds() -> None:
    assert (
        StylePreset(
            style_layers=("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1"),
            content_layers=("conv2_2",),
            style_weight=1e6,
            content_weight=1,
            steps=300,
            distance="gram",
            optimizer="lbfgs",
            start="content",
            coarsest=None,
            padding="zeros",
        )
        == SEED
    )


def test_gatys_layers_are_those_of_the_paper() -> None:
    assert PRESETS["gatys"].style_layers == ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    assert PRESETS["gatys"].content_layers == ("relu4_2",)


def test_presets_within_a_file() -> None:
    assert presets_within(reached(8)) == ("seed",)
    assert presets_within(reached(16)) == ("seed", "gatys", "best")
    assert presets_within(reached(4)) == ()
