"""An exported graph in an encoder's place: judged, searched and indexed with like any other model, but not trained.

`loading.load_encoder` makes one of a folder that has SERVING.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from trainer.model.encoder import Encoder, EncoderSpec
from trainer.model.folder import UnfitModel, optional_json
from trainer.model.packing import Group, TokenBatch
from trainer.model.runtime import EMBEDDING, GRAPHS, SERVING, Graph, NoRuntime, open_graph
from trainer.system.files import MANIFEST, find_damage, json_ready

TOKENS_AT_ONCE = 2_048  # that a graph takes; what lies between its layers then stays in a cache
TOKENIZER = "tokenizer.json"
OF_SPEC = ("pooling", "normalize", "max_length", "default_prompt", "query_prompt", "document_prompt")  # kept alike


@dataclass(frozen=True)
class ServingFacts:
    """What SERVING holds."""

    runtime: str
    """One of `runtime.GRAPHS`."""
    int8: bool
    dims: tuple[int, ...]
    """What an embedding may be cut to; the largest is the graph's own length."""
    pooling: str
    normalize: bool
    """Whether the graph gives embeddings of length one."""
    max_length: int
    prompts: dict[str, str]
    default_prompt: str | None
    query_prompt: str
    document_prompt: str
    token_count: int
    """Tokens that the graph has embeddings for."""
    model: dict[str, str]
    """What it was made of: name (a folder or hub name), type, weights_fingerprint."""
    opset: int
    versions: dict[str, str]
    """Of the packages that made it."""
    differences: dict[str, float]
    """From the model, as `serving.proof` found them."""
    judgement: dict[str, Any] | None = None
    """How much it lost, where there were pairs to tell."""

    @classmethod
    def of(cls, spec: EncoderSpec, **others: Any) -> ServingFacts:
        """The facts of a graph that pools, prompts and cuts texts as a model's spec says."""
        return cls(**{name: getattr(spec, name) for name in OF_SPEC}, prompts=dict(spec.prompts), **others)

    def spec(self, name: str, root: Path) -> EncoderSpec:
        """How embeddings are made by this graph in the folder `root`, which is called `name`."""
        prompts = tuple(self.prompts.items())
        return EncoderSpec(name, root, prompts=prompts, **{field: getattr(self, field) for field in OF_SPEC})

    def to_json(self) -> str:
        """What `read_facts` reads back."""
        return json.dumps(json_ready(asdict(self)), indent=2, ensure_ascii=False) + "\n"


def is_served(name: str) -> bool:
    """Whether a name is that of a folder of an exported graph."""
    return (Path(name) / SERVING).is_file()


def read_facts(root: Path) -> ServingFacts:
    """What a folder of an exported graph says of itself. Raises UnfitModel where its files are not what was written."""
    if problem := find_damage(root, (SERVING, TOKENIZER)):
        raise UnfitModel(f"{problem}; copy or export it again")
    record = optional_json(root / SERVING)
    if record.keys() != {field.name for field in fields(ServingFacts)} or record["runtime"] not in GRAPHS:
        raise UnfitModel(f"{SERVING} is of another version; export it again")
    return ServingFacts(**record | {"dims": tuple(record["dims"])})


class ServedModel(nn.Module):
    """What an `Encoder` asks of a Hugging Face model, of a graph: width, number of tokens, and what to know it by."""

    def __init__(self, facts: ServingFacts, sha256: str) -> None:
        super().__init__()
        self.config = PreTrainedConfig(hidden_size=max(facts.dims))  # type: ignore[call-arg]  # takes any name
        # The graph's hash stands for its weights, so that it has a fingerprint of its own.
        self.sha256 = nn.Parameter(torch.tensor(list(bytes.fromhex(sha256)), dtype=torch.uint8), requires_grad=False)
        self.get_input_embeddings: Callable[[], Any] = lambda: SimpleNamespace(num_embeddings=facts.token_count)


class ServedEncoder(Encoder):
    """An encoder whose embeddings are those of a graph: pooled, cut and of length one as that has it."""

    def __init__(self, model: Any, tokenizer: Any, spec: EncoderSpec, graph: Graph) -> None:
        super().__init__(model, tokenizer, spec)
        self.graph = graph

    @property
    def path(self) -> str:
        return "an exported graph"

    def forward(self, batch: TokenBatch) -> Tensor:
        """Embeddings [N, D] in the order the sequences were given."""
        rows = [self._embed_group(batch, group) for group in batch.groups]
        embeddings = torch.from_numpy(np.concatenate(rows)).to(batch.input_ids.device)
        return embeddings[batch.order]

    def _embed_group(self, batch: TokenBatch, group: Group) -> np.ndarray:
        """[n, D] of sequences of near-equal length, TOKENS_AT_ONCE at a time."""
        ids = torch.zeros(group.count * group.length, dtype=torch.int64)
        mask, tokens = torch.zeros_like(ids), batch.input_ids[group.start : group.stop].cpu()
        slots = slice(None) if group.slots is None else group.slots.cpu()
        ids[slots], mask[slots] = tokens, 1
        step = max(TOKENS_AT_ONCE // group.length, 1)
        parts = zip(ids.view(-1, group.length).split(step), mask.view(-1, group.length).split(step), strict=True)
        return np.concatenate([self.graph((EMBEDDING,), *(part.numpy() for part in pair))[0] for pair in parts])


def load_served(name: str) -> ServedEncoder:
    """The encoder of an exported graph's folder. Raises UnfitModel."""
    root = Path(name)
    facts = read_facts(root)
    try:
        graph = open_graph(root, facts.runtime, torch.get_num_threads())
    except NoRuntime as error:
        raise UnfitModel(str(error)) from error
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(root / TOKENIZER))
    return ServedEncoder(ServedModel(facts, _graph_hash(root, facts)), tokenizer, facts.spec(name, root), graph).eval()


def _graph_hash(root: Path, facts: ServingFacts) -> str:
    """SHA-256 (hex) over those of a graph's files, which may be several."""
    sealed, stem = json.loads((root / MANIFEST).read_bytes()), Path(GRAPHS[facts.runtime]).stem
    hashes = [sealed[file]["sha256"] for file in sorted(sealed) if file.startswith(f"{stem}.")]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
