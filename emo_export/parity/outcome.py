"""What became of a validation on this machine: every target judged, damaged or not judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emo_export.errors import EmoExportError, MissingDependencyError, ParityError
from emo_export.parity.judge import TargetReport
from emo_export.report.tables import exceeded
from emo_export.runtimes.devices.device import DeviceReport

HERE = "here"


@dataclass(frozen=True)
class Outcome:
    """The targets of one package, each in `reports` or in `unjudged`.

    `unjudged` says why the engine could not run it, `damage` (by target) which of its files are
    not those that export wrote, `commands` how to repeat each.
    """

    commands: Mapping[str, str]
    reports: Mapping[str, TargetReport]
    unjudged: Mapping[str, EmoExportError]
    damage: Mapping[str, tuple[str, ...]]

    @property
    def passed(self) -> bool:
        """Every target was judged, is within every limit and made of the files of the export."""
        return not (self.unjudged or self.damage) and all(r.passed for r in self.reports.values())

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "passed": self.passed,
            "targets": [report.as_dict() for report in self.reports.values()],
            "not_validated": {spec: str(error) for spec, error in self.unjudged.items()},
            "damaged": {spec: list(problems) for spec, problems in self.damage.items()},
        }

    def sentences(self) -> list[str]:
        """What is wrong, one sentence each, beginning with the target."""
        lines = [
            f"{spec}: {text}"
            for spec, report in self.reports.items()
            for text in (*exceeded(report), *report.tokenizer_failures)
        ]
        lines += [f"{spec}: {text}" for spec, texts in self.damage.items() for text in texts]
        return lines + [f"{spec}: not validated: {why}" for spec, why in self.unjudged.items()]

    def check(self) -> None:
        """Raise the error whose exit code the run has, with every sentence of all of them.

        ParityError when a target failed; or else EmoExportError when a model can't be read; or else
        MissingDependencyError when an engine is missing.
        """
        if self.passed:
            return
        failed = [spec for spec, report in self.reports.items() if not report.passed]
        failed += [spec for spec in self.damage if spec not in failed]
        if failed:
            told = [f"parity failed for {', '.join(failed)}", *self.sentences()]
            raise ParityError("\n".join(told))
        text = "\n".join(self.sentences())
        if not all(isinstance(why, MissingDependencyError) for why in self.unjudged.values()):
            raise EmoExportError(text)
        raise MissingDependencyError(text)

    def part(self, spec: str) -> Outcome:
        """What became of one target."""
        return Outcome(
            commands={spec: self.commands[spec]},
            reports={spec: self.reports[spec]} if spec in self.reports else {},
            unjudged={spec: self.unjudged[spec]} if spec in self.unjudged else {},
            damage={spec: self.damage[spec]} if spec in self.damage else {},
        )

    def device_reports(self, machine: Mapping[str, str]) -> list[DeviceReport]:
        """The same, as of the device "here", which says `machine` of itself."""
        return [self._device_report(spec, machine) for spec in (*self.reports, *self.unjudged)]

    def _device_report(self, spec: str, machine: Mapping[str, str]) -> DeviceReport:
        why = (str(self.unjudged[spec]),) if spec in self.unjudged else ()
        return DeviceReport(
            device=HERE,
            kind=HERE,
            target=spec,
            report=self.reports.get(spec),
            failures=why + self.damage.get(spec, ()),
            machine=machine,
            memory=None,
            command=self.commands[spec],
            repeat=self.commands[spec],
        )


def joined(parts: Sequence[Outcome]) -> Outcome:
    """The outcome of several targets as one."""
    return Outcome(
        commands={spec: text for part in parts for spec, text in part.commands.items()},
        reports={spec: report for part in parts for spec, report in part.reports.items()},
        unjudged={spec: why for part in parts for spec, why in part.unjudged.items()},
        damage={spec: texts for part in parts for spec, texts in part.damage.items()},
    )
