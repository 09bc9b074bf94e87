"""The command ``mnx``: one small module for each of its commands.

Exit status: see `mnx.cli.speech`. The libraries of the command line are imported when it is used.
"""

from mnx.cli.app import main as main

__all__ = ['main']
