"""A folder with a configuration and weights, looked over before anything in it is loaded.

Weights are trusted only as far as they can be checked: safetensors, which hold numbers and nothing else, unless the
user allows a pickle; no code from beside the weights unless the user allows that; every file hashed, so that a cache
can name the very weights it was made with.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hilda_cache.teachers.frozen import first_line
from hilda_cache.teachers.spec import Source, TeacherSpec
from hilda_schema.errors import TeacherError
from hilda_schema.manifest import canonical_json, sha256_hex

_MAX_JSON_BYTES = 2**24  # an index of 100,000 weights is smaller
_MAX_CARD_BYTES = 2**20
_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLE = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PICKLE_ENDINGS = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
_SMALL_FILES = ["config.json", "preprocessor_config.json", "README.md"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model folder that may be loaded."""

    folder: Path
    shown: str  # how messages and the card call it; never an absolute path
    revision: str
    config: dict[str, Any]
    weights: tuple[Path, ...]  # sorted by name

    @property
    def pickled(self) -> bool:
        """Whether the weights are in a pickle, which the user then has allowed."""
        return self.weights[0].suffix != ".safetensors"

    def weights_sha256(self) -> str:
        """sha256 of the weight file's bytes; of several shards, of the canonical list of their names and hashes."""
        hashes = [[path.name, _file_sha256(path)] for path in self.weights]
        return hashes[0][1] if len(hashes) == 1 else sha256_hex(canonical_json(hashes))


def open_checkpoint(spec: TeacherSpec, source: Source) -> Checkpoint:
    """Find a model's folder, on disk or through the hub's local cache, and look it over.

    Raises:
        TeacherError: it is not there, is not a model, hides its weights in a pickle, or wants to run code.
    """
    folder, revision = Path(source.place), spec.revision
    if source.kind == "hub":
        folder, revision = _fetch(spec, source.place)
    config = read_json(folder / "config.json", source.public)
    if "auto_map" in config and not spec.trust_remote_code:
        raise TeacherError(
            f"{source.public} comes with code of its own (auto_map in config.json), which was not run",
            "read that code; if you trust it, allow it with --trust-remote-code, or load the model in a function of "
            "your own and give module:factory",
        )
    weights = _find_weights(folder, source.public, spec.allow_pickle)
    return Checkpoint(folder, source.public, revision, config, weights)


def _fetch(spec: TeacherSpec, hub_id: str) -> tuple[Path, str]:
    """Bring what is needed of a hub repository into the local cache: its folder and its commit."""
    from huggingface_hub import snapshot_download

    wanted = [*_SMALL_FILES, "*.safetensors", "*.safetensors.index.json"]
    wanted += ["*.bin", "*.bin.index.json"] if spec.allow_pickle else []
    wanted += ["*.py"] if spec.trust_remote_code else []
    try:
        folder = Path(snapshot_download(hub_id, revision=spec.revision or None, allow_patterns=wanted))
    except Exception as error:  # network, token, gate, name, disk: the client's own words say which
        raise TeacherError(
            f"cannot get {hub_id} (revision {spec.revision or 'main'}) from the Hugging Face hub, "
            f"and it is no folder here: {first_line(error)}",
            "check the name and the network, accept the model's licence on its page and run `hf auth login`, or give "
            "a local folder",
        ) from error
    return folder, folder.name


def read_json(path: Path, shown: str) -> dict[str, Any]:
    """Read a JSON object of a model folder.

    Raises:
        TeacherError: missing, too large, or not a JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise TeacherError(f"{shown}: {path.name} is too large to be what it should be")
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise TeacherError(
            f"{shown} has no {path.name}", "give the folder that save_pretrained wrote, or a model id of the hub"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise TeacherError(f"{shown}: {path.name} cannot be read: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise TeacherError(f"{shown}: {path.name} is not a JSON object")
    return value


def _find_weights(folder: Path, shown: str, allow_pickle: bool) -> tuple[Path, ...]:
    for plain, index in (_SAFE, _PICKLE) if allow_pickle else (_SAFE,):
        if (folder / plain).is_file():
            return (folder / plain,)
        if (folder / index).is_file():
            return _shards(folder, index, shown)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLE_ENDINGS)
    if pickles and not allow_pickle:
        raise TeacherError(
            f"{shown} has its weights in {pickles[0]}, a pickle, which can run code when it is opened",
            "convert them to model.safetensors, or use --allow-pickled-weights if you trust their author",
        )
    raise TeacherError(f"{shown} has no weights", f"expected {' or '.join(_SAFE)}")


def _shards(folder: Path, index: str, shown: str) -> tuple[Path, ...]:
    names = read_json(folder / index, shown).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise TeacherError(f"{shown}: {index} lists no shards")
    ending = "." + index.removesuffix(".index.json").rpartition(".")[2]
    shards = []
    for name in sorted(set(names.values())):
        if name != Path(name).name or not name.endswith(ending):
            raise TeacherError(f"{shown}: {index} names {name!r}, which is no shard beside it")
        if not (folder / name).is_file():
            raise TeacherError(f"{shown} lacks shard {name}", "download the model again")
        shards.append(folder / name)
    return tuple(shards)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def licence(folder: Path) -> str:
    """The licence that a model card states in its front matter, "unknown" where there is none."""
    try:
        with (folder / "README.md").open("rb") as file:
            text = file.read(_MAX_CARD_BYTES).decode("utf-8", "replace")
    except OSError:
        return "unknown"
    front = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    lines = re.findall(r"^(license|license_name):[ \t]*['\"]?([\w.+-]+)", front[1], re.MULTILINE) if front else []
    fields: dict[str, str] = dict(lines)
    name = fields.get("license", "unknown")
    return fields.get("license_name", name) if name == "other" else name


def stored_mean_std(folder: Path, shown: str) -> tuple[tuple[float, float, float], tuple[float, float, float]] | None:
    """Mean and standard deviation of RGB in 0..1 from preprocessor_config.json; None where it does not say.

    Raises:
        TeacherError: the file is there and cannot be understood.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    config = read_json(path, shown)
    if config.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if "image_mean" not in config or "image_std" not in config:
        return None
    return triple(config["image_mean"], f"{shown}: image_mean"), triple(config["image_std"], f"{shown}: image_std")


def triple(value: Any, what: str) -> tuple[float, float, float]:
    """Three finite numbers, one per colour.

    Raises:
        TeacherError: anything else.
    """
    try:
        red, green, blue = (float(number) for number in value)
    except (TypeError, ValueError) as error:
        raise TeacherError(f"{what} is {value!r}, not three numbers") from error
    if not all(abs(number) < float("inf") for number in (red, green, blue)):
        raise TeacherError(f"{what} is {value!r}, not three finite numbers")
    return red, green, blue


def stored_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Names and values, of any shape, in the safetensors files, one at a time.

    Raises:
        TeacherError: a file is damaged.
    """
    for path in checkpoint.weights:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise TeacherError(f"{checkpoint.shown}: {path.name} is damaged: {first_line(error)}") from error


def check_loaded(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Compare a loaded model with its file, value by value, and refuse weights that are no numbers.

    Libraries have loaded every key and then reset some of them without a word (transformers' TimmBackbone and its
    batch-norm statistics). Tensors are matched by name, with or without the prefix of an enclosing model; those that
    the library renamed cannot be matched and are left to its own account of the loading.

    Raises:
        TeacherError: a value differs, or is NaN or infinite.
    """
    state = model.state_dict()
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise TeacherError(f"{checkpoint.shown}: weight {name} is not finite", "download the model again")
    if checkpoint.pickled:
        return
    prefixes = {"", "vision_model.", f"{getattr(model, 'base_model_prefix', '')}."}
    owners = {prefix + name: name for name in state for prefix in prefixes}
    for stored, value in stored_tensors(checkpoint):
        loaded = state.get(owners.get(stored, ""))
        if loaded is not None and not torch.equal(loaded.cpu(), value.to(loaded.dtype)):
            raise TeacherError(
                f"{checkpoint.shown}: {stored} changed while it was loaded, so its features would be wrong",
                "load the model in a function of your own and give module:factory; please report this",
            )
