"""`python -m ifed.cli` is the `ifed` command."""

from ifed.cli.main import main

main()
