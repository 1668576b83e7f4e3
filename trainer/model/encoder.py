"""A text encoder: backbone, LoRA adapters, pooling. Packed tokens in, unnormalised embeddings out.

`Encoder.encode` takes texts; `trainer.model.loading.load_encoder` makes an encoder of a model folder.

Shapes: T tokens, N texts or sequences, n of them, E embedding width.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.errors import InputError
from trainer.model.families import FAMILIES
from trainer.model.forward import packed_hidden_states, padded_hidden_states, pool
from trainer.model.packing import TokenBatch
from trainer.model.tokens import TokenTable, tokenize, tokenize_cached
from trainer.system.console import progress
from trainer.system.transfer import to_device

TOKENS_PER_BATCH = 8_192
SURROGATES = re.compile("[\ud800-\udfff]")  # halves of pairs, which a Python string may hold and UTF-8 cannot


@dataclass(frozen=True)
class EncoderSpec:
    """What makes embeddings of a backbone's hidden states."""

    name: str
    folder: Path  # of the transformer's own files
    pooling: str  # "mean" or "cls"
    max_length: int
    normalize: bool = False  # the folder has a Normalize module; cosines do not depend on it, the export keeps it
    lower_case: bool = False
    prompts: tuple[tuple[str, str], ...] = ()  # by name, as the folder has them
    default_prompt: str | None = None  # the name of the one that `encode` uses
    query_prompt: str = ""  # put before the first text of every pair
    document_prompt: str = ""  # put before the second one
    truncate_dim: int | None = None  # what the folder has embeddings cut to by those who name no dim
    adapter: Path | None = None  # the folder of an adapter that the model was loaded with
    base: str = ""  # the folder or hub name of the weights around which adapters are trained; "" of none

    @property
    def prompt(self) -> str:
        """What `encode` puts before every text."""
        return dict(self.prompts)[self.default_prompt] if self.default_prompt else ""

    @property
    def side_prompts(self) -> tuple[str, ...]:
        """The prompt of both sides of a pair where they have the same one, else the query's and the document's."""
        return tuple(dict.fromkeys((self.query_prompt, self.document_prompt)))


class Encoder(nn.Module):
    """Embeds texts, or packed batches of their tokens.

    `backbone` is the Hugging Face model, or the PEFT model around it; its layers are used as they are.
    """

    dense: Tensor | None
    """[E, E] weights of a linear layer behind the pooling, a Dense module of the model's folder; it does not train."""

    def __init__(self, backbone: PreTrainedModel, tokenizer: Any, spec: EncoderSpec) -> None:
        super().__init__()
        self.backbone: PreTrainedModel | peft.PeftModel = backbone
        self.tokenizer = tokenizer
        self.spec = spec
        self.register_buffer("dense", None)
        # How steps of training go through the packed path; everything else goes the plain way, in groups and eagerly,
        # so that no judgement depends on a kernel and nothing is compiled a second time for it.
        self.attention = "groups"  # or "kernel"
        self.compiled = False  # whether torch.compile has the layers

    @property
    def model(self) -> Any:
        """The Hugging Face model, its projections replaced by LoRA layers where there are adapters."""
        return self.backbone.get_base_model() if isinstance(self.backbone, peft.PeftModel) else self.backbone

    @property
    def width(self) -> int:
        """E, the embedding width."""
        return int(self.model.config.hidden_size)

    @property
    def usual_dim(self) -> int:
        """The length of an embedding for those who name none: E, or less where the folder has it cut."""
        return min(self.width, self.spec.truncate_dim or self.width)

    @property
    def path(self) -> str:
        """How texts go through the model in training, in words."""
        if self.model.config.model_type not in FAMILIES:
            return "padded"
        attention = "attention by Triton kernel" if self.attention == "kernel" else "attention in groups"
        return f"packed, {attention}{', layers compiled' if self.compiled else ''}"

    def forward(self, batch: TokenBatch) -> Tensor:
        """Embeddings [N, E] in the order the sequences were given."""
        if self.model.config.model_type in FAMILIES:
            ways = (self.compiled, self.attention) if self.training else ()
            hidden = packed_hidden_states(self.model, batch, *ways)
        else:
            hidden = padded_hidden_states(self.model, batch)
        return self.through_dense(pool(hidden, batch, self.spec.pooling))

    def through_dense(self, pooled: Tensor) -> Tensor:
        """Embeddings [N, E] of what was pooled, in fp32 whatever the precision of the layers before."""
        if self.dense is None:
            return pooled
        with torch.autocast(pooled.device.type, enabled=False):
            return pooled.float() @ self.dense.T

    def encode(
        self,
        texts: Iterable[str],
        *,
        side: str | None = None,
        dims: int | None = None,
        normalize: bool | None = None,
        tokens_per_batch: int = TOKENS_PER_BATCH,
    ) -> np.ndarray:
        """Embed texts in fp32, as `embed` does.

        The result is that of sentence-transformers' `encode`, `encode_query` or `encode_document` with
        `truncate_dim=dims`.

            >>> from trainer.model.loading import load_encoder
            >>> encoder = load_encoder("models/tiny")
            >>> encoder.encode(["the printer is jammed", "vpn drops"], dims=32).shape
            (2, 32)

        Args:
            texts: N texts in any order; none give no rows.
            side: "query" or "document": the prompt of that side of a pair; None: the model's default prompt.
            dims: keep the first so many values of each embedding (Matryoshka); None all, or what its folder says.
            normalize: True gives rows of length one, False rows as they are pooled; None does as the model's folder
                says, before the cut.
            tokens_per_batch: most tokens that go through the model at once, which bounds the memory.

        Returns:
            [N, dims] float32, in the order of `texts`.

        Raises:
            InputError: `texts` is one string or holds something else, `dims` is not from 1 to the width, or `side` is
                not known.
        """
        texts = _checked_texts(texts)
        if dims is not None and not (isinstance(dims, int | np.integer) and 1 <= dims <= self.width):
            raise InputError(f"encode: dims = {dims!r}: use a whole number from 1 to {self.width}, the model's width")
        if tokens_per_batch < 1:
            raise InputError(f"encode: tokens_per_batch = {tokens_per_batch}: use 1 or more")
        if not texts:
            return np.empty((0, dims or self.usual_dim), dtype=np.float32)
        prompts = {None: self.spec.prompt, "query": self.spec.query_prompt, "document": self.spec.document_prompt}
        if side not in prompts:
            raise InputError(f'encode: side = {side!r}: use "query", "document" or None')
        tokens, kind = self.tokenize(texts, (prompts[side],)), next(self.parameters()).device.type
        rows = self.embed(tokens, None, tokens_per_batch, lambda: torch.autocast(kind, enabled=False), "Encoding")
        if normalize is None and self.spec.normalize:
            rows = nn.functional.normalize(rows, dim=1)
        rows = rows[:, : dims or self.usual_dim]
        return (nn.functional.normalize(rows, dim=1) if normalize else rows).cpu().numpy()

    def tokenize(self, texts: Sequence[str], prompts: Sequence[str], *, cached: bool = False) -> TokenTable:
        """Tokenise N texts, at least one, after each of P prompts, at the model's length: a table of P * N.

        Args:
            prompts: all texts stand after the first one, then all after the next one.
            cached: keep the tokens on disk, and take them from there where the same texts were tokenised before.

        Raises:
            InputError: the tokenizer gives no token, or tokens that the model has no embedding for.
        """
        prompted = [prompt + text for prompt in prompts for text in texts]
        tokens = (tokenize_cached if cached else tokenize)(prompted, self.tokenizer, self.spec.max_length)
        if not tokens.lengths.all():
            empty = prompted[int(np.argmin(tokens.lengths))]
            raise InputError(f"model.name = {self.spec.name}: no token comes of the text {empty[:50]!r}; remove it")
        count = self.model.get_input_embeddings().num_embeddings
        if (largest := int(tokens.ids.max())) >= count:
            raise InputError(
                f"model.name = {self.spec.name}: the tokenizer gives token {largest}, the model has embeddings for "
                f"{count}; use the tokenizer it was trained with"
            )
        return tokens

    def embed(
        self,
        tokens: TokenTable,
        texts: np.ndarray | None = None,
        tokens_per_batch: int = TOKENS_PER_BATCH,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
        description: str = "Embedding",
        advance: Callable[..., None] | None = None,
    ) -> Tensor:
        """Unnormalised embeddings [n, E] fp32, on the encoder's device, of texts [n] of a table, or of all of it.

        Without gradients or dropout, batches packed and sorted by length. Shows progress; neither the training mode nor
        any random state is changed.

        Args:
            autocast: the precision to compute in.
            advance: of a progress that is shown already, which then goes on.
        """
        device = next(self.parameters()).device
        texts = np.arange(len(tokens.lengths)) if texts is None else texts
        rows = torch.empty(len(texts), self.width, device=device)
        shown = progress(description, len(texts)) if advance is None else nullcontext(advance)
        with in_mode(self, training=False), shown as advance, torch.no_grad(), autocast():
            for chunk in tokens.chunks(texts, tokens_per_batch) if len(texts) else ():
                batch = to_device(tokens.batch(texts[chunk]), device)
                rows[to_device(torch.from_numpy(chunk), device)] = self(batch).float()
                advance(len(chunk))
        return rows

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that get gradients, by name, in order."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode meanwhile; afterwards the mode from before."""
    was_training = module.training
    module.train(training)
    try:
        yield
    finally:
        module.train(was_training)


def _checked_texts(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise InputError("encode: texts is one string, not a list; write encode([text])")
    if not isinstance(texts, Iterable):
        raise InputError(f"encode: texts is {texts!r}, not a list of strings")
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"encode: texts[{number}] is {text!r}, not a string")
        if SURROGATES.search(text):
            raise InputError(f"encode: texts[{number}] holds half a surrogate pair, which is no text; take it out")
    return texts


@dataclass(frozen=True)
class EmbeddingConditions:
    """Everything of a model that its embeddings, and so its cosines, depend on."""

    weights_fingerprint: str
    pooling: str
    max_length: int
    query_prompt: str
    document_prompt: str


def embedding_conditions(encoder: Encoder) -> EmbeddingConditions:
    """What the embeddings of an encoder depend on."""
    spec = encoder.spec
    return EmbeddingConditions(
        weights_fingerprint(encoder), spec.pooling, spec.max_length, spec.query_prompt, spec.document_prompt
    )


def weights_fingerprint(encoder: Encoder) -> str:
    """SHA-256 over the names and values of all weights."""
    digest = hashlib.sha256()
    dense = {} if encoder.dense is None else {"~dense": encoder.dense}
    for name, tensor in sorted((encoder.model.state_dict() | dense).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
