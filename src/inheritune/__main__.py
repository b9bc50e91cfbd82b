"""`python -m inheritune`."""

from inheritune.cli.main import main

main()
