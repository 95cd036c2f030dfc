"""`python -m emo_export`: the command line."""

from emo_export.cli.program import program

program()
