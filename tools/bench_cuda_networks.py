"""The networks of `bench_cuda.py`: exported by PyTorch, or written without it.

Those that torchvision and transformers have can be run by PyTorch, too. Where one of the packages
is missing, `make_networks.py` writes the same architectures, and PyTorch is no peer.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import make_networks
import numpy as np
import onnx
from onnx import numpy_helper
from quantise_network import quantised

from aegis_pipe.onnx_backend import AegisBackend

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "torchvision", "transformers")
LENGTH = 128
WRITTEN = {
    "resnet50": "resnet50",
    "mobilenet_v2": "mobilenetv2",
    "bert_base": "bert-base",
    "vit_b_16": "vit-b16",
}
"""What `make_networks.py` calls them."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A network to be measured, with one input and one output."""

    path: Path
    """In float32, of fixed shapes."""
    example: np.ndarray
    expected: np.ndarray
    """The result in float32."""
    module: torch.nn.Module | None = None
    """For PyTorch, on the host; None if PyTorch is not to run it."""
    data: Any = None
    """The example as PyTorch's tensor."""


def why_no_torch() -> str:
    """Return what PyTorch's networks need and is not installed; empty if all is here."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def subject_of(name: str, batch: int, folder: Path) -> Subject:
    """Make a network of a batch size, its file in `folder`."""
    return written(name, batch, folder) if why_no_torch() else exported(name, batch, folder)


def quantised_subject(subject: Subject) -> Subject:
    """Return a convolutional network in 8 bits, in QDQ form; its result is expected in float32."""
    model = quantised(onnx.load(subject.path), subject.example)
    path = subject.path.with_suffix(".qdq.onnx")
    onnx.save(model, path)
    return Subject(path, subject.example, subject.expected)


# --- Without PyTorch --------------------------------------------------------------------------


def written(name: str, batch: int, folder: Path) -> Subject:
    """Make it without PyTorch; what is expected is what the CPU device computes."""
    make, shapes = make_networks.NETWORKS[WRITTEN[name]]
    model = make()
    make_networks.settle_statistics(model)
    fixed = {key: (batch, *shape[1:]) for key, shape in shapes.items()}
    _keep_one_input(model, fixed)
    shape = fixed[model.graph.input[0].name]
    random = np.random.default_rng(7)
    if model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT64:
        example = random.integers(0, 30000, shape)
    else:
        example = random.standard_normal(shape, np.float32)
    (expected,) = AegisBackend.run_model(model, [example])
    path = folder / f"{name}_{batch}.onnx"
    onnx.save(model, path)
    return Subject(path, example, expected)


def _keep_one_input(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> None:
    """Fix shapes and keep the first output; all inputs but the first become constants.

    They are BERT's mask and kinds of words: everything is seen and of the first kind.
    """
    first, *others = model.graph.input
    for value in others:
        fill = np.ones if "mask" in value.name else np.zeros
        array = fill(shapes[value.name], np.int64)
        model.graph.initializer.append(numpy_helper.from_array(array, value.name))
    del model.graph.input[1:]
    del model.graph.output[1:]
    for dimension, size in zip(first.type.tensor_type.shape.dim, shapes[first.name], strict=True):
        dimension.dim_value = size


# --- With PyTorch -----------------------------------------------------------------------------


def exported(name: str, batch: int, folder: Path) -> Subject:
    """Make it by PyTorch, with random weights; what is expected is PyTorch's, without tf32."""
    import torch

    make, example_of = NETWORKS[name]
    torch.manual_seed(1)
    model = make().eval()
    example = example_of(batch)
    path = folder / f"{name}_{batch}.onnx"
    with torch.inference_mode():
        torch.onnx.export(model, (example,), str(path), opset_version=17, dynamo=False)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        expected = model.to("cuda")(example.to("cuda")).cpu().numpy()
        model.to("cpu")
    return Subject(path, example.numpy(), expected, model, example)


def half_exporter(subject: Subject) -> Callable[[Path], object] | None:
    """Return what has PyTorch write the network in float16; None without PyTorch."""
    if subject.module is None:
        return None

    def export(target: Path) -> None:
        import torch

        half = copy.deepcopy(subject.module).to("cuda", torch.float16)
        data = subject.data.to("cuda")
        data = data.half() if data.is_floating_point() else data
        with torch.inference_mode():
            torch.onnx.export(half, (data,), str(target), opset_version=17, dynamo=False)

    return export


def release_memory() -> None:
    """Have PyTorch give back what it keeps of the GPU."""
    import torch

    torch.cuda.empty_cache()
    torch.compiler.reset()


def _image(batch: int) -> torch.Tensor:
    import torch

    return torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(7))


def _ids(batch: int) -> torch.Tensor:
    import torch

    return torch.randint(0, 30000, (batch, LENGTH), generator=torch.Generator().manual_seed(7))


def _torchvision(name: str) -> torch.nn.Module:
    import torch
    import torchvision

    # The fast path has no form in ONNX.
    torch.backends.mha.set_fastpath_enabled(False)
    model = getattr(torchvision.models, name)(weights=None)
    if hasattr(model, "heads"):
        # Zero as it is made, which would make every output right.
        torch.nn.init.normal_(model.heads.head.weight, std=0.02)
    # Statistics of random weights make outputs vanish: take them from data.
    model.train()
    with torch.no_grad():
        for seed in range(3):
            model(torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(seed)))
    return model


def _bert() -> torch.nn.Module:
    import torch
    from transformers import BertConfig, BertModel

    class LastHidden(torch.nn.Module):
        """An encoder that returns its last hidden state only."""

        def __init__(self, encoder: torch.nn.Module) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.encoder(input_ids=ids).last_hidden_state

    config = BertConfig(attn_implementation="eager")
    return LastHidden(BertModel(config, add_pooling_layer=False))


NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[int], torch.Tensor]]] = {
    "resnet50": (lambda: _torchvision("resnet50"), _image),
    "mobilenet_v2": (lambda: _torchvision("mobilenet_v2"), _image),
    "bert_base": (_bert, _ids),
    "vit_b_16": (lambda: _torchvision("vit_b_16"), _image),
}
