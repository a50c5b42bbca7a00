"""Runs `gptailor` as `python -m gptailor_merge`, which launchers of several processes take."""

from gptailor_merge.cli.app import main

if __name__ == "__main__":
    main()
