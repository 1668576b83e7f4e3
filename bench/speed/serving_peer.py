"""What sentence-transformers needs of the processor by its other backends, in an environment of their own.

They want older libraries than the trainer, so `bench.speed.serving` makes that environment, and starts this file in it:

    python serving_peer.py MODEL BACKEND THREADS

A line of JSON in, a list of texts; a line out, the processor seconds that embedding them took. Needs nothing of ours.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from sentence_transformers import SentenceTransformer


def settings(backend: str, threads: int) -> dict[str, Any]:
    """As many threads as the others have, in fp32 as they compute."""
    if backend == "openvino":
        return {"ov_config": {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return {"session_options": options, "provider": "CPUExecutionProvider"}


def main(model: str, backend: str, threads: str) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print too
    how: dict[str, Any] = {"backend": backend, "model_kwargs": settings(backend, int(threads))}
    encoder = SentenceTransformer(model, device="cpu", local_files_only=True, **how)
    for line in sys.stdin:
        texts = json.loads(line)
        start = time.process_time()
        encoder.encode(texts, show_progress_bar=False)
        print(time.process_time() - start, file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
