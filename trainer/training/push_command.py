"""The command `trainer push`: the model of a run goes to a model hub, private unless it is said otherwise.

Nothing leaves a run's folder but the files that its export wrote: those that the model's manifest names, the card and
the thresholds. Pairs, logs and checkpoints lie elsewhere, and what somebody put beside the model stays too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from rich.filesize import decimal

from trainer.errors import CheckpointError, InputError, first_line
from trainer.system.arguments import Parser
from trainer.system.console import console
from trainer.system.files import MANIFEST, find_damage
from trainer.system.run_files import ADAPTER, METRICS, MODEL, THRESHOLDS

BESIDE = (MANIFEST, "README.md", THRESHOLDS)
"""What an export writes that its manifest does not name."""
REFUSALS = {
    401: "the hub does not know this token: log in again with `hf auth login`, or set HF_TOKEN",
    403: "this token has no right to write there: take one that has, or name a repository of your own",
    404: "no such user or organisation, or nothing that this token may see",
}


def push_parser() -> argparse.ArgumentParser:
    """Options of `trainer push`."""
    text = """Upload the model of a finished run, with its card, to a Hugging Face hub (HF_ENDPOINT names another). What
goes there is listed; pairs, logs and checkpoints never do."""
    parser = Parser(prog="trainer push", description=text, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("repo", metavar="REPO_ID", help="as in my-team/incident-encoder; made where it is missing")
    parser.add_argument("--public", action="store_true", help="for everybody to see (default: private)")
    parser.add_argument("--adapter", action="store_true", help="the LoRA adapter too, as the folder adapter/")
    parser.add_argument("--dry-run", action="store_true", help="list what would be uploaded, and stop")
    return parser


def run_push(options: argparse.Namespace) -> None:
    """List what is uploaded, and upload it."""
    files = files_to_push(options.run, options.adapter)
    seen = "public" if options.public else "private"
    total = sum(path.stat().st_size for path in files.values())
    about = "Dry run, nothing is uploaded" if options.dry_run else "Uploading"
    console.print(f"{about}: {options.repo} ({seen}), {len(files)} files, {decimal(total)}", markup=False)
    for name, path in files.items():
        console.print(f"  {name}  {decimal(path.stat().st_size)}", markup=False, highlight=False)
    if not options.dry_run:
        url = push(files, options.repo, options.public)
        console.print(f"Uploaded: {url}", markup=False)


def files_to_push(run: Path, adapter: bool) -> dict[str, Path]:
    """Name in the repository -> file, of the model and, where asked for, the adapter of a run.

    Raises:
        InputError: no finished run, or it has no adapter.
        CheckpointError: the model is not what was exported.
    """
    if not (run / METRICS).is_file() or not (run / MODEL / MANIFEST).is_file():
        raise InputError(f"{run}: not the folder of a finished run, which holds {METRICS} and {MODEL}/")
    if adapter and not (run / ADAPTER / MANIFEST).is_file():
        raise InputError(f"--adapter: {run} has no {ADAPTER}/: it was trained without LoRA; leave it out")
    files: dict[str, Path] = {}
    for folder in (MODEL, ADAPTER) if adapter else (MODEL,):
        root = run / folder
        if problem := find_damage(root):
            raise CheckpointError(f"{root}: {problem}; train again, or restore it from a copy")
        named = [*json.loads((root / MANIFEST).read_bytes()), *(name for name in BESIDE if (root / name).is_file())]
        prefix = "" if folder == MODEL else f"{folder}/"
        files |= {f"{prefix}{name}": root / name for name in sorted({*named})}
    return files


def push(files: dict[str, Path], repo: str, public: bool) -> str:
    """Upload files in one commit, and make the repository where it is missing; its address.

    Raises InputError: no token, no network, no right, or a repository that everybody sees without `public`.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if get_token() is None:
        raise InputError("no token of the hub: log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    with _in_one_line(repo, api.endpoint):
        try:
            is_public = not api.model_info(repo).private
        except RepositoryNotFoundError:
            is_public = public
            api.create_repo(repo, private=not public)
        if is_public and not public:
            raise InputError(f"{repo}: is there already, and public; add --public, or name another")
        operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        api.create_commit(repo, operations, commit_message="Upload the model of a run")
    return f"{api.endpoint}/{repo}"


@contextmanager
def _in_one_line(repo: str, endpoint: str) -> Iterator[None]:
    """Say what a hub, or the way to it, refuses. Raises InputError."""
    from huggingface_hub.errors import HfHubHTTPError

    # Of httpx, or of httpx2: which, the version of the hub's library decides.
    of_the_way = cast(type[Exception], HfHubHTTPError.__bases__[0])
    try:
        yield
    except ValueError as error:  # a bad name, or a card whose head cannot be read
        raise InputError(f"{repo}: not for a hub: {first_line(error)}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = REFUSALS.get(status, f"the hub answered {status}: {error.server_message or 'try again later'}")
        raise InputError(f"{repo}: {reason}") from error
    except (of_the_way, OSError) as error:
        raise InputError(
            f"{repo}: {endpoint} cannot be reached ({first_line(error)}); check the network and HF_ENDPOINT"
        ) from error
