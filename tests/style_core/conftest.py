import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data
from skimage.transform import resize
from torch import Tensor

from style_core import PRESETS, Features, StylePreset, load_features
from tests.weights import random_state

SEED = PRESETS["seed"]

SHARED = Path(__file__).resolve().parents[2] / "../shared"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # On images this small, threads that wait for a busy core cost many times the work.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained_path() -> Path:
    path = SHARED / "weights/vgg19_features_conv1_1-conv3_4.pth"
    if not path.is_file():
        pytest.skip("the trained VGG-19 weights of ../shared/weights are not here")
    return path


@pytest.fixture(scope="session")
def trained_digest(trained_path: Path) -> str:
    """As stated where the file is described, not as computed from it."""
    readme = SHARED / "data/README.md"
    if not readme.is_file():
        pytest.skip("the description of ../shared/weights is not here")
    found = re.search(r"SHA-256 ([0-9a-f]{64})", readme.read_text())
    assert found
    return found[1]


@pytest.fixture(scope="session")
def trained(trained_path: Path) -> Features:
    return load_features(trained_path, SEED.layers)


@pytest.fixture
def weights_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file with VGG-19's keys and shapes and smooth seeded filters, as far as a layer: not for pictures."""

    def write(last: str = "conv2_1", name: str = "weights.pth", **changes: Tensor | None) -> Path:
        state = random_state(last) | {key.replace("__", "."): value for key, value in changes.items()}
        path = tmp_path / name
        torch.save({key: value for key, value in state.items() if value is not None}, path)
        return path

    return write


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Callable[[StylePreset], Features]:
    """Weights that look trained, as deep as a preset needs: for what does not depend on what is seen."""
    path = tmp_path_factory.mktemp("weights") / "synthetic.pth"
    torch.save(random_state("conv5_1"), path)
    return lambda preset: load_features(path, preset.layers)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Tensor]:
    """A photograph from scikit-image as (3, H, W) in [0, 1]."""

    def get(name: str, height: int = 64, width: int = 64) -> Tensor:
        image = resize(getattr(data, name)()[..., :3], (height, width), anti_aliasing=True)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))

    return get
