"""`python -m trainer`."""

from trainer.main import main

main()
