"""The command line as a user meets it: help, exit status, one sentence for what is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.cli import main


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom flows.cli import main\n"
        "try: main(['run', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'prefect', 'numpy', 'pandas', 'pyarrow', 'scipy', 'skimage', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--preset" in done.stdout


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence on stderr of a command that could not start."""
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as end:  # argparse ends the process itself
        status = int(end.code or 0)
    said = capsys.readouterr()
    assert status == 2
    assert said.out == ""
    assert said.err.count("\n") == 1, said.err
    assert "Traceback" not in said.err
    return said.err


def test_missing_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no" in refused(capsys, "run", tmp_path / "nowhere", tmp_path / "out")


def test_no_output_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "OUTPUT is missing" in refused(capsys, "run", tmp_path)


def test_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    assert "is empty" in refused(capsys, "run", tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "output"), [("a", "a"), ("a", "a/out"), ("a/in", "a"), ("a", "link-to-a"), ("a", "a/../a")]
)
def test_input_and_output_within_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, output: str
) -> None:
    (tmp_path / "a" / "in").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a" / "in" / "x.png")
    (tmp_path / "link-to-a").symlink_to(tmp_path / "a")
    said = refused(capsys, "run", tmp_path / source, tmp_path / output)
    assert "INPUT" in said
    assert "OUTPUT" in said


def test_an_output_whose_images_folder_leads_into_the_input(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "images").symlink_to(tree)
    refused(capsys, "run", tree, tmp_path / "out")


def test_unwritable_output(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in refused(capsys, "run", tree, tmp_path / "file" / "out")
    assert "is a file" in refused(capsys, "run", tree, tmp_path / "file")
    assert "cannot be written" in refused(capsys, "run", tree, "/proc/out")


BAD = """--method bm4d|--noise gauss|--device tpu|--slots 0|--unheard-of|--config nowhere.toml|--device cuda:99|--seed one|
--preset best --method nl-bayes|--scope city|--model nowhere|--engine condor|--reference nowhere|--on-existing ask"""


@pytest.mark.parametrize("options", [option.split() for option in BAD.split("|")], ids=" ".join)
def test_a_bad_option(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    said = refused(capsys, "run", tree, tmp_path / "out", *options, *(["--dry-run"] if "cuda:99" in options else []))
    assert options[0].strip("-") in said or "cuda" in said


def test_a_method_whose_library_is_not_installed(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "bm3d" else find(name, *a))
    said = refused(capsys, "run", tree, tmp_path / "out", "--method", "bm3d")
    assert "non-commercial" in said
    assert "pip install bm3d" in said
    assert not (tmp_path / "out").exists()


def test_empty_paths(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "INPUT" in refused(capsys, "run", "", tmp_path / "out")
    assert "OUTPUT" in refused(capsys, "run", tree, "")
    assert "--reference" in refused(capsys, "run", tree, tmp_path / "out", "--reference", "")


@pytest.mark.parametrize(
    ("name", "folder"), [("images", False), ("runs", False), ("results.parquet", True), ("report.html", True)]
)
def test_something_in_the_way(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, folder: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).mkdir() if folder else (out / name).touch()
    assert "in the way" in refused(capsys, "run", tree, out)


def test_a_path_that_is_no_unicode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = os.fsencode(tmp_path) + b"/d\xe9r"
    try:
        Path(os.fsdecode(raw)).mkdir()
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    assert "UTF-8" in refused(capsys, "run", os.fsdecode(raw), tmp_path / "out")


def test_an_unwritable_lock_folder(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DENOISE_LOCK_DIR", "/proc/locks")
    assert "DENOISE_LOCK_DIR" in refused(capsys, "run", tree, tmp_path / "out")


def test_samples_into_a_file_and_a_damaged_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    refused(capsys, "samples", tmp_path / "file")
    (tmp_path / "results.parquet").write_bytes(b"garbage")
    assert "not a results table" in refused(capsys, "report", tmp_path)


def test_report_without_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "results.parquet" in refused(capsys, "report", tmp_path)


def test_dry_run_writes_nothing(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "broken.png").write_bytes(b"")
    (tree / "notes.txt").write_text("not an image")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    assert main(["run", str(tree), str(tmp_path / "out"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "4 to do, 0 done already, 1 cannot be done, 1 not images" in said
    assert main(["run", str(tree), str(tmp_path / "out"), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["to_do"] == ["deep.tif", "photo.jpg", "rgb.png", "sub/grey.png"]
    assert [entry["source"] for entry in plan["cannot_be_done"]] == ["broken.png"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"device", "precision", "cores", "preset fast", "preset paper", "slots", "Prefect server"} <= set(facts)
    assert main(["doctor"]) == 0
    assert facts["precision"] in capsys.readouterr().out
