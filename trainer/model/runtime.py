"""A model as a graph, run by onnxruntime or OpenVINO: token ids in, hidden states and embeddings out.

Imports neither torch nor transformers: what serves a graph needs none of them.

Shapes: B sequences, L tokens in the longest, E hidden width, D dims of an embedding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from trainer.errors import first_line

SERVING = "serving.json"
"""What a folder of an exported graph says of itself; a folder that has it is one."""
ONNX, OPENVINO = "onnx", "openvino"
GRAPHS = {ONNX: "model.onnx", OPENVINO: "openvino_model.xml"}
"""Runtime -> the file that it opens."""
PACKAGES = {ONNX: "onnxruntime", OPENVINO: "openvino"}
INPUTS = ("input_ids", "attention_mask")
HIDDEN, EMBEDDING = "last_hidden_state", "sentence_embedding"

Graph = Callable[[Sequence[str], np.ndarray, np.ndarray], list[np.ndarray]]
"""(names of outputs, input_ids [B, L] int64, attention_mask [B, L] int64) -> HIDDEN [B, L, E], EMBEDDING [B, D]."""


class NoRuntime(Exception):
    """A runtime that is not installed, or cannot open a graph; says the fix."""


def open_graph(folder: Path, runtime: str, threads: int = 0) -> Graph:
    """Open the graph of a folder.

    Args:
        runtime: one of GRAPHS.
        threads: to compute with; 0 leaves it to the runtime.

    Raises:
        NoRuntime: the runtime is missing, or too old for the graph.
    """
    path = str(folder / GRAPHS[runtime])
    try:
        return _open_onnx(path, threads) if runtime == ONNX else _open_openvino(path, threads)
    except ImportError as error:
        package = PACKAGES[runtime]
        raise NoRuntime(f"runs by {package}, which cannot be imported ({error}); pip install {package}") from error
    except Exception as error:  # both runtimes have exceptions of their own, without a common base
        raise NoRuntime(
            f"{PACKAGES[runtime]} cannot open {GRAPHS[runtime]}: {first_line(error)}; install a newer one"
        ) from error


def import_openvino() -> ModuleType:
    """OpenVINO, which by itself reports to its maker that it was imported. Raises ImportError."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)  # it cannot be imported, and OpenVINO has a stub for that
    import openvino

    module: ModuleType = openvino
    return module


def _open_onnx(path: str, threads: int) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(names: Sequence[str], *arrays: np.ndarray) -> list[np.ndarray]:
        outputs: list[np.ndarray] = session.run(list(names), dict(zip(INPUTS, arrays, strict=True)))
        return outputs

    return run


def _open_openvino(path: str, threads: int) -> Graph:
    openvino = import_openvino()
    # In fp32 as it was proven: by itself it takes bf16 where the processor has that.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
    compiled = openvino.Core().compile_model(path, "CPU", settings)

    def run(names: Sequence[str], *arrays: np.ndarray) -> list[np.ndarray]:
        outputs = compiled(dict(zip(INPUTS, arrays, strict=True)))
        return [np.array(outputs[name]) for name in names]  # a copy: the next call writes over it

    return run
