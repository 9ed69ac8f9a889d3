from __future__ import annotations

import numpy as np
import pytest

from denoise_core.images import Header
from tasks.arrangement import Arrangement, AxesMismatch, arrange, renamed

LENGTHS = {"T": 3, "Z": 4, "C": 2, "Q": 5, "I": 6, "Y": 7, "X": 8, "S": 3}


def header(axes: str) -> Header:
    return Header("tiff", axes, tuple(LENGTHS[axis] for axis in axes), "uint16")


@pytest.mark.parametrize(
    ("axes", "channels", "stacks", "frames", "joint", "words"),
    [
        ("YX", "auto", 1, 1, 1, ""),
        ("YXS", "auto", 1, 1, 3, "S joint"),
        ("YXS", "separate", 3, 1, 1, "S separate"),
        ("TYX", "auto", 1, 3, 1, "T frames"),
        ("IYX", "auto", 1, 6, 1, "I frames"),
        ("ZYXS", "auto", 1, 4, 3, "Z frames; S joint"),
        ("CYX", "auto", 2, 1, 1, "C separate"),
        ("CYX", "joint", 1, 1, 2, "C joint"),
        ("YXC", "auto", 2, 1, 1, "C separate"),
        ("TZCYX", "auto", 8, 3, 1, "T frames; ZC separate"),
        ("TZCYX", "joint", 4, 3, 2, "T frames; C joint; Z separate"),
        ("ZCYX", "auto", 2, 4, 1, "Z frames; C separate"),
        ("QZYX", "auto", 5, 4, 1, "Z frames; Q separate"),
        ("QQYX", "auto", 5, 5, 1, "Q frames; Q separate"),
        ("TCYXS", "joint", 1, 3, 6, "T frames; CS joint"),
        ("TCYXS", "auto", 2, 3, 3, "T frames; S joint; C separate"),
    ],
)
def test_what_is_denoised_as_what(axes: str, channels: str, stacks: int, frames: int, joint: int, words: str) -> None:
    found = arrange(header(axes), channels)
    assert (found.stacks, found.frames, found.channels, str(found)) == (stacks, frames, joint, words)
    array = np.arange(np.prod(found.shape)).reshape(found.shape)
    planes = found.planes(array)
    assert planes.shape == (stacks * frames, 7, 8, joint)
    assert np.array_equal(found.back(planes), array)


def test_the_frames_of_a_stack_follow_each_other() -> None:
    found = arrange(header("TZCYX"))
    array = np.zeros(found.shape)
    array[1, 2, 1] = 1  # T 2, Z 3, C 2
    planes = found.planes(array)
    (plane,) = np.unique(np.nonzero(planes)[0])
    stack, frame = divmod(int(plane), found.frames)
    assert found.place(stack) == "Z 3 of 4, C 2 of 2"
    assert found.place(stack, frame) == "Z 3 of 4, C 2 of 2, T 2 of 3"
    assert planes[found.stack(stack)].any()
    assert arrange(header("YX")).place(0, 0) == ""


def test_planes_of_the_common_orders_are_no_copies() -> None:
    for axes in ("YX", "YXS", "TYX", "CZYX", "ZYXS"):
        found = arrange(header(axes))
        array = np.zeros(found.shape)
        assert np.shares_memory(found.planes(array), array)


def test_the_user_knows_better() -> None:
    assert renamed(header("IYX"), None) == header("IYX")
    assert renamed(header("QYX"), "ZYX") == Header("tiff", "ZYX", (5, 7, 8), "uint16")
    assert isinstance(arrange(renamed(header("TYX"), "CYX")), Arrangement)
    assert arrange(renamed(header("TYX"), "CYX")).stacks == 3
    for wrong in ("YX", "TZYX", "YXS"):
        with pytest.raises(AxesMismatch, match=r"whose axes are QYX of lengths \(5, 7, 8\)"):
            renamed(header("QYX"), wrong)
