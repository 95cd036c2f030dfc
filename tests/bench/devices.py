"""Every format on every emulated device, as the Markdown table of README.

    python -m tests.bench.devices

Exports emo-nano and judges it; the arm64 engines are set up first if they are not (150 MB). Takes
some minutes: emulation is slow, and says nothing of a device's speed.
"""

from __future__ import annotations

import argparse
import sys

from emo_export.report.sentences import check, sentences
from emo_export.report.text import facts, markdown
from emo_export.runtimes.devices.options import DeviceOptions
from emo_export.runtimes.devices.profiles import PROFILES
from emo_export.validating import validate_there
from tests.kit.packages import DEVICE_TARGETS, package
from tests.kit.paths import NANO


def main() -> None:
    """Print the table, then what each device is and which kernels ran."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.devices", description=__doc__)
    parser.add_argument("--device-tokens", type=int, help="judged positions; 0 for all")
    tokens = parser.parse_args().device_tokens
    folder = package(NANO, DEVICE_TARGETS)
    options = DeviceOptions(names=tuple(PROFILES), tokens=tokens)
    results = validate_there(folder, (), options, lambda text: print(text, file=sys.stderr))
    print(markdown(results))
    print()
    print("\n".join((*facts(results), *sentences(results))))
    check(results)


if __name__ == "__main__":
    main()
