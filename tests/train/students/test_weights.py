"""Files of weights: SLidR's containers and prefixes are taken off, and what does not fit is refused whole."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from hilda_schema.errors import TrainError, UsageError
from hilda_train.students.minkunet import MinkUNet
from hilda_train.students.weights import load_weights


def small(seed=0, **options):
    torch.manual_seed(seed)
    return MinkUNet(**{"depth": 34, "in_channels": 1, "width": 0.125, **options})


def slidr_state(network, prefix=""):
    """What SLidR's trainer saves: a Res16UNet34C under MinkowskiEngine's names, with its final layer."""
    state = {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}
    final = {f"{prefix}final.kernel": torch.zeros(12, 64), f"{prefix}final.bias": torch.zeros(1, 64)}
    return {**state, **final}


def equal(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda network: {"model_points": slidr_state(network), "config": {"voxel_size": 0.1}, "epoch": 50},
        lambda network: {"state_dict": slidr_state(network, "model_points.module.")},
        lambda network: {"model": slidr_state(network, "module.")},
        lambda network: slidr_state(network, "backbone."),
    ],
    ids=["slidr", "lightning", "distributed", "bare"],
)
def test_containers_and_prefixes_are_taken_off(tmp_path, wrap):
    source, target = small(1), small(2)
    torch.save(wrap(source), tmp_path / "slidr.pt")
    loaded = load_weights(target, tmp_path / "slidr.pt")
    assert equal(source, target)
    assert loaded.taken == len(source.state_dict())
    assert loaded.left == ("final.bias", "final.kernel")
    assert "not used: final.bias, final.kernel" in str(loaded)


def test_safetensors(tmp_path):
    source, target = small(1), small(2)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    assert load_weights(target, tmp_path / "model.safetensors").left == ()
    assert equal(source, target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("block4.5.norm2.bn.bias"), r"lacks 1 of the student's \d+ tensors: block4.5.norm2"),
        (
            lambda state: state.update({"conv0p1s1.kernel": torch.zeros(125, 1, 4)}),
            r"conv0p1s1.kernel is \(125",
        ),
        (lambda state: state["block8.1.conv2.kernel"][0, 0].fill_(torch.nan), "block8.1.conv2.kernel holds numbers"),
    ],
    ids=["missing", "shape", "not finite"],
)
def test_what_does_not_fit_changes_nothing(tmp_path, change, message):
    state = {name: tensor.clone() for name, tensor in small(1).state_dict().items()}
    change(state)
    torch.save({"model_points": state}, tmp_path / "wrong.pt")
    target = small(2)
    with pytest.raises(TrainError, match=message):
        load_weights(target, tmp_path / "wrong.pt")
    assert equal(target, small(2))


class Shell:
    """A pickle that would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"\x80\x04not a checkpoint", "cannot be read"),
        (b"\x80\x02]h\x00.", "cannot be read"),  # found by fuzzing: a KeyError of torch's
        (pickle.dumps({"weights": [1, 2]}), "not a checkpoint|cannot be read|holds no"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(TrainError, match=message) as refused:
        load_weights(small(), tmp_path / "file.pt")
    assert "\n" not in str(refused.value)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}, "hook": Shell(tmp_path / "made")}, tmp_path / "hostile.pt")
    with pytest.raises(TrainError, match="cannot be read"):
        load_weights(small(), tmp_path / "hostile.pt")
    assert not (tmp_path / "made").exists()


def test_other_content_is_named(tmp_path):
    torch.save({"optimizer": {"lr": 1.0}}, tmp_path / "other.pt")
    with pytest.raises(TrainError, match="holds no weights: optimizer"):
        load_weights(small(), tmp_path / "other.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(TrainError, match="holds a list"):
        load_weights(small(), tmp_path / "list.pt")
    with pytest.raises(UsageError, match="there is no file"):
        load_weights(small(), tmp_path / "absent.pt")
