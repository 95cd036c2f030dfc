"""The pytest plugin: a fixture. pytest loads this in every session, so it imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from emo_export.testing import Parity


@pytest.fixture(scope="session")
def emo_parity() -> Parity:
    """A function that asserts the parity of an exported package.

    Its arguments and errors are those of emo_export.testing.assert_parity. One session judges a
    target once (each worker of pytest-xdist is a session of its own).
    """
    from emo_export.testing import Parity

    return Parity()
