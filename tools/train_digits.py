#!/usr/bin/env python3
"""Train the quickstart's classifier of handwritten digits and save it with its test images.

Data: scikit-learn's digits (1,797 images of 8 x 8 pixels, from the UCI repository). A quarter,
chosen by a fixed seed, is never shown to the training and is saved as PNG files named
`<label>-<index>.png`; the rest, also shifted by one pixel each way, trains a small perceptron,
which is saved as ONNX: image float32[1, 1, 8, 8] with values 0 to 1 -> logits float32[1, 10].

    pip install -e .[dev] && python tools/train_digits.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

TARGET = Path(__file__).resolve().parent.parent / "manifests" / "quickstart"
SEED = 20261123


def main() -> None:
    """Train, measure on the unseen images, save."""
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    seen, unseen = train_test_split(
        np.arange(len(images)), test_size=0.25, random_state=SEED, stratify=digits.target
    )
    classifier = MLPClassifier((160, 80), alpha=0.05, max_iter=200, random_state=SEED)
    classifier.fit(*augmented(images[seen], digits.target[seen]))
    right = classifier.score(images[unseen].reshape(-1, 64) / 255, digits.target[unseen])
    save_model(classifier, TARGET / "digits.onnx")
    save_images(images, digits.target, unseen, TARGET / "images")
    print(f"{right:.2%} of {len(unseen)} unseen images right")


def augmented(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the images with copies shifted by one pixel in eight directions, flattened."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    shifts = [(row, column) for row in range(3) for column in range(3)]
    copies = [padded[:, row : row + 8, column : column + 8] for row, column in shifts]
    return np.concatenate(copies).reshape(-1, 64) / 255, np.tile(labels, len(shifts))


def save_model(classifier: MLPClassifier, path: Path) -> None:
    """Write the perceptron as Flatten -> (Gemm -> Relu)* -> Gemm."""
    nodes = [helper.make_node("Flatten", ["image"], ["pixels"])]
    weights = []
    last = len(classifier.coefs_) - 1
    tensor = "pixels"
    for layer, (matrix, bias) in enumerate(
        zip(classifier.coefs_, classifier.intercepts_, strict=True)
    ):
        weights += [
            numpy_helper.from_array(matrix.astype(np.float32), f"dense{layer}.weight"),
            numpy_helper.from_array(bias.astype(np.float32), f"dense{layer}.bias"),
        ]
        result = "logits" if layer == last else f"dense{layer}.out"
        names = [tensor, f"dense{layer}.weight", f"dense{layer}.bias"]
        nodes.append(helper.make_node("Gemm", names, [result], name=f"dense{layer}"))
        if layer < last:
            tensor = f"relu{layer}.out"
            nodes.append(helper.make_node("Relu", [result], [tensor], name=f"relu{layer}"))
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def save_images(images: np.ndarray, labels: np.ndarray, chosen: np.ndarray, folder: Path) -> None:
    """Write the chosen images as greyscale PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in sorted(chosen):
        Image.fromarray(images[index]).save(folder / f"{labels[index]}-{index:04d}.png")


if __name__ == "__main__":
    main()
