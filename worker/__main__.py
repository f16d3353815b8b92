"""The console script `postage`."""

from worker.cli.main import postage


def main() -> None:
    """Run the command line."""
    postage(prog_name="postage")


if __name__ == "__main__":
    main()
