"""The map of the similarity of two models' layers."""

from lightly_collapse.report.pages.charts import Chart
from lightly_collapse.report.pages.vega import chart_spec
from lightly_collapse.report.similarity_record import LayerSimilarity

_MOST_LABELLED = 12  # columns whose cells have room for a number


def similarity_map(found: LayerSimilarity) -> Chart:
    """A cell for each pair of layers, from the input at the top and left to the output.

    Args:
        found: what `layer_similarity` returned.

    Returns:
        The chart.
    """
    rows = [
        {"a": a, "b": b, "value": value}
        for a, values in zip(found.layers_a, found.cka, strict=True)
        for b, value in zip(found.layers_b, values, strict=True)
    ]
    name_a, name_b = found.names
    place = {"type": "nominal", "sort": None}
    height = 30 * len(found.layers_a)
    axis = {"labelLimit": 130, "ticks": False, "domain": False}
    cells = {
        "transform": [
            {"filter": "isValid(datum.value)"},
            {"calculate": "clamp(datum.value, 0, 1)", "as": "shown"},
        ],
        "mark": {"type": "rect"},
        "encoding": {
            "color": {
                "field": "shown",
                "type": "quantitative",
                "title": "linear CKA",
                "scale": {"domain": [0, 1], "scheme": "viridis"},
                "legend": {
                    "orient": "bottom",
                    "direction": "horizontal",
                    "gradientLength": 130,
                    "values": [0, 0.5, 1],
                },
            },
            "tooltip": [
                {"field": "a", "title": "row"},
                {"field": "b", "title": "column"},
                {"field": "value", "title": "CKA", "format": ".3f", "type": "quantitative"},
            ],
        },
    }
    numbers = {
        "transform": [{"filter": "isValid(datum.value)"}],
        "mark": {"type": "text", "fontSize": 11, "tooltip": None, "aria": False},
        "encoding": {
            "text": {"field": "value", "type": "quantitative", "format": ".2f"},
            "color": {
                "condition": {"test": "datum.value > 0.6", "value": "#000"},
                "value": "#fff",
            },
        },
    }
    spec = chart_spec(
        "Linear CKA of the layers of two models, a row for each layer of one of them", rows
    ) | {
        "height": height,
        "encoding": {
            "x": {"field": "b", "title": name_b, "axis": {**axis, "labelAngle": -35}, **place},
            "y": {"field": "a", "title": name_a, "axis": {**axis, "titleLimit": height}, **place},
        },
        "layer": [cells, *([numbers] if len(found.layers_b) <= _MOST_LABELLED else [])],
    }
    columns = [("a", f"layer of {name_a}"), ("b", f"layer of {name_b}"), ("value", "linear CKA")]
    return Chart(spec, [], columns)
