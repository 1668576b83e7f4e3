"""A model of one of the FAMILIES as one graph: from token ids through pooling, cut and length to the embedding.

The graph is made by torch's own exporter, in fp32; OpenVINO's is read from ONNX. Each has a tool of its own for int8.

Shapes: B sequences, L tokens in the longest, H heads, E hidden width, D dims of an embedding.
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.functional import normalize

from trainer.errors import InputError
from trainer.model.encoder import Encoder
from trainer.model.families import FAMILIES
from trainer.model.fast_layers import make_plain
from trainer.model.runtime import EMBEDDING, GRAPHS, HIDDEN, INPUTS, ONNX, OPENVINO, import_openvino


class EmbeddingGraph(nn.Module):
    """(input_ids [B, L], attention_mask [B, L]) -> (hidden states [B, L, E], embeddings [B, D]).

    Embeddings are cut before they get length one (where the model's folder normalises), so that a dot product of two is
    their cosine.
    """

    bias: Tensor  # [2 * longest - 1, heads], where the family has a relative one
    dense: Tensor | None  # [E, E], of `Encoder`

    def __init__(self, encoder: Encoder, dim: int) -> None:
        super().__init__()
        self.model, self.pooling, self.normalize = encoder.model, encoder.spec.pooling, encoder.spec.normalize
        self.family, self.dim = FAMILIES[encoder.model.config.model_type], dim
        self.register_buffer("dense", encoder.dense)
        self.heads, self.longest = encoder.model.config.num_attention_heads, encoder.spec.max_length
        if self.family.relative_bias:
            bias = encoder.model.encoder.compute_position_bias(torch.empty(1, self.longest, 1)).detach()
            # [2 * longest - 1, H] by distance, as torch has it: with a logarithm of its own, which decides between two
            # buckets, a runtime would take another row here and there.
            self.register_buffer("bias", torch.cat([bias[0, :, :, 0].flip(1), bias[0, :, 0, 1:]], 1).T.contiguous())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.model.embeddings(input_ids=input_ids, position_ids=self._positions(input_ids, places))
        # Finite, so that a sequence without any token is no NaN.
        mask = attention_mask[:, None, None, :].to(hidden.dtype)
        scores_bias = (1 - mask) * torch.finfo(hidden.dtype).min
        if self.family.relative_bias:
            distances = places[None, :] - places[:, None] + self.longest - 1
            scores_bias = scores_bias + self.bias[distances].permute(2, 0, 1)[None]
        for layer in self.family.layers(self.model):
            query, key, value = (self._by_head(x) for x in self.family.project(layer, hidden))
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3) + scores_bias
            context = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
            hidden = self.family.finish(layer, context, hidden)
        pooled = self._pool(hidden, attention_mask)
        if self.dense is not None:
            pooled = pooled @ self.dense.T
        pooled = pooled[:, : self.dim]
        return hidden, normalize(pooled, dim=1) if self.normalize else pooled

    def _positions(self, input_ids: Tensor, places: Tensor) -> Tensor:
        """[B or 1, L]; see `forward.packed_hidden_states`."""
        if not self.family.position_offset:
            return places[None]
        padding = self.model.embeddings.word_embeddings.padding_idx
        real = (input_ids != padding).long()
        return real.cumsum(1) * real + padding

    def _by_head(self, projected: Tensor) -> Tensor:
        """[B, L, E] -> [B, H, L, E / H]"""
        return projected.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _pool(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        if self.pooling == "cls":
            return hidden[:, 0]
        mask = attention_mask[:, :, None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


def require_family(encoder: Encoder) -> None:
    """Raise InputError for a model that is no torch model, or of another family."""
    kind = encoder.model.config.model_type
    if kind not in FAMILIES:
        what = f"{kind} is none of {', '.join(FAMILIES)}" if kind else "is a graph already"
        raise InputError(f"model {encoder.spec.name}: {what}; name another model")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what exporters and runtimes say of themselves, which no user can help."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)


def write_onnx(encoder: Encoder, dim: int, folder: Path) -> int:
    """Write the graph of an encoder as ONNX; its opset.

    Args:
        encoder: of one of the FAMILIES, on the CPU.
        dim: D, at most the encoder's width.
    """
    twin = copy.deepcopy(encoder).eval()
    make_plain(twin)
    length = min(8, encoder.spec.max_length)
    example = torch.zeros(2, length, dtype=torch.int64)
    axes = {0: Dim("batch"), 1: Dim("length", max=encoder.spec.max_length)}
    with quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            EmbeddingGraph(twin, dim).eval(),
            (example, torch.ones_like(example)),
            dynamo=True,
            input_names=list(INPUTS),
            output_names=[HIDDEN, EMBEDDING],
            dynamic_shapes=(axes, axes),
            verbose=False,
        )
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # where in the source of this machine it comes from
        program.save(folder / GRAPHS[ONNX])
    return int(program.model.opset_imports[""])


def quantize(folder: Path, runtime: str) -> None:
    """Turn the weights of a folder's graph into int8, by the tool of its runtime."""
    {ONNX: quantize_onnx, OPENVINO: quantize_openvino}[runtime](folder)


def quantize_onnx(folder: Path) -> None:
    """Weights in int8, with a scale a column; what they are multiplied with becomes int8 as it runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = folder / GRAPHS[ONNX]
    with quiet():
        quantize_dynamic(
            path,
            path,
            op_types_to_quantize=["MatMul", "Gather"],  # Gather: the token embeddings, half of a small model
            weight_type=QuantType.QInt8,
            per_channel=True,  # one scale for a whole matrix loses ten times as much
            reduce_range=True,  # seven bits: without VNNI, sums of two products of eight overflow their 16 bits
        )


def to_openvino(folder: Path) -> None:
    """Replace a folder's ONNX graph by OpenVINO's form of it, in fp32."""
    openvino = import_openvino()
    model = openvino.Core().read_model(folder / GRAPHS[ONNX])
    openvino.save_model(model, folder / GRAPHS[OPENVINO], compress_to_fp16=False)
    for file in folder.glob(f"{GRAPHS[ONNX]}*"):
        file.unlink()


def quantize_openvino(folder: Path) -> None:
    """Weights in int8, with a scale a row; without VNNI OpenVINO turns them back into fp32 as it runs."""
    os.environ.setdefault("NNCF_CI", "1")  # else it reports its use to its maker
    openvino = import_openvino()
    import nncf

    path, smaller = folder / GRAPHS[OPENVINO], folder / "int8" / GRAPHS[OPENVINO]
    with quiet(), redirect_stdout(StringIO()):
        model = nncf.compress_weights(openvino.Core().read_model(path), mode=nncf.CompressWeightsMode.INT8_SYM)
        openvino.save_model(model, smaller, compress_to_fp16=False)
    del model  # it reads the files that are replaced
    for file in smaller.parent.iterdir():
        file.replace(folder / file.name)
    smaller.parent.rmdir()
