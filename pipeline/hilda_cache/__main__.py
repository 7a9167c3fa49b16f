"""`python -m hilda_cache`, for an environment whose programs are not on the PATH."""

from hilda_cache.cli import main

main()
