"""What a table of tensor names is: the matrices of a model to a file's names, and back.

Each family has one: `gguf_names.py` and `onnx_names.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from emo_export.model.names import Role
from emo_export.model.recipes import Part
from emo_export.model.scheme import part_of_role

_NUMBER = re.compile(r"(?<=\.)(0|[1-9][0-9]{0,8})(?=\.|$)")


class Form(StrEnum):
    """How a tensor holds the matrix of a role."""

    OWN = "own"  # that of one slot
    STACK = "stack"  # those of all routed experts of a layer
    SHARED = "shared"  # that of an expert that every token uses
    GLM4MOE = "glm4moe"  # as that graph has it: another norm, and the selection's bias


@dataclass(frozen=True)
class Held:
    """What a tensor holds: the rows of these roles, one below the other.

    `layer` and `expert` are -1 where they do not apply.
    """

    roles: tuple[Role, ...]
    form: Form
    layer: int = -1
    expert: int = -1

    @property
    def part(self) -> Part:
        """The part of the model that a recipe gives a type."""
        return Part.SHARED_EXPERT if self.form == Form.SHARED else part_of_role(self.roles[0])


class NameTable:
    """Templates with {layer} and {expert}, in this order, as dotted parts of a name."""

    def __init__(self, templates: Mapping[tuple[Role, Form], str]) -> None:
        """Several roles of one form may share a template."""
        self._templates = templates
        self._held: dict[str, tuple[tuple[Role, ...], Form]] = {}
        for (role, form), template in templates.items():
            key = template.format(layer="#", expert="#")
            roles, known = self._held.get(key, ((), form))
            if known != form:
                raise ValueError(f"{template} has two forms")
            self._held[key] = ((*roles, role), form)

    def name(self, role: Role, layer: int = -1, expert: int = -1, form: Form = Form.OWN) -> str:
        """The name that holds a role's matrix. Raises KeyError for a role without that form."""
        return self._templates[role, form].format(layer=layer, expert=expert)

    def held(self, name: str) -> Held | None:
        """What a name holds; None for one that is not in the table."""
        numbers = [int(found) for found in _NUMBER.findall(name)]
        found = self._held.get(_NUMBER.sub("#", name))
        return None if found is None else Held(*found, *numbers)
