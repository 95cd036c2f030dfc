"""Where every matrix goes in a GGUF file: the declared tensors, and the cuts that fill them.

Names: `files/gguf_names.py`. Shapes: llama.cpp `src/models/{deepseek,glm4-moe}.cpp`. Letters: D
hidden, F expert width, E experts of a stack, W dense width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from emo_export.converters.gguf.formats import GGML_FORMATS, GgmlFormat
from emo_export.converters.gguf.graph import Graph, Stack, graph_of
from emo_export.files.gguf_names import EXPERTS, GGUF_NAMES
from emo_export.files.tensor_names import Form
from emo_export.model.config import EmoConfig
from emo_export.model.names import Role, Slot, shape_of
from emo_export.model.scheme import QuantScheme

DENSE_ROLES = {
    Role.GATE: Role.DENSE_GATE,
    Role.UP: Role.DENSE_UP,
    Role.DOWN: Role.DENSE_DOWN,
}
_EXPERT_OF = {dense: role for role, dense in DENSE_ROLES.items()}

Declared = tuple[str, tuple[int, ...], GgmlFormat]


@dataclass(frozen=True)
class Cut:
    """Rows and columns (first, end) of a matrix, and the tensor's row at which they begin.

    Where the columns are fewer than the tensor's, zeros follow them. `shared`: the tensor is the
    shared expert's, which the graph does not weigh.
    """

    tensor: str
    at: int
    rows: tuple[int, int]
    cols: tuple[int, int]
    shared: bool = False


class Layout:
    """The tensors of one file, for one model in one graph with one scheme."""

    def __init__(self, config: EmoConfig, arch: str, scheme: QuantScheme) -> None:
        self.graph: Graph = graph_of(config, arch)
        self._config, self._scheme = config, scheme
        self.declared = list(self._tensors())

    def cuts(self, slot: Slot) -> list[Cut]:
        """What of an expert's or a dense layer's matrix goes where; nothing if no token takes it.

        The order is that of rows; every other role goes to `name_of` as it is.
        """
        stack = self._stack(slot.layer)
        rows, cols = shape_of(slot, self._config)
        whole = ((0, rows), (0, cols))
        if slot.role not in EXPERTS:
            return list(self._dense_cuts(slot, stack))
        if slot.expert == stack.shared:
            return [Cut(_name(slot.role, slot.layer, Form.SHARED), 0, *whole, shared=True)]
        if slot.expert in stack.experts:
            at = stack.experts.index(slot.expert) * rows
            return [Cut(_name(slot.role, slot.layer, Form.STACK), at, *whole)]
        return []

    def name_of(self, slot: Slot) -> str:
        """The tensor of a slot that has one to itself."""
        other = slot.role == Role.FFN_NORM and self.graph.arch == "glm4moe"
        return _name(slot.role, slot.layer, Form.GLM4MOE if other else Form.OWN)

    def in_trunk(self, name: str) -> bool:
        """Whether a tensor is the same whichever routed experts are kept, as many as there are."""
        held = GGUF_NAMES.held(name)
        if held is None:
            raise ValueError(f"{name} is no tensor of this layout")
        routed = held.roles[0] in (Role.ROUTER, *EXPERTS) and held.form != Form.SHARED
        return not routed or self._config.layers[held.layer].is_dense

    def is_cut(self, slot: Slot) -> bool:
        """Whether `cuts` tells where a slot goes: experts, and dense layers that do not lead."""
        dense = slot.role in DENSE_ROLES.values() and self.graph.stacks[slot.layer] is not None
        return dense or slot.role in EXPERTS

    def router_rows(self, layer: int) -> list[int]:
        """The row of the model's router that each position has; empty when all are zeros."""
        return [row for row in self._stack(layer).router if row >= 0]

    def biases(self) -> Iterator[tuple[str, tuple[float, ...]]]:
        """What `glm4moe` adds to the probabilities for the selection: (tensor, (E,))."""
        for index, stack in enumerate(self.graph.stacks):
            if stack is not None and self.graph.arch == "glm4moe":
                yield _name(Role.ROUTER, index, Form.GLM4MOE), stack.bias

    def gaps(self) -> Iterator[tuple[str, int, int]]:
        """Rows that no slot fills, which must be zeros: (tensor, first row, end row)."""
        shapes = {name: shape for name, shape, _ in self.declared}
        for index, stack in enumerate(self.graph.stacks):
            if stack is None:
                continue
            router = _name(Role.ROUTER, index)
            if not self.router_rows(index):
                yield router, 0, shapes[router][0]
            for role in EXPERTS:
                cuts = [cut for slot in self._sources(index, role) for cut in self.cuts(slot)]
                for form in (Form.STACK, Form.SHARED):
                    name = _name(role, index, form)
                    taken = sorted(
                        (c.at, c.at + c.rows[1] - c.rows[0]) for c in cuts if c.tensor == name
                    )
                    yield from ((name, *gap) for gap in _between(taken, prod(shapes[name][:-1])))

    def _stack(self, layer: int) -> Stack:
        stack = self.graph.stacks[layer]
        if stack is None:
            raise ValueError(f"layer {layer} has no experts in this graph")
        return stack

    def _dense_cuts(self, slot: Slot, stack: Stack) -> Iterator[Cut]:
        """Runs of F hidden columns: rows of gate and up, columns of down."""
        width, shared = self._config.intermediate_size, self.graph.shared
        rows, cols = shape_of(slot, self._config)
        down = slot.role == Role.DENSE_DOWN
        end = cols if down else rows
        runs = [(True, 0, 0, shared * width)]
        for place, run in enumerate(stack.experts):
            if run >= 0:
                at = place * (rows if down else width)
                runs.append((False, at, run * width, (run + 1) * width))
        for alone, at, first, stop in runs:
            form, part = Form.SHARED if alone else Form.STACK, (first, min(stop, end))
            tensor = _name(_EXPERT_OF[slot.role], slot.layer, form)
            taken = ((0, rows), part) if down else (part, (0, cols))
            yield Cut(tensor, at, *taken, shared=alone)

    def factor(self, slot: Slot) -> float:
        """What the `down` matrices in a layer's stack are stored multiplied by."""
        return self._stack(slot.layer).factor

    def _sources(self, layer: int, role: Role) -> list[Slot]:
        shape = self._config.layers[layer]
        if shape.is_dense:
            return [Slot(DENSE_ROLES[role], layer)]
        return [Slot(role, layer, expert) for expert in range(shape.num_experts)]

    def _tensors(self) -> Iterator[Declared]:
        config = self._config

        def entry(name: str, slot: Slot) -> Declared:
            return name, shape_of(slot, config), self._kind(slot)

        yield entry(_name(Role.EMBED), Slot(Role.EMBED))
        yield entry(_name(Role.FINAL_NORM), Slot(Role.FINAL_NORM))
        head = Slot(Role.EMBED if config.tie_word_embeddings else Role.HEAD)
        yield entry(_name(Role.HEAD), head)
        for index, stack in enumerate(self.graph.stacks):
            roles = [Role.ATTN_NORM, Role.Q, Role.K, Role.V, Role.O, Role.FFN_NORM]
            if stack is None:
                roles += DENSE_ROLES.values()
            for role in roles:
                yield entry(self.name_of(Slot(role, index)), Slot(role, index))
            if stack is not None:
                yield from self._stack_tensors(index, stack)

    def _stack_tensors(self, index: int, stack: Stack) -> Iterator[Declared]:
        count, hidden = self.graph.experts, self._config.hidden_size
        one, wide = (n * self._config.intermediate_size for n in (1, self.graph.shared))
        yield _name(Role.ROUTER, index), (count, hidden), GGML_FORMATS["f32"]
        if self.graph.arch == "glm4moe":
            yield _name(Role.ROUTER, index, Form.GLM4MOE), (count,), GGML_FORMATS["f32"]
        for role in EXPERTS:
            slots = self._sources(index, role)
            # An empty stack, or shared expert, is of the type that the experts beside it have.
            first = max(stack.experts[0], 0) if len(slots) > 1 else 0
            alone = stack.shared if stack.shared >= 0 else first
            down = role == Role.DOWN
            for form, width, source in ((Form.STACK, one, first), (Form.SHARED, wide, alone)):
                matrix = (hidden, width) if down else (width, hidden)
                shape = (count, *matrix) if form == Form.STACK else matrix
                yield _name(role, index, form), shape, self._kind(slots[source])

    def _kind(self, slot: Slot) -> GgmlFormat:
        return GGML_FORMATS[self._scheme.format_of(slot).name]


def _name(role: Role, layer: int = -1, form: Form = Form.OWN) -> str:
    return GGUF_NAMES.name(role, layer, form=form)


def _between(taken: list[tuple[int, int]], end: int) -> Iterator[tuple[int, int]]:
    """The parts of 0..end outside of `taken`, which is sorted and does not overlap."""
    start = 0
    for first, stop in (*taken, (end, end)):
        if first > start:
            yield start, first
        start = stop
