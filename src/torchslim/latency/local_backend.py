"""Timing layers and networks in the backends of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import nn

from torchslim.errors import RequestError
from torchslim.latency.backends import BACKENDS, FILE_RUNTIMES, check_backend, prepare_model
from torchslim.latency.layer_benchmark import time_layers
from torchslim.latency.timing import measure, processor
from torchslim.latency.workloads import Workload
from torchslim.utils.copying import copy_model
from torchslim.utils.inputs import Inputs, map_tensors, tensors_in
from torchslim.utils.text import did_you_mean

LOCAL_BACKENDS = (*BACKENDS, "cuda")
"""Backends of plans: those of `bench`, and eager on an NVIDIA GPU."""

_ROUNDS = 40
_MIN_SECONDS = 0.03  # of a network's turn: a single call of a small network is too short to time


@dataclass(frozen=True)
class LocalBackend:
    """A backend on this machine (see `torchslim.latency.backends.Backend`).

    Attributes:
        name: one of `LOCAL_BACKENDS`.
        device: of torch.
        threads: CPU threads.
    """

    name: str
    device: torch.device
    threads: int

    @classmethod
    def create(cls, name: str, inputs: Inputs) -> LocalBackend:
        """The backend of a name, for a network with these inputs.

        Raises:
            MissingExtra: a package that it needs is not installed.
            RequestError: an unknown backend, or one that can't run here or on the inputs' device.
        """
        if name not in LOCAL_BACKENDS:
            raise RequestError(f"backend {name!r}: there is none of that name; {did_you_mean(name, LOCAL_BACKENDS)}")
        device = next((t.device for t in tensors_in(inputs) if t.device.type != "cpu"), torch.device("cpu"))
        if name != "cuda":
            check_backend(name, device.type)
        elif not torch.cuda.is_available():
            raise RequestError("backend cuda: torch finds no CUDA device here; plan where there is one, or choose "
                               f"another of {', '.join(BACKENDS)}")
        elif device.type != "cuda":
            device = torch.device("cuda")
        return cls(name, device, torch.get_num_threads())

    @property
    def environment(self) -> Mapping[str, str]:
        """All that times depend on beside the layers."""
        gpu = {"gpu": torch.cuda.get_device_name(self.device)} if self.device.type == "cuda" else {}
        runtime = {self.name: version(self.name)} if self.name in FILE_RUNTIMES else {}
        return {"backend": self.name, "processor": processor(), "threads": str(self.threads),
                "device": self.device.type, **gpu, "torch": torch.__version__, **runtime}

    def time_layers(self, workloads: Sequence[Workload]) -> list[float]:
        """Nanoseconds of each single layer."""
        return time_layers(workloads, self.name, self.device, self.threads)

    def time_networks(self, models: Sequence[nn.Module], inputs: Inputs) -> list[list[float]]:
        """Nanoseconds of a call of each network in each round, measured in turns.

        Raises:
            ExportError: the backend can't run a network.
        """
        if self.name == "cuda":
            models = [copy_model(model).to(self.device) for model in models]
            inputs = map_tensors(lambda tensor: tensor.to(self.device), inputs)
        backend = "eager" if self.name == "cuda" else self.name
        prepared = {str(number): prepare_model(model, inputs, backend, threads=self.threads)
                    for number, model in enumerate(models)}
        latencies = measure(prepared, inputs, rounds=_ROUNDS, min_seconds=_MIN_SECONDS, threads=self.threads)
        return [[milliseconds * 1e6 for milliseconds in latency.runs] for latency in latencies.values()]
