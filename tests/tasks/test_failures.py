"""Failed images by reason."""

from __future__ import annotations

from tasks.failures import by_reason, told
from tasks.table import Row


def failed(source: str, error_type: str, error: str) -> Row:
    return {"source": source, "status": "failed", "error_type": error_type, "error": error}


def test_sentences_that_differ_in_figures_and_paths_are_one_reason() -> None:
    rows = [failed(f"sub/{n}.png", "PermissionError", f"Permission denied: /in/sub/{n}.png") for n in range(5)]
    rows += [failed(f"{n}.tif", "ImageError", f"it lacks {n},000 bytes") for n in range(2)]
    rows += [failed("x.tif", "ImageError", "it is a mask"), {"source": "y.tif", "status": "done"}]
    reasons = by_reason(rows)
    assert [(len(reason.sources), reason.kind) for reason in reasons] == [
        (5, "PermissionError"), (2, "ImageError"), (1, "ImageError"),
    ]  # fmt: skip
    assert str(reasons[0]) == "sub/0.png, sub/1.png, sub/2.png and 2 more (Permission denied: /in/sub/0.png)"
    assert told(reasons, most=2).endswith("; 0.tif, 1.tif (it lacks 0,000 bytes); 1 for other reasons")


def test_a_name_with_signs_of_patterns_and_a_long_sentence() -> None:
    (reason,) = by_reason([failed("a(+[.png", "OSError", "word " * 200)])
    assert len(str(reason)) < 250
    assert told([]) == ""
