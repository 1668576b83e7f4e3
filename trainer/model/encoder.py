"""A text encoder: backbone, LoRA adapters, pooling. Packed tokens in, unnormalised embeddings out.

Reads plain Hugging Face folders and sentence-transformers ones. Only safetensors weights are loaded and no code from
a model folder runs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import peft
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.model.families import FAMILIES
from trainer.model.fast_layers import make_lean
from trainer.model.forward import packed_hidden_states, padded_hidden_states, pool
from trainer.model.packing import TokenBatch


@dataclass(frozen=True)
class EncoderSpec:
    """What makes embeddings of a backbone's hidden states."""

    name: str
    pooling: str  # "mean" or "cls"
    max_length: int
    normalize: bool = False  # the folder has a Normalize module; cosines do not depend on it, the export keeps it
    lower_case: bool = False
    prompts: tuple[tuple[str, str], ...] = ()
    default_prompt: str | None = None

    @property
    def prompt(self) -> str:
        """What is put before every text."""
        return dict(self.prompts)[self.default_prompt] if self.default_prompt else ""


class Encoder(nn.Module):
    """Embeds packed token batches; `backbone` is the Hugging Face model, or the PEFT model around it."""

    def __init__(self, backbone: PreTrainedModel, tokenizer: Any, spec: EncoderSpec) -> None:
        super().__init__()
        make_lean(backbone)
        self.backbone: PreTrainedModel | peft.PeftModel = backbone
        self.tokenizer = tokenizer
        self.spec = spec
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
        return pool(hidden, batch, self.spec.pooling)

    def prepare(self, text: str) -> str:
        """A text as the tokenizer should see it: after the prompt, in lower case where the model wants it."""
        text = self.spec.prompt + text
        return text.lower() if self.spec.lower_case else text

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that get gradients, by name, in order."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


def weights_fingerprint(encoder: Encoder) -> str:
    """SHA-256 over the names and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
