"""What a hostile file might try: to write or read elsewhere, to run code, to put markup into the report."""

from __future__ import annotations

import ast
import os
import pickle
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import data
import denoise_core
import flows
import style_core
import tasks
import tasks.blocks
from flows.cli import main
from tasks import table
from tests.denoise_core.images.image_files import chunk, picture, png
from tests.survival.mutants import mutant, seed_files

PACKAGES = (flows, tasks, denoise_core, style_core, data)
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def run(*arguments: object) -> int:
    return main(["run", *map(str, arguments), "--method", "none"])


def result(output: Path) -> dict[str, table.Row]:
    rows, _ = table.read(output / "results.parquet")
    return {row["source"]: row for row in rows}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_code_is_unpacked_or_evaluated() -> None:
    """No pickle, no eval, no shell: `torch.load` takes weights only, networks are safetensors."""
    for package in PACKAGES:
        for path in Path(next(iter(package.__path__))).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                assert not {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "yaml"} & set(names), path
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func)
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert called not in {"eval", "exec", "os.system", "torch.jit.load", "pd.read_pickle"}, path
                assert called != "torch.load" or options.get("weights_only") == "True", path
                assert options.get("allow_pickle", "False") == "False", path
                assert options.get("shell", "False") == "False", path


class Trap:
    """Unpacked, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (str(self.path), 0o700)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".safetensors"])
def test_a_pickle_is_never_unpacked(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"trap{suffix}").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    np.save(tmp_path / "in" / "array.npy", np.array([Trap(tmp_path / "sprung")], object), allow_pickle=True)
    (tmp_path / "in" / "good.png").write_bytes(png(picture(16, 16)))
    run(tmp_path / "in", tmp_path / "out")
    model = [tmp_path / "in" / "good.png", tmp_path / "other", "--model", tmp_path / "in" / f"trap{suffix}"]
    assert main(["run", *map(str, model)]) == 2
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(FileExistsError):
        (tmp_path / "sprung").mkdir()
        pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))


@pytest.mark.usefixtures("prefect_server")
def test_nothing_outside_the_output_is_written(tmp_path: Path) -> None:
    """Names and descriptions that point elsewhere, and links that lie where the output goes."""
    source, out, outside = tmp_path / "in", tmp_path / "out", tmp_path / "outside"
    for folder in (source, out / "images", outside):
        folder.mkdir(parents=True)
    (outside / "victim.png").write_bytes(b"mine")
    for name in ("victim.png", "..\\victim.png", "..%2fvictim.png", "victim.png.", "C:victim.png"):
        (source / name).write_bytes(png(picture(16, 16)))
    (out / "images" / "victim.png").symlink_to(outside / "victim.png")
    text = chunk(b"tEXt", b"filename\0../../outside/victim.png")
    (source / "text.png").write_bytes(png(picture(16, 16), before=text))
    ome = source / "victim.ome.tif"
    tifffile.imwrite(ome, picture(16, 16), ome=True, metadata={"axes": "YX"})
    ome.write_bytes(ome.read_bytes().replace(b"victim.ome.tif", b"../outside/v.t"))
    before = tree(outside)
    run(source, out)
    assert tree(outside) == before
    assert not (out / "images" / "victim.png").is_symlink(), "the link is replaced, not followed"
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "outside"}


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("large", [False, True])
def test_no_link_in_the_output_is_written_through(tmp_path: Path, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither into the input, nor elsewhere, nor to another image's place; the top folder may lie on another disk."""
    source, out, disk, outside = (tmp_path / name for name in ("in", "out", "disk", "outside"))
    stack = np.stack([picture(16, 16), picture(16, 16)[::-1]]).astype(np.uint16)
    for name in ("mine", "theirs", "other", "plain"):
        (source / name).mkdir(parents=True)
        tifffile.imwrite(source / name / "a.tif", stack, photometric="minisblack", metadata={"axes": "TYX"})
    for folder in (out, disk / "plain", outside):
        folder.mkdir(parents=True)
    (out / "images").symlink_to(disk)
    (disk / "mine").symlink_to(source / "mine")
    (disk / "theirs").symlink_to(outside)
    (disk / "other").symlink_to(disk / "plain")
    if large:
        monkeypatch.setattr(tasks.blocks, "LEAST_SAMPLES", 0)
    before = tree(source)
    assert run(source, out) == 1
    assert tree(source) == before
    assert tree(outside) == {}
    assert set(tree(disk)) == {"plain/a.tif"}
    rows = result(out)
    assert [name for name in rows if rows[name]["status"] == "done"] == ["plain/a.tif"]
    assert {row["error_type"] for name, row in rows.items() if name != "plain/a.tif"} == {"OutputLink"}
    assert str(source / "mine") in rows["mine/a.tif"]["error"]
    assert all(row["note"] is None for name, row in rows.items() if name != "plain/a.tif"), (
        "no result of an earlier run"
    )
    for name in ("mine", "theirs", "other"):
        (disk / name).unlink()
    assert run(source, out) == 0, "what the sentence asks for is enough"


READING = """
import os, sys
from pathlib import Path
source, outside = map(os.path.realpath, sys.argv[1:3])
from denoise_core import images
import imagecodecs, tifffile
for path in Path(source).iterdir():  # what is imported late is imported now
    try: images.decode(path.read_bytes(), max_pixels=10**6)
    except images.ImageError: pass
def watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir", "subprocess.Popen", "os.system", "socket.connect", "exec"):
        path = os.fspath(arguments[0]) if isinstance(arguments[0], (str, os.PathLike)) else ""
        looks = event in ("open", "os.listdir", "os.scandir")
        if not looks or path and not os.path.realpath(path).startswith(source):
            print(event, arguments)
sys.addaudithook(watch)
for path in Path(source).iterdir():
    try:
        images.read_header(path, max_pixels=10**6)
        image = images.decode(path.read_bytes(), max_pixels=10**6)
        images.encode(image, image.pixels)
    except images.ImageError:
        pass
"""


def test_a_file_makes_no_other_file_be_opened(tmp_path: Path) -> None:
    """Not by OME-XML that names others, nor by anything else in files of every kind, whole or corrupt."""
    source = tmp_path / "in"
    source.mkdir()
    tifffile.imwrite(tmp_path / "secret.tif", picture(16, 16), photometric="minisblack")
    for name, content in [*seed_files().items(), *(mutant(number) for number in range(100))]:
        (source / name).write_bytes(content)
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:a">'
        '<Image ID="Image:0"><Pixels DimensionOrder="XYZCT" ID="Pixels:0" SizeX="16" SizeY="16" SizeZ="2" SizeC="1" '
        'SizeT="1" Type="uint8"><TiffData IFD="0" FirstZ="0"><UUID FileName="set.ome.tif">urn:uuid:a</UUID></TiffData>'
        f'<TiffData IFD="0" FirstZ="1"><UUID FileName="{tmp_path}/secret.tif">urn:uuid:b</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    tifffile.imwrite(source / "set.ome.tif", picture(16, 16), description=xml, metadata=None, photometric="minisblack")
    done = subprocess.run(
        [sys.executable, "-c", READING, source, tmp_path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.usefixtures("prefect_server")
def test_a_source_that_becomes_a_link_is_not_followed(tmp_path: Path, photo: np.ndarray) -> None:
    """Neither by the next run nor by a report that is rendered again: what lies outside is not shown."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(photo[:24, 200:224]).save(source / name)
    Image.fromarray(photo[200:224, 200:224]).save(tmp_path / "secret.png")
    assert run(source, out, "--noise", "gauss:25") == 0
    shown = (out / "report.html").read_text(encoding="utf-8").count("data:image/png")
    (source / "a.png").unlink()
    (source / "a.png").symlink_to(tmp_path / "secret.png")
    assert main(["report", str(out)]) == 0
    assert 0 < (out / "report.html").read_text(encoding="utf-8").count("data:image/png") < shown
    assert run(source, out, "--noise", "gauss:25") == 1
    assert "out of the input" in result(out)["a.png"]["error"]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.usefixtures("prefect_server")
def test_no_markup_of_a_file_reaches_the_report(tmp_path: Path) -> None:
    """Markup as a name, as contents that an error quotes, as metadata."""
    source, out = tmp_path / f"in {MARKUP.replace('/', '')}", tmp_path / "out"
    source.mkdir()
    (source / "quoted.png").write_text(MARKUP)
    (source / f"{MARKUP.replace('/', '')}.png").write_bytes(
        png(picture(16, 16), before=chunk(b"tEXt", b"Title\0" + MARKUP.encode()))
    )
    (source / f"{MARKUP.replace('/', '')}.tif").write_bytes(b"II*\0" + MARKUP.encode())
    tifffile.imwrite(source / "described.tif", picture(16, 16), description=MARKUP, metadata=None)
    assert run(source, out) == 1
    assert "<img src=x" in result(out)["quoted.png"]["error"], "the sentence does quote it"
    page = _Tags()
    page.feed((out / "report.html").read_text(encoding="utf-8"))
    assert len(page.found) > 20
    assert not [attrs for _, attrs in page.found if any(name.startswith("on") for name in attrs)]
    assert not [attrs for tag, attrs in page.found if tag == "img" and not str(attrs.get("src")).startswith("data:")]
    assert all(
        name not in (out / "report.html").read_text(encoding="utf-8") for name in ("<script>alert", "<img src=x")
    )
