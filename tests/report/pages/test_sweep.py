"""What the figures of a sweep draw together."""

import pytest

from lightly_collapse.report.pages.sweep import _figures


def record(method, regularizer="", jitter=0.5, embedding=(2.0, 1.0, 0.0)):
    return {
        "method": method,
        "regularizer": regularizer,
        "variant": f"{method} + {regularizer}" if regularizer else method,
        "jitter": jitter,
        "mlid": 10 + jitter,
        "spectrum": [4.0, 2.0, 1.0],
        "embedding_spectrum": list(embedding),
        "weight_eigenvalues": {"conv1": [1.0, 0.4, 0.2], "conv2": [1.0, 0.8]},
    }


def drawn(fig):
    return {axes.get_title(): [line.get_label() for line in axes.get_lines()] for axes in fig.axes}


def test_methods_side_by_side_and_each_method_with_its_regularizers():
    records = [record("A"), record("A", "SO"), record("B"), record("C", "SO"), record("B")]
    figures = _figures(records)
    assert set(figures) == {"spectrum.png", "weights.png"}
    weights = drawn(figures["weights.png"])
    assert weights == {"without regularizer": ["A", "B"], "A": ["none", "SO"]}
    assert drawn(figures["spectrum.png"]) == {
        f"{title}: {what}": labels
        for title, labels in weights.items()
        for what in ("representation", "embedding")
    }


def test_methods_alone_fill_the_picture():
    figures = _figures([record("A"), record("B")])
    assert drawn(figures["spectrum.png"]) == {
        w: ["A", "B"] for w in ("representation", "embedding")
    }
    (axes,) = figures["weights.png"].axes
    assert axes.get_title() == ""
    assert axes.get_subplotspec().get_gridspec().ncols == 1


def test_one_line_and_values_relative_to_the_largest():
    fig = _figures([record("A", "SO")])["spectrum.png"]
    representation, embedding = (axes.get_lines()[0].get_ydata() for axes in fig.axes)
    assert list(representation) == [1, 0.5, 0.25]
    assert list(embedding[:2]) == [1, 0.5]
    assert embedding[2] != embedding[2]  # a logarithmic axis has no zero
    (line,) = _figures([record("A")])["weights.png"].axes[0].get_lines()
    assert list(line.get_ydata()) == pytest.approx([0.4, 0.9])


def test_jitter_is_drawn_where_it_varies():
    records = [record("A", jitter=0.0), record("B", jitter=1.0), record("B", "LDReg", jitter=1.0)]
    fig = _figures(records)["jitter.png"]
    assert [line.get_label() for line in fig.axes[0].get_lines()] == ["no regularizer", "LDReg"]
