"""`trainer push` against a hub of a few lines on this machine: what arrives, what never leaves, what is refused."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from trainer.main import cli
from trainer.system.files import write_manifest

FILES = {
    "model/config.json": "{}",
    "model/1_Pooling/config.json": "{}",
    "model/model.safetensors": "weights" * 20_000,
    "adapter/adapter_config.json": "{}",
}
SECRET = "vpn of a customer"


class Hub:
    """What the hub has, and what was asked of it."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.refuses = 0

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        parts = path.split("/")
        repo = "/".join(parts[3:5])
        if self.refuses and method == "POST":
            return self.refuses, {"error": "not so"}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.private[name] = asked["private"] if "private" in asked else asked["visibility"] == "private"
            return 200, {"url": f"/{name}", "name": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if parts[-2] == "preupload":
            asked = json.loads(body)["files"]
            return 200, {
                "files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            }
        if parts[-2] == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            assert {line["key"] for line in lines} == {"header", "file"}
            values = [line["value"] for line in lines if line["key"] == "file"]
            self.files |= {value["path"]: base64.b64decode(value["content"]) for value in values}
            return 200, {"commitUrl": f"/{repo}/commit/1", "commitOid": "1", "success": True}
        if repo in self.private:
            return 200, {"id": repo, "private": self.private[repo], "tags": [], "siblings": []}
        return 404, {"error": "Repository not found"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    there = Hub()

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = there.answer(self.command, self.path.split("?")[0], body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = reply

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    # What HF_ENDPOINT gives, which the library reads once, when it is imported.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield there
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run, with texts wherever somebody could have put them."""
    folder = tmp_path / "run"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for part in ("model", "adapter"):
        write_manifest(folder / part)
        (folder / part / "README.md").write_text("---\ntags: [x]\n---\n# A card")
    (folder / "model" / "thresholds.json").write_text("{}")
    for name in ("log.jsonl", "scores.json", "model/pairs.json", "checkpoints/step-000001/state.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(SECRET)
    (folder / "metrics.json").write_text("{}")
    return folder


MODEL_FILES = {"config.json", "1_Pooling/config.json", "model.safetensors", "manifest.json", "README.md"}
MODEL_FILES |= {"thresholds.json"}


def test_the_model_arrives_and_nothing_else(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["push", str(run), "team/encoder", "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert not hub.asked and "nothing is uploaded: team/encoder (private), 6 files, " in " ".join(said.split())
    assert re.search(r"model\.safetensors  \d+\.\d kB\b", said) and "pairs.json" not in said
    assert cli(["push", str(run), "team/encoder"]) == 0
    assert hub.files.keys() == MODEL_FILES and hub.private == {"team/encoder": True}
    assert hub.files["model.safetensors"] == FILES["model/model.safetensors"].encode()
    assert cli(["push", str(run), "team/encoder", "--adapter"]) == 0  # once more into what is there
    more = {"adapter/adapter_config.json", "adapter/manifest.json", "adapter/README.md"}
    assert hub.files.keys() == MODEL_FILES | more
    assert not any(SECRET.encode() in content for content in hub.files.values())
    assert "/team/encoder" in capsys.readouterr().err


def test_nobody_sees_it_unless_it_is_said(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.private["team/open"] = False
    assert cli(["push", str(run), "team/open"]) == 2 and not hub.files
    assert "team/open: is there already, and public; add --public" in capsys.readouterr().err
    assert cli(["push", str(run), "team/open", "--public"]) == 0 == cli(["push", str(run), "team/new", "--public"])
    assert hub.files and hub.private["team/new"] is False


def test_what_a_hub_refuses_is_one_line(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(*arguments: str, code: int = 2) -> str:
        assert cli(["push", *arguments]) == code
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        return errors[0]

    for status, words in ((401, "log in again"), (403, "has no right"), (500, "answered 500: not so")):
        hub.refuses = status
        assert words in refusal(str(run), "team/encoder")
    hub.refuses = 0
    assert "not for a hub" in refusal(str(run), "a/b/c")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in refusal(str(run), "team/encoder")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(run / "no-token"))
    assert "no token of the hub" in refusal(str(run), "team/encoder")
    assert "no finished run" in refusal(str(run / "model"), "a/b").replace("not the folder of a", "no")
    (run / "adapter" / "manifest.json").unlink()
    assert "without LoRA" in refusal(str(run), "a/b", "--adapter")
    (run / "model" / "model.safetensors").write_text("other")
    assert "is not what was written" in refusal(str(run), "a/b", code=4)
    assert not hub.files
