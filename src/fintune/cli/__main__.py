"""`python -m fintune.cli`, as the tests call it."""

from fintune.cli import main

main()
