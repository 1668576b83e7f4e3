"""Which test guards which line of the resume and of the storage: each line is broken, and that test must turn red.

Red is a failed assertion, an error that was expected and did not come, or an error of the trainer's own. `test_resume`
has more mutants, of what a resume puts back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import test_checkpoint
import test_files
import test_resume
import test_training
from breaking import planted

from trainer.checkpoint import content as state
from trainer.checkpoint import identity as run_identity
from trainer.checkpoint import sealed_folder as checkpoint
from trainer.errors import TrainerError
from trainer.model import export
from trainer.system import files as storage
from trainer.system import signals
from trainer.training import finish, resume, run_folder
from trainer.training.setup import read_inputs

# Fixtures of the modules whose tests are used here.
start, undisturbed = test_resume.start, test_resume.undisturbed
pair_files, run_small = test_training.pair_files, test_training.run_small


@dataclass(frozen=True)
class Mutant:
    """`old` in the source of `function` is `new`; `test` must see it."""

    function: Callable[..., Any]
    old: str
    new: str
    test: Callable[..., None]
    given: dict[str, Any] = field(default_factory=dict)  # the test's parameters that are no fixtures


RANDOM = (state._set_random_states, test_resume.test_every_random_state_comes_back)
WRITE, FOLDER = storage.write_file, storage.new_folder
ORDER = test_files.test_everything_is_on_disk_before_the_name_is_given
SAVED = test_checkpoint.test_a_checkpoint_is_on_disk_before_its_name_and_named_before_an_older_one_goes
KEPT = test_resume.test_kept_are_the_last_three_and_those_named
BITS = test_checkpoint.test_a_flipped_bit_in_any_byte_is_damage
CHANGED = test_resume.test_a_file_that_changed_is_refused
SIGNAL = test_training.test_a_signal_with_or_after_the_last_file_changes_nothing
SEALED = "if sealed != tuple(_seal(folder / name).values()):"
STATE = '(path / "state.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")'
SEAL = "write_manifest(path)"
LATE = "write_json(run.folder / METRICS, metrics)"


def fingerprint(name: str, value: str, file: str, change: Callable[..., None]) -> Mutant:
    """One that leaves a fingerprint out of a run's identity."""
    given = {"file": file, "change": change, "said": name}
    return Mutant(read_inputs, f'"{name}": {value},', "", CHANGED, given)


MUTANTS = {
    "torch's random state": Mutant(
        state._set_random_states,
        'torch.set_rng_state(states["torch"])',
        "pass",
        test_resume.test_from_any_step_the_result_is_the_undisturbed_one,
        {"steps": 5},
    ),
    "torch's, looked at alone": Mutant(RANDOM[0], 'torch.set_rng_state(states["torch"])', "pass", RANDOM[1]),
    # A file, a folder.
    "a file's name before its content": Mutant(WRITE, "sync(temporary)", "pass", ORDER),
    "a file's content after its name": Mutant(
        WRITE,
        "sync(temporary)\n        temporary.replace(path)",
        "temporary.replace(path)\n        sync(path)",
        ORDER,
    ),
    "a file's name not on disk": Mutant(WRITE, "sync(path.parent)", "pass", ORDER),
    "a folder's files not on disk": Mutant(FOLDER, "sync(file)", "pass", ORDER),
    "a folder's entries not on disk": Mutant(FOLDER, "sync(temporary)", "pass", ORDER),
    "a folder's name not on disk": Mutant(FOLDER, "sync(path.parent)", "pass", ORDER),
    "a new folder's name not on disk": Mutant(
        storage.make_folder,
        "sync(path.parent)",
        "pass",
        test_files.test_the_names_of_new_folders_are_on_disk_too,
    ),
    "sync does nothing": Mutant(storage.sync, "os.fsync(handle)", "pass", ORDER),
    "the log not on disk": Mutant(
        resume.checkpoint,
        "log.sync()",
        "pass",
        test_resume.test_a_checkpoint_holds_no_step_that_the_log_on_disk_lacks_and_the_verdict_comes_last,
    ),
    # A manifest.
    "the manifest before a file": Mutant(
        checkpoint.save_checkpoint,
        f"{STATE}\n        {SEAL}",
        f"{SEAL}\n        {STATE}",
        test_checkpoint.test_the_newest_by_number_is_loaded,
    ),
    "the manifest after the name": Mutant(
        checkpoint.save_checkpoint, f"        {SEAL}", "    write_manifest(folder)", SAVED
    ),
    "hashes not compared": Mutant(
        storage.find_damage, SEALED, 'if sealed[0] != _seal(folder / name)["size"]:', BITS, {"file": "state.json"}
    ),
    "sizes not compared": Mutant(
        storage.find_damage, SEALED, 'if sealed[1] != _seal(folder / name)["sha256"]:', BITS, {"file": "manifest.json"}
    ),
    "a damaged checkpoint is used": Mutant(
        checkpoint.newest_checkpoint,
        "(problem := find_damage(folder, FILES)) is None",
        "(problem := None) is None",
        test_checkpoint.test_damage_to_any_file_is_noticed_and_the_one_before_is_used,
        {"file": "state.json", "damage": test_checkpoint.swap},
    ),
    "a model without a manifest": Mutant(
        export.save_model, SEAL, "pass", test_training.test_a_run_leaves_what_it_promises, {"lora": False}
    ),
    # Retention.
    "one is enough": Mutant(checkpoint.drop_old, "whole >= KEEP", "whole >= 1", KEPT),
    "those named go too": Mutant(checkpoint.drop_old, "if _step(folder) not in keep:", "if True:", KEPT),
    "rotten ones count": Mutant(
        checkpoint.drop_old,
        "elif is_whole(folder):",
        "else:",
        test_resume.test_one_that_rotted_does_not_count,
    ),
    "room is made before the name": Mutant(
        checkpoint.save_checkpoint,
        "    with new_folder(folder) as path:",
        "    [remove_folder(old) for old in _folders(root)[: 1 - KEEP]]\n    with new_folder(folder) as path:",
        SAVED,
    ),
    "removed under its own name": Mutant(
        storage.remove_folder,
        "path.rename(renamed)\n    shutil.rmtree(renamed)",
        "shutil.rmtree(path)",
        test_resume.test_a_process_that_dies_while_it_removes_leaves_no_half_checkpoint,
    ),
    # The same run, alone in its folder.
    "identity not compared": Mutant(
        run_identity.require_same_run,
        'differences(saved["run"], current["run"])',
        "[]",
        CHANGED,
        {"file": "train.json", "change": test_resume.flip_label, "said": "train_data"},
    ),
    "training data not known": fingerprint(
        "train_data", "data.train.fingerprint()", "train.json", test_resume.flip_label
    ),
    "dev data not known": fingerprint("dev_data", "data.dev.fingerprint()", "dev.json", test_resume.flip_label),
    "base model not known": fingerprint(
        "base_weights", "weights_fingerprint(encoder)", "model/model.safetensors", test_resume.change_weight
    ),
    "tokenizer not known": fingerprint(
        "tokens", "tokens.fingerprint()", "model/tokenizer.json", test_resume.swap_words
    ),
    "a run without a lock": Mutant(
        run_folder.claimed,
        "with only_writer(folder):",
        "if True:",
        test_resume.test_a_second_run_is_refused_while_the_first_lives,
    ),
    "a folder not looked at behind the lock": Mutant(
        run_folder.claimed,
        "check_folder(folder, resume)",
        "pass",
        test_resume.test_a_run_that_came_in_before_the_lock_is_not_overwritten,
    ),
    # The end of work.
    "signals are not ignored": Mutant(finish.finish, "signals.ignore()", "pass", SIGNAL, {"moment": "print_summary"}),
    "signals are ignored too late": Mutant(
        finish.finish,
        f"signals.ignore()\n    {LATE}",
        f"{LATE}\n    signals.ignore()",
        SIGNAL,
        {"moment": "write_json"},
    ),
    "ignoring does nothing": Mutant(
        signals.Signals.ignore, "self._answer(signal.SIG_IGN)", "pass", SIGNAL, {"moment": "print_summary"}
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_turns_its_test_red(name: str, request: pytest.FixtureRequest) -> None:
    mutant = MUTANTS[name]
    wanted = inspect.signature(mutant.test).parameters
    fixtures = {key: request.getfixturevalue(key) for key in wanted if key not in mutant.given}
    with (
        planted(mutant.function, mutant.old, mutant.new),
        pytest.raises((AssertionError, pytest.fail.Exception, TrainerError)),
    ):
        mutant.test(**fixtures, **mutant.given)
