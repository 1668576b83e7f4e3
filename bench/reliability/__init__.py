"""Runs that are killed, starved and fed spoilt files, then resumed and compared; and a fuzzer of every reader."""
