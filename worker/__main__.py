"""The console script `postage`."""

import gc
import os


def main() -> None:
    """Run the command line.

    The imports come first, with the garbage collector off: they create nothing that it could free, and it took a
    seventh of the start. What they created is frozen, so that later collections do not look at it again.
    """
    os.umask(0o077)  # what a command writes holds messages, addresses and passwords
    gc.disable()
    from worker.cli.main import postage  # noqa: PLC0415  with the collector off

    gc.freeze()
    gc.enable()
    postage(prog_name="postage")


if __name__ == "__main__":
    main()
