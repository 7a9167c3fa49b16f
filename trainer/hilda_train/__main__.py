"""`python -m hilda_train`, and with it `torchrun --nproc-per-node 2 -m hilda_train fit ...`."""

from hilda_train.cli import main

main()
