"""Matryoshka fine-tuning of text-embedding encoders on labelled pairs."""

__version__ = "0.1.0"
