"""`denoise stylize` killed in the middle of a painting goes on where it was: nothing that was painted is painted again."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data

from tests.survival.kills import PATIENCE, Undisturbed, differences, files, rows
from tests.weights import random_state

STEPS = 10
IMAGES = 5

# Notes the mean of each image as its painting ends, and kills its process group at the N-th evaluation of the loss.
_PAINTING = """
import itertools, os, signal, sys
import style_core
from flows.cli import main
from style_core.objective import Objective
fatal, notes = int(sys.argv.pop(1)), sys.argv.pop(1)
evaluations, evaluate, stylize = itertools.count(1), Objective.__call__, style_core.stylize
def dying(objective, image):
    if next(evaluations) == fatal:
        os.killpg(0, signal.SIGKILL)
    return evaluate(objective, image)
def noting(pixels, *arguments, **options):
    found = stylize(pixels, *arguments, **options)
    with open(notes, "a") as file:
        print(pixels.mean(dtype=float), file=file)
    return found
Objective.__call__, style_core.stylize = dying, noting
sys.exit(main())
"""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "command",
    [
        ("stylize",),
        pytest.param(("run", "--noise", "gauss:25", "--method", "nl-bayes"), marks=pytest.mark.slow),
    ],
    ids=["stylize", "run"],
)
def test_killed_in_the_middle_of_a_painting(tmp_path: Path, command: tuple[str, ...]) -> None:
    images, style, weights = tmp_path / "images", tmp_path / "style.png", tmp_path / "vgg19.pth"
    images.mkdir()
    for n in range(IMAGES):
        Image.fromarray(data.astronaut()[40 * n : 40 * n + 40, 200:248]).save(images / f"{n}.png")
    Image.fromarray(data.coffee()[100:180, 100:220]).save(style)
    torch.save(random_state("conv3_1"), weights)
    name, *options = command
    painting = ["--style", style, "--vgg-weights", weights, "--style-steps", STEPS, "--slots", 1, "--chunk", IMAGES]

    def run(output: Path, notes: Path, fatal: int) -> int:
        arguments = [fatal, notes, name, images, output, *options, *painting]
        call = [sys.executable, "-c", _PAINTING, *map(str, arguments)]
        return subprocess.run(call, start_new_session=True, timeout=PATIENCE, check=False).returncode

    whole, output, notes = tmp_path / "whole", tmp_path / "out", tmp_path / "notes"
    assert run(whole, tmp_path / "all", 0) == 0
    expected = Undisturbed(files(whole), rows(whole), 0, 0)
    assert len(expected.rows) == IMAGES
    assert {row["style_steps"] for row in expected.rows.values()} == {STEPS}

    for fatal, painted in (
        (2 * STEPS + STEPS // 2, 2),
        (STEPS + 1, 3),
    ):  # within the third image, then as the fourth begins
        assert run(output, notes, fatal) == -signal.SIGKILL
        assert len(notes.read_text().split()) == painted
    assert run(output, notes, 0) == 0
    assert differences(output, expected) == []
    assert set(Counter(notes.read_text().split()).values()) == {1}, "each was painted once"
    assert set(notes.read_text().split()) == set((tmp_path / "all").read_text().split())
