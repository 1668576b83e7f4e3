"""The names of everything that a run leaves in its folder, in one place for all who write or read it."""

from __future__ import annotations

CONFIG = "config.toml"  # the resolved config
PLAN = "plan.json"  # phases, steps, trained parameters, the learning rate of every step
LINT = "lint.json"  # what lint found in the pairs, before step 0
LOG = "log.jsonl"  # a line a logged step, and one an evaluation
CHECKPOINTS = "checkpoints"  # folder of step-000123/, from which --resume continues
STRENGTH = "strength.json"  # dev by strength of the update, and what was chosen
SCORES = "scores.json"  # the cosine of every judged pair before and after
METADATA = "training_metadata.json"  # versions, device, fingerprints, timings
MODEL = "model"  # folder of the exported sentence-transformers model
THRESHOLDS = "thresholds.json"  # in MODEL: what is called the same problem, by dim
ADAPTER = "adapter"  # folder of the PEFT adapter alone, where LoRA was used
BASE = "base"  # folder of the model that ADAPTER is for, where no other folder holds it
REPORT = "report.html"
METRICS = "metrics.json"  # baseline, final, verdict; written last, so a folder that has it holds a finished run
