import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import VGG19_Weights
from torchvision.models.vgg import cfgs, make_layers

from style_core import LAYERS, PRESETS, Features, StyleError, download_features, extract, load_features, vgg


def torchvision_features() -> torch.nn.Sequential:
    with torch.device("meta"):
        return make_layers(cfgs["E"])


def torchvision_activations(path: Path, image: Tensor, last: str) -> dict[str, Tensor]:
    """The same network, run layer by layer through torchvision's own modules."""
    names = [layer.name for layer in LAYERS]
    model = torchvision_features()[: names.index(last) + 1]
    state = {key.removeprefix("features."): value for key, value in torch.load(path, weights_only=True).items()}
    model.load_state_dict({key: state[key] for key in model.state_dict()}, assign=True)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    x = (image - mean) / std
    found = {}
    with torch.no_grad():
        for name, module in zip(names, model, strict=False):
            x = module(x.clone())
            found[name] = x.clone()
    return found


def test_the_layers_are_those_of_torchvision() -> None:
    kinds = {"Conv2d": "conv", "ReLU": "relu", "MaxPool2d": "pool"}
    modules = list(torchvision_features())
    assert [layer.kind for layer in LAYERS] == [kinds[type(module).__name__] for module in modules]
    for layer, module in zip(LAYERS, modules, strict=True):
        if layer.kind == "conv":
            assert (layer.out_channels, layer.in_channels) == tuple(module.weight.shape[:2])
    names = [layer.name for layer in LAYERS]
    assert names[:5] == ["conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1"]
    assert (names[10], names[16], names[28], names[-1]) == ("conv3_1", "conv3_4", "conv5_1", "pool5")


@pytest.mark.parametrize("size", [(32, 32), (13, 22)])
def test_activations_agree_with_torchvision(trained_path: Path, picture: Callable[..., Tensor], size) -> None:
    image = picture("astronaut", *size)[None]
    expected = torchvision_activations(trained_path, image, "relu3_4")
    features = load_features(trained_path, ["relu3_4"], activation_scale=1.0)
    found = extract(features, image, features.layers[:16])
    for name, activations in found.items():
        torch.testing.assert_close(
            activations, expected[name], rtol=1e-4, atol=1e-5 * float(expected[name].abs().max())
        )


def test_weights_for_pixels_up_to_255_come_down_to_the_scale_of_torchvision(
    weights_file: Callable[..., Path], picture: Callable[..., Tensor]
) -> None:
    plain = weights_file("conv2_1", "plain.pth")
    state = torch.load(plain, weights_only=True)
    for key in state:
        if key == "features.0.weight" or key.endswith("bias"):
            state[key] = 255 * state[key]
    torch.save(state, plain.with_name("oxford.pth"))
    image = picture("coffee", 16, 20)[None]
    layers = ["conv1_1", "relu1_2", "conv2_1"]
    expected = load_features(plain, layers)
    found = load_features(plain.with_name("oxford.pth"), layers)
    assert (expected.activation_scale, found.activation_scale) == (1.0, 255.0)
    for a, b in zip(extract(found, image, layers).values(), extract(expected, image, layers).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    raw = load_features(plain.with_name("oxford.pth"), layers, activation_scale=1.0)
    torch.testing.assert_close(
        extract(raw, image, layers)["conv2_1"], 255 * extract(expected, image, layers)["conv2_1"], rtol=1e-4, atol=1e-3
    )


def test_the_trained_weights_are_of_the_scale_that_the_presets_expect(
    trained: Features, picture: Callable[..., Tensor]
) -> None:
    assert trained.activation_scale == 255.0
    for activations in extract(trained, picture("astronaut")[None], trained.layers).values():
        assert 0.1 < float(activations.std()) < 10


def test_only_what_is_needed_is_kept(weights_file: Callable[..., Path]) -> None:
    path = weights_file("conv3_1", classifier__0__weight=torch.zeros(8, 8))
    features = load_features(path, ["conv1_1", "relu1_2"])
    assert len(features.convolutions) == 2
    assert features.layers == ("conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1")
    kept = [tensor for pair in features.convolutions for tensor in pair]
    assert all(t.untyped_storage().nbytes() == 4 * t.numel() and not t.requires_grad for t in kept)


def test_files_from_before_torch_1_6_are_read(weights_file: Callable[..., Path]) -> None:
    path = weights_file("conv1_2")
    state = torch.load(path, weights_only=True)
    torch.save(state, path.with_name("old.pth"), _use_new_zipfile_serialization=False)
    new, old = load_features(path, ["conv1_2"]), load_features(path.with_name("old.pth"), ["conv1_2"])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(new.convolutions, old.convolutions, strict=True))


def test_a_file_that_ends_early_says_what_is_missing_and_what_works(weights_file: Callable[..., Path]) -> None:
    path = weights_file("conv2_1")
    with pytest.raises(StyleError) as caught:
        load_features(path, ["relu1_1", "relu2_1", "relu3_1", "conv4_2"])
    missing, works = str(caught.value).split("; ", 1)
    assert str(path) in missing
    assert "relu3_1, conv4_2" in missing
    assert "relu1_1" not in missing
    assert "conv1_1, relu1_1, conv1_2, relu1_2, pool1, conv2_1, relu2_1." in works
    assert "conv2_2" not in works


def test_a_preset_that_needs_more_names_those_that_would_work(trained_path: Path, weights_file) -> None:
    with pytest.raises(
        StyleError, match=r"ends before .*relu5_1, relu4_2; .*Presets that work with it: seed; the others"
    ):
        load_features(trained_path, PRESETS["gatys"].layers)
    with pytest.raises(StyleError, match="Presets that work with it: none"):
        load_features(weights_file("conv1_2"), PRESETS["seed"].layers)


def test_weights_are_fetched_once_and_checked(weights_file: Callable[..., Path], tmp_path: Path) -> None:
    served = weights_file("conv1_2", "served.pth")
    digest = hashlib.sha256(served.read_bytes()).hexdigest()
    named = served.rename(served.with_name(f"vgg19-{digest[:8]}.pth"))
    url, kept = named.as_uri(), tmp_path / "kept"
    found = download_features(["conv1_2"], directory=kept, url=url)
    assert [path.name for path in kept.iterdir()] == [named.name]
    expected = load_features(kept / named.name, ["conv1_2"])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(found.convolutions, expected.convolutions, strict=True))
    named.unlink()
    download_features(["conv1_1"], directory=kept, url=url)  # from what is kept
    (kept / named.name).write_bytes(b"something else")
    with pytest.raises(StyleError, match=f"expected {digest[:8]}"):
        download_features(["conv1_1"], directory=kept, url=url)


def test_weights_that_cannot_be_fetched_say_so(weights_file: Callable[..., Path], tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    wrong = weights_file("conv1_1", "vgg19-00000000.pth").as_uri()
    for url in ((tmp_path / "nowhere-01234567.pth").as_uri(), wrong):
        with pytest.raises(StyleError, match=r"could not be fetched from .* give its path"):
            download_features(["conv1_1"], directory=kept, url=url)
    assert list(kept.iterdir()) == []
    with pytest.raises(ValueError, match="the start of the file's SHA-256"):
        download_features(["conv1_1"], directory=kept, url="file:///vgg19.pth")


def test_torchvisions_own_weights_are_what_is_fetched_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, str]] = []

    def refuse(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        asked.append((url, hash_prefix))
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(StyleError, match="no network"):
        download_features(["relu5_1"], directory=tmp_path)
    assert asked == [(VGG19_Weights.IMAGENET1K_V1.url, "dcbb9e9d")]


def test_a_gap_in_the_file_ends_it_there(weights_file: Callable[..., Path]) -> None:
    with pytest.raises(StyleError, match=r"ends before conv2_1; layers that work with this file: conv1_1, relu1_1\."):
        load_features(weights_file("conv2_1", features__2__bias=None), ["conv2_1"])


def test_the_digest_is_checked(trained_path: Path, trained_digest: str, weights_file: Callable[..., Path]) -> None:
    load_features(trained_path, ["conv1_1"], sha256=trained_digest.upper())
    other = weights_file("conv1_1")
    found = hashlib.sha256(other.read_bytes()).hexdigest()
    load_features(other, ["conv1_1"], sha256=found[:8])
    for wrong in (trained_digest, found[:7], ""):
        with pytest.raises(StyleError, match=f"{found}, expected {wrong}"):
            load_features(other, ["conv1_1"], sha256=wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"features__2__weight": torch.zeros(64, 32, 3, 3)},
            r"features\.2\.weight has shape \(64, 32, 3, 3\), expected \(64, 64, 3, 3\) for conv1_2",
        ),
        ({"features__2__bias": torch.zeros(3)}, r"features\.2\.bias has shape \(3,\), expected \(64,\)"),
        ({"features__0__bias": torch.full((64,), torch.nan)}, r"features\.0\.bias holds NaN"),
        ({"features__0__weight": None}, r"no features\.0\.weight in it; expected VGG-19"),
    ],
)
def test_other_weights_are_refused(weights_file: Callable[..., Path], changes, message: str) -> None:
    with pytest.raises(StyleError, match=message):
        load_features(weights_file("conv1_2", **changes), ["conv1_2"])


@pytest.mark.parametrize("content", [b"", b"not weights at all\n" * 50, b"PK\x03\x04 broken"])
def test_a_file_that_is_no_weights_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vgg.pth"
    path.write_bytes(content)
    with pytest.raises(StyleError, match=r"vgg\.pth: not a PyTorch weights file"):
        load_features(path, ["conv1_1"])


def test_a_truncated_file_is_refused(weights_file: Callable[..., Path]) -> None:
    path = weights_file("conv1_2")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(StyleError, match="not a PyTorch weights file"):
        load_features(path, ["conv1_1"])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_torch_cannot_read_is_refused_without_its_warning(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "vgg.pth"
    torch.save({"a": torch.zeros(3)}, path, pickle_protocol=4, _use_new_zipfile_serialization=zipped)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(StyleError, match="not a PyTorch weights file"):
            load_features(path, ["conv1_1"])
    assert warned == []


def kaiming(weight: Tensor) -> Tensor:
    """As torchvision initialises VGG-19."""
    return torch.nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def of_torch(weight: Tensor) -> Tensor:
    """As torch initialises a convolution."""
    return torch.nn.init.kaiming_uniform_(weight, a=5**0.5)


def independent(weight: Tensor) -> Tensor:
    return torch.nn.init.normal_(weight, std=0.01)


@pytest.mark.parametrize("initialise", [kaiming, of_torch, torch.nn.init.orthogonal_, independent])
@pytest.mark.parametrize("place", [0, 2, 5, 19])
def test_weights_that_were_only_initialised_are_refused(
    weights_file: Callable[..., Path], initialise: Callable[[Tensor], Tensor], place: int
) -> None:
    """Each layer by itself, while all others look trained."""
    shapes = {0: (64, 3, 3, 3), 2: (64, 64, 3, 3), 5: (128, 64, 3, 3), 19: (512, 256, 3, 3)}
    names = {0: "conv1_1", 2: "conv1_2", 5: "conv2_1", 19: "conv4_1"}
    last = max(names[place], "conv2_1")
    for seed in range(5 if place < 19 else 1):
        torch.manual_seed(seed)
        path = weights_file(last, **{f"features__{place}__weight": initialise(torch.empty(shapes[place]))})
        with pytest.raises(StyleError, match=f"filters of {names[place]} were not trained.*as random ones"):
            load_features(path, [last])


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_weights_that_are_all_equal_are_refused(weights_file: Callable[..., Path], value: float) -> None:
    path = weights_file("conv1_2", features__2__weight=torch.full((64, 64, 3, 3), value))
    with pytest.raises(StyleError, match="filters of conv1_2 were not trained, their values are all equal"):
        load_features(path, ["conv1_2"])


def test_trained_weights_are_far_from_what_is_refused(trained_path: Path) -> None:
    """Every layer of the real file has to show it, and does by more than twice what is asked."""
    features = load_features(trained_path, ["relu3_4"], activation_scale=1.0)
    for weight, _ in features.convolutions:
        assert vgg._neighbours_alike(weight) > 2 * vgg._LEAST_ALIKE / (12 * weight.shape[0] * weight.shape[1]) ** 0.5


def test_torchvisions_own_file_needs_no_proof(
    weights_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights_file("conv1_1", features__0__weight=torch.zeros(64, 3, 3, 3))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(vgg, "_TORCHVISION", digest[:8])
    assert load_features(path, ["conv1_1"]).sha256 == digest
    assert vgg._TORCHVISION not in VGG19_Weights.IMAGENET1K_V1.url
    monkeypatch.undo()
    assert f"-{vgg._TORCHVISION}." in VGG19_Weights.IMAGENET1K_V1.url


def test_something_else_saved_with_torch_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(StyleError, match="holds a list, expected a state dict"):
        load_features(tmp_path / "list.pth", ["conv1_1"])


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"features.0.weight": Payload(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(StyleError, match="not a PyTorch weights file"):
        load_features(tmp_path / "bad.pth", ["conv1_1"])
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_and_an_unknown_layer_are_named(tmp_path: Path, weights_file: Callable[..., Path]) -> None:
    with pytest.raises(StyleError, match=r"nowhere\.pth: no such file"):
        load_features(tmp_path / "nowhere.pth", ["conv1_1"])
    with pytest.raises(ValueError, match="no layer 'conv_4'; its layers are conv1_1, relu1_1"):
        load_features(weights_file("conv1_1"), ["conv_4"])
    with pytest.raises(ValueError, match="at least one"):
        load_features(weights_file("conv1_1"), [])


def test_extracting_beyond_what_was_loaded_says_so(weights_file: Callable[..., Path]) -> None:
    features = load_features(weights_file("conv2_1"), ["conv1_1"])
    with pytest.raises(ValueError, match="as far as relu1_1, and conv2_1 was asked for"):
        extract(features, torch.zeros(1, 3, 8, 8), ["conv1_1", "conv2_1"])
