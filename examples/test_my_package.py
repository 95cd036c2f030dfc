"""A test of your own project: `pytest test_my_package.py` beside the folder that export made."""

from pathlib import Path

PACKAGE = Path(__file__).parent / "mine"


def test_every_target_says_what_the_original_says(emo_parity):
    """Every limit of emo-export, by the engines that are installed here."""
    emo_parity(PACKAGE)


def test_int4_costs_little(emo_parity):
    """A limit of your own."""
    (report,) = emo_parity(PACKAGE, targets=["onnx:int4"])  # judged above: not run again
    assert max(row.perplexity_ratio or 0 for row in report.rows) < 1.02
