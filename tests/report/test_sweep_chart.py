"""A sweep's picture and table: the points lie where the figures say."""

from __future__ import annotations

from emo_export.parity.losses import Loss
from emo_export.parity.outcome import Label, Outcome, pooled
from emo_export.report.html.charts import LEFT, RIGHT, TOP
from emo_export.report.html.sweep_chart import panels
from emo_export.report.html.sweep_page import sweep_page


def outcome(domain: str, keep: str, method: str, target: str, mb: float, ratio: float) -> Outcome:
    label = Label(f"{domain}-{keep}-{method}-{target}", domain, keep, method, target)
    loss = Loss(domain, 100, 10.0, 10 * ratio, ratio, 0.01)
    return Outcome(label, 1.0, 0, "pass", "", round(mb * 1e6), (loss,), 0.1, 0.01)


def test_a_line_for_each_domain_and_method_and_one_scale_for_all_panels() -> None:
    some = [
        outcome("c", "8", "router", "gguf:q8_0", 10, 1.2),
        outcome("c", "all", "", "gguf:q8_0", 40, 1.0),
        outcome("c", "8", "random", "gguf:q8_0", 10, 2.0),
        outcome("c", "8", "router", "onnx:int4", 5, 1.25),
    ]
    gguf, onnx = panels(some)
    assert [curve.name for curve in gguf.curves] == ["c router", "c random"]
    assert gguf.x_ticks == onnx.x_ticks and gguf.y_ticks == onnx.y_ticks
    router, random = gguf.curves
    assert len(router.points) == 2 and router.points[-1] == random.points[-1]
    x, y = router.points[-1]  # 40 MB, a ratio of 1: the lowest, with a margin of 5%
    assert x == RIGHT and abs(gguf.bottom - y - 0.05 / 1.1 * (gguf.bottom - TOP)) < 0.01
    width = RIGHT - LEFT
    assert (
        router.points[0][0] == LEFT + width / 4 and onnx.curves[0].points[0][0] == LEFT + width / 8
    )
    assert random.points[0][1] < onnx.curves[0].points[0][1] < router.points[0][1]
    failed = Outcome(Label("x", "c", "8", "router", "gguf:q4_0"), 1.0, 2, error="<b> & no")
    assert len(panels([*some, failed])) == 2 and panels([failed]) == ()
    page = sweep_page([*some, failed], "a <sweep>")
    assert page.count("<circle") == 5 and "a &lt;sweep&gt;" in page
    assert "No variant has figures" in sweep_page([failed], "x")


def test_a_wide_range_is_logarithmic() -> None:
    some = [outcome("c", "8", "random", "gguf:q8_0", 10, 30.0)]
    some.append(outcome("c", "all", "", "gguf:q8_0", 40, 1.0))
    (panel,) = panels(some)
    assert [tick.label for tick in panel.y_ticks] == ["10⁰", "10¹", "10²"]


def test_each_token_counts_the_same() -> None:
    one, two = Loss("a", 100, 4.0, 8.0, 2.0, 0.1), Loss("b", 300, 16.0, 16.0, 1.0, 0.2)
    both = pooled("x", [one, two])
    assert both.tokens == 400 and abs(both.before - 4**0.25 * 16**0.75) < 1e-9
    assert abs(both.ratio - 2**0.25) < 1e-9
    assert both.stderr is not None and abs(both.stderr - (0.025**2 + 0.15**2) ** 0.5) < 1e-9
    assert pooled("x", [one]).stderr == 0.1
