"""`trainer export`: a model as a folder that a service runs without torch, proven and judged before it has its name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tokenizers import Tokenizer

from trainer import __version__
from trainer.data.incidents import generate_pairs
from trainer.data.readers import Reading
from trainer.errors import InputError, StorageError
from trainer.evaluation.question import EncoderQuestion
from trainer.model.encoder import Encoder, weights_fingerprint
from trainer.model.export import save_tokenizer
from trainer.model.loading import load_encoder
from trainer.model.runtime import ONNX, OPENVINO, SERVING
from trainer.model.served import TOKENIZER, ServingFacts
from trainer.serving.graph import quantize, require_family, to_openvino, write_onnx
from trainer.serving.judging import PairsToJudge, judge_export, pairs_to_judge
from trainer.serving.proof import differences, probe_texts, require_equal
from trainer.system.console import console
from trainer.system.files import new_folder, write_manifest

LIBRARIES = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class ExportRequest:
    """What is asked of `trainer export`."""

    model: str
    """Folder or hub name."""
    runtime: str = ONNX
    """Or OPENVINO."""
    int8: bool = False
    dim: int | None = None
    """To cut embeddings to; None: what the model's folder says, else its width."""
    output: Path | None = None
    """Folder; None: beside the model's."""
    pairs: str = ""
    """Held-out pairs to judge by; "": the dev set of the run that the model's folder belongs to."""
    label_scale: float = 1.0
    positive_threshold: float | None = None
    reading: Reading | None = None
    allow_loss: float = 0.005
    """Of the metric, at any kept dim."""

    def check(self) -> None:
        """Raise InputError for what cannot be."""
        if not (math.isfinite(self.allow_loss) and self.allow_loss >= 0):
            raise InputError(f"--allow-loss {self.allow_loss:g}: write how much of the metric may be lost, as in 0.005")
        for package in self.packages:
            try:
                version(package)
            except PackageNotFoundError:
                extra = package if package in ("openvino", "nncf") else "'matryoshka-trainer[serve]'"
                raise InputError(f"trainer export: {package} is not installed; pip install {extra}") from None

    @property
    def packages(self) -> tuple[str, ...]:
        """What it takes beside the trainer's own dependencies."""
        of_openvino = (OPENVINO, "nncf") if self.int8 else (OPENVINO,)
        return "onnx", "onnxscript", "onnxruntime", *(of_openvino if self.runtime == OPENVINO else ())

    def folder(self, cut: str) -> Path:
        """Where the export goes; `cut` is what its name says of the dim. Raises StorageError where it exists."""
        place = Path(self.model)
        name = f"{place.resolve().name if place.is_dir() else place.name}-{self.runtime}{'-int8' * self.int8}{cut}"
        folder = self.output or (place.parent if place.is_dir() else Path()) / name
        if folder.exists():
            raise StorageError(f"{folder}: exists already and is not overwritten; name another --output or remove it")
        return folder


def export(request: ExportRequest) -> Path:
    """Write, prove and judge the export of a model; its folder, which is there only if it passed.

    Raises:
        InputError: no such model, an unknown family, bad options or pairs, or a package that is missing.
        CheckpointError: the graph gives something else than the model.
        LostTooMuch: it loses more than was allowed.
        StorageError: the file system refused, or the folder exists.
    """
    request.check()
    encoder = load_encoder(request.model)
    require_family(encoder)
    dim = encoder.usual_dim if request.dim is None else request.dim
    if not 1 <= dim <= encoder.width:
        raise InputError(f"--dims {dim}: embeddings of {request.model} have {encoder.width}; ask for 1 to so many")
    output = request.folder(f"-{dim}" if dim != encoder.width else "")
    question = EncoderQuestion(
        request.model,
        request.pairs,
        label_scale=request.label_scale,
        positive_threshold=request.positive_threshold,
        reading=request.reading,
    )
    judged_by = pairs_to_judge(question, dim)
    texts = judged_by.table.texts if judged_by else generate_pairs(48, 0, "test")["texts1"]
    with new_folder(output) as folder:
        facts = _write(encoder, request, dim, folder, judged_by)
        facts = _compare(encoder, facts, dim, folder, texts)
        require_equal(facts.differences)
        largest = max(facts.differences["embeddings"], facts.differences["batched"])
        console.print(f"Read back by another process: embeddings differ by {largest:.1e} at most", markup=False)
        if request.int8:
            quantize(folder, facts.runtime)
            facts = _compare(encoder, replace(facts, int8=True), dim, folder, texts)
            lowest = 1 - facts.differences["cosine"]  # how far that may be is for the judgement to say
            console.print(f"In int8: cosines with the model's own embeddings from {lowest:.4f} on", markup=False)
        if judged_by:
            facts = replace(facts, judgement=judge_export(encoder, folder, judged_by, request.allow_loss))
            _save(facts, folder)
    return output


def _write(
    encoder: Encoder, request: ExportRequest, dim: int, folder: Path, judged_by: PairsToJudge | None
) -> ServingFacts:
    """Write the graph in fp32 and the tokenizer; what serving.json is to say of them."""
    console.print(f"Exporting {request.model} at {dim} dims", markup=False)
    opset = write_onnx(encoder, dim, folder)
    if request.runtime == OPENVINO:
        to_openvino(folder)
    _write_tokenizer(encoder, folder)
    is_folder, packages = Path(request.model).is_dir(), (*LIBRARIES, *request.packages)
    return ServingFacts.of(
        encoder.spec,
        runtime=request.runtime,
        int8=False,
        dims=judged_by.dims if judged_by else (dim,),
        token_count=encoder.model.get_input_embeddings().num_embeddings,
        model={
            "name": str(Path(request.model).resolve()) if is_folder else request.model,
            "type": encoder.model.config.model_type,
            "weights_fingerprint": weights_fingerprint(encoder),
        },
        opset=opset,
        versions={"matryoshka-trainer": __version__} | {name: version(name) for name in packages},
        differences={},
    )


def _write_tokenizer(encoder: Encoder, folder: Path) -> None:
    """Write the tokenizer so that its one file cuts at the max length and pads a batch, whoever reads it."""
    save_tokenizer(encoder, folder)
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.enable_truncation(encoder.spec.max_length, direction=encoder.tokenizer.truncation_side)
    tokenizer.enable_padding(pad_id=encoder.tokenizer.pad_token_id, pad_token=encoder.tokenizer.pad_token)
    tokenizer.save(str(folder / TOKENIZER))


def _compare(encoder: Encoder, facts: ServingFacts, dim: int, folder: Path, texts: list[str]) -> ServingFacts:
    """The facts, saved, with how far the graph is from the model. Raises CheckpointError as `differences` does."""
    _save(facts, folder)  # of which another process takes the runtime
    facts = replace(facts, differences=differences(encoder, dim, folder, probe_texts(encoder, texts)))
    _save(facts, folder)
    return facts


def _save(facts: ServingFacts, folder: Path) -> None:
    (folder / SERVING).write_text(facts.to_json(), encoding="utf-8")
    write_manifest(folder)
