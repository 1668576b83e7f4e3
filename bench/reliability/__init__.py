"""Runs that are killed, starved and fed spoilt files, then resumed and compared; and a fuzzer of every reader."""

import os

# A pool of threads does not survive a fork; torch reads this when it is imported.
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
