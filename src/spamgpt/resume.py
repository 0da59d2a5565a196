"""What `fit` keeps after each epoch, so that an interrupted training can continue.

One safetensors file: the trained weights, the optimizer's tensors and the states of the
random generators; its header holds the rest as JSON. Nothing in it can run code.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from spamgpt.files.workspace import atomic, say, show_path
from spamgpt.recipes import Recipe

FILE = "training.safetensors"
FORMAT = 2  # of that file; before there was a number, the fingerprint had other parts


class Checkpoint:
    """The last finished epoch of one training, in `folder`; used as a context around it.

    `run` is what makes the training the one it is (see `fingerprint`): a checkpoint of another
    one is never taken up. When the context ends well, or with a loss that is not a number,
    the file is removed: there is nothing to continue. A KeyboardInterrupt leaves it and
    says so.
    """

    def __init__(self, folder: Path, run: dict[str, str], epochs: int):
        self.path, self.run, self.epochs = folder / FILE, run, epochs
        self.epoch = 0  # the last one that is kept
        self.failed = False  # whether one could not be written

    def __enter__(self) -> "Checkpoint":
        self.facts, self.tensors = self._read()
        self.epoch = self.facts.get("epoch", 0)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if kind is None or issubclass(kind, FloatingPointError):
            self._remove()
        elif issubclass(kind, KeyboardInterrupt):
            if not self.epoch:
                raise KeyboardInterrupt(
                    "stopped before the first epoch was finished: nothing is kept, training "
                    "starts again from the beginning when you run this again"
                ) from None
            raise KeyboardInterrupt(
                f"stopped; {self.epoch} of {self.epochs} epochs are kept in "
                f"{show_path(self.path)}: run this again, and training continues after them"
            ) from None

    def _read(self) -> tuple[dict, dict[str, Tensor]]:
        """What the file holds, or nothing if it is not of this run; says which it is."""
        nothing, name = ({}, {}), show_path(self.path)
        if not self.path.exists():
            return nothing
        try:
            with safe_open(self.path, "pt") as file:
                facts = json.loads(file.metadata()["training"])
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            keys = {**self.run, **facts["run"]}  # of both: another objective has other words
            other = [key for key in keys if self.run.get(key) != facts["run"].get(key)]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
            say(f"{name} cannot be read: training starts from the beginning.")
            return nothing
        if facts.get("format") != FORMAT:
            say(
                f"{name} was kept by another version of spamgpt and cannot be continued: training "
                "starts from the beginning, and replaces it after its first epoch."
            )
            return nothing
        if other:
            say(
                f"{name} is of another training ({', '.join(other)}): this one starts from the "
                "beginning, and replaces it after its first epoch."
            )
            return nothing
        say(f"Continuing after epoch {facts['epoch']} of {self.epochs}, kept in {name}.")
        return facts, tensors

    def load(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> tuple[int, list[dict]]:
        """Bring all three, and the random generators, to where the checkpoint was made.

        Returns the number of finished epochs and the history so far: 0 and an empty list,
        and nothing is touched, if there is no checkpoint of this run.
        """
        if not self.epoch:
            return 0, []
        trained = _trained(model)
        with torch.no_grad():
            for name, weight in _below("weight", self.tensors).items():
                trained[name].copy_(weight)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below("optimizer", self.tensors).items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": self.facts["param_groups"]})
        schedule.load_state_dict(self.facts["schedule"])
        for name, random_state in _below("random", self.tensors).items():
            _generators(_device(model))[name].set_rng_state(random_state)
        self.tensors = {}
        return self.epoch, self.facts["rows"]

    def save(
        self,
        epoch: int,
        rows: list[dict],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        """Keep the state after `epoch`, all or nothing, in place of the epoch before.

        If it cannot be written, says so: training is worth more than its safety net.
        """
        state = optimizer.state_dict()
        tensors = {f"weight.{name}": p.detach() for name, p in _trained(model).items()}
        for index, values in state["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
        for name, module in _generators(_device(model)).items():
            tensors[f"random.{name}"] = module.get_rng_state()
        facts = {
            "format": FORMAT,
            "run": self.run,
            "epoch": epoch,
            "rows": rows,
            "param_groups": state["param_groups"],
            "schedule": schedule.state_dict(),
        }
        try:
            with atomic(self.path) as temporary:
                save_file(tensors, temporary, metadata={"training": json.dumps(facts)})
        except (OSError, SafetensorError) as error:
            if not self.failed:  # one warning is enough
                say(
                    f"Epoch {epoch} could not be kept in {show_path(self.path)} ({error}): "
                    "training continues, but if it is interrupted, what it learns is lost."
                )
            self.failed = True
        else:
            self.epoch = epoch

    def _remove(self) -> None:
        """Delete the file, if it is of this run, and its folder, if nothing else is there."""
        if self.epoch:
            self.path.unlink(missing_ok=True)
            with suppress(OSError):  # not empty
                self.path.parent.rmdir()


def fingerprint(
    model: nn.Module, train: Dataset, validation: Dataset, recipe: Recipe, **facts
) -> dict[str, str]:
    """What the result of a training depends on: a word for each part, and its digest or value."""
    weights, data = hashlib.sha256(), hashlib.sha256()
    for name, tensor in model.state_dict().items():
        weights.update(name.encode())
        weights.update(_bytes(tensor))
    for part in (train, validation):
        data.update(f"{len(part)}".encode())
        for i in range(len(part)):
            for value in part[i]:
                data.update(_bytes(value) if isinstance(value, Tensor) else repr(value).encode())
    dropout = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    return {
        "starting weights": weights.hexdigest(),
        "messages": data.hexdigest(),
        "trained weights": ", ".join(_trained(model)),
        "recipe": json.dumps(asdict(recipe)),
        "dropout": json.dumps(dropout),
        "torch or device": f"{torch.__version__} on {_device(model).type}",
        **{key: str(value) for key, value in facts.items()},
    }


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _trained(model: nn.Module) -> dict[str, torch.nn.Parameter]:
    """The weights that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _generators(device: torch.device) -> dict:
    """The modules whose random generators training uses: dropout draws on the device."""
    modules = {"cpu": torch.random, "cuda": torch.cuda, "mps": torch.mps}
    return {name: modules[name] for name in ("cpu", device.type)}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix`, without it."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
