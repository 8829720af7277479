// What a page can do: draw its charts, switch lines, save, sort tables. No network, no eval.
"use strict";

(() => {
  const ink = "currentColor";
  const font = 'system-ui, -apple-system, "Segoe UI", "Liberation Sans", Arial, sans-serif';
  const config = {
    background: "transparent",
    font,
    view: { stroke: null },
    axis: {
      labelColor: ink, titleColor: ink, tickColor: ink, domainColor: ink, gridColor: ink,
      gridOpacity: 0.13, labelFontSize: 11.5, titleFontSize: 12, titleFontWeight: "normal",
      titlePadding: 8,
    },
    legend: {
      labelColor: ink, titleColor: ink, labelFontSize: 11, titleFontSize: 11.5,
      titleFontWeight: "normal", titleLimit: 400,
    },
    rule: { color: ink },
  };

  // ------------------------------------------------------------------------------- charts

  const charts = new Map();

  async function draw(figure) {
    const content = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
    const chart = { figure, ...content, hidden: new Set(), view: null };
    charts.set(figure.id, chart);
    const result = await vegaEmbed(figure.querySelector(".plot"), content.spec, {
      actions: false, renderer: "svg", ast: true, config,
      tooltip: { theme: "page", formatTooltip: (value, text) => readout(chart, value, text) },
    });
    chart.view = result.view;
    wireSeries(chart);
    wireSlider(chart);
    wirePick(chart);
    for (const button of figure.querySelectorAll("button[data-save]")) {
      button.addEventListener("click", () => save(chart, button.dataset.save));
    }
  }

  // Rows of the tooltip: of a chart of lines, those that are shown and have a value here.
  function readout(chart, value, text) {
    const lines = chart.series.length > 0;
    const names = new Map(chart.columns);
    if (lines && "line" in value) value = { x: value.x, [value.line]: value.y };
    const entries = Object.entries(value).filter(
      ([key, shown]) => !chart.hidden.has(key) && !["", "null", "NaN"].includes(String(shown)));
    const most = 14;
    const rows = entries.slice(0, most).map(([key, shown]) => {
      const color = chart.series.find((s) => s.key === key)?.color;
      const mark = color ? `<span class="swatch" style="background:${text(color)}"></span>` : "";
      return `<tr><td>${mark}${text(lines ? names.get(key) : key)}</td><td>${text(shown)}</td></tr>`;
    });
    if (entries.length > most) {
      rows.push(`<tr><td colspan="2">and ${entries.length - most} more</td></tr>`);
    }
    return `<table>${rows.join("")}</table>`;
  }

  function wireSeries(chart) {
    chart.boxes = [...chart.figure.querySelectorAll(".series input")];
    for (const box of chart.boxes) box.addEventListener("change", () => show(chart));
    for (const button of chart.figure.querySelectorAll(".series button")) {
      button.addEventListener("click", () => only(chart, () => button.dataset.show === "all"));
    }
    if (chart.boxes.some((box) => !box.checked)) show(chart);
  }

  function show(chart) {
    chart.hidden = new Set(chart.boxes.filter((box) => !box.checked).map((box) => box.value));
    chart.view.signal("hidden", [...chart.hidden]).runAsync();
  }

  function only(chart, wanted) {
    for (const box of chart.boxes) box.checked = wanted(box.value);
    show(chart);
  }

  function wireSlider(chart) {
    const slider = chart.figure.querySelector(".slider input");
    if (!slider) return;
    const label = chart.figure.querySelector(".slider output");
    slider.addEventListener("input", () => {
      label.textContent = chart.labels.at[slider.valueAsNumber];
      chart.view.signal("at", slider.valueAsNumber).runAsync();
    });
  }

  // A row that is clicked in a heat map leaves its line alone in the chart of spectra.
  function wirePick(chart) {
    const target = chart.figure.dataset.opens;
    if (!target) return;
    chart.view.addEventListener("click", (_, item) => {
      const spectra = charts.get(target);
      const name = item?.datum?.name ?? (item?.mark?.role === "axis-label" ? item.datum.value : null);
      const series = spectra?.series.find((s) => s.name === name);
      if (!series) return;
      only(spectra, (key) => key === series.key);
      spectra.figure.scrollIntoView({ behavior: "smooth", block: "nearest" });
    });
  }

  // --------------------------------------------------------------------------------- files

  function download(name, url) {
    const link = document.createElement("a");
    link.href = url;
    link.download = name;
    link.click();
  }

  function downloadText(name, text, type) {
    const url = URL.createObjectURL(new Blob([text], { type }));
    download(name, url);
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  async function save(chart, kind) {
    const name = `${chart.figure.id}.${kind}`;
    if (kind === "csv") {
      const rows = chart.spec.data.values.map((row) => chart.columns.map(([key]) =>
        chart.labels[key]?.[row[key]] ?? row[key]));
      downloadText(name, csv([chart.columns.map(([, title]) => title), ...rows]), "text/csv");
    } else if (kind === "svg") {
      downloadText(name, onPaper(await chart.view.toSVG()), "image/svg+xml");
    } else {
      // The canvas has no colour of its own: ink becomes black, and the paper must be white.
      const background = chart.view.background();
      await chart.view.background("white").runAsync();
      download(name, await chart.view.toImageURL("png", 3));
      await chart.view.background(background).runAsync();
    }
  }

  function onPaper(svg) {
    return svg.replaceAll(ink, "#000");
  }

  function csv(rows) {
    return rows.map((row) => row.map((cell) => {
      let text = cell === null || cell === undefined ? "" : String(cell);
      // A spreadsheet would take a name such as "=cmd" for a formula.
      if (/^[=+@\-]/.test(text) && Number.isNaN(Number(text))) text = `'${text}`;
      return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    }).join(",")).join("\n") + "\n";
  }

  // -------------------------------------------------------------------------------- tables

  function wireTable(table, number) {
    const body = table.tBodies[0];
    if (!body || body.rows.length < 2 || !table.tHead) return;
    const original = [...body.rows];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.title = "sort";
      head.append(button);
      button.append("\u2195");
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const next = now === null ? "descending" : now === "descending" ? "ascending" : null;
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        if (next) head.setAttribute("aria-sort", next);
        body.append(...(next ? sorted(original, column, next === "ascending") : original));
      });
    });
    const save = document.createElement("button");
    save.type = "button";
    save.textContent = "CSV";
    save.title = "save this table as CSV";
    save.addEventListener("click", () => downloadText(`table-${number + 1}.csv`, csv(
      [...table.rows].map((row) => [...row.cells].map(cellText))), "text/csv"));
    const actions = document.createElement("div");
    actions.className = "actions";
    actions.append(save);
    (table.closest(".scroll") ?? table).after(actions);
  }

  function cellText(cell) {
    const copy = cell.cloneNode(true);
    for (const button of copy.querySelectorAll("button")) button.remove();
    for (const line of copy.querySelectorAll("br")) line.replaceWith(" ");
    return copy.textContent.replace(/\s+/g, " ").trim();
  }

  // Numbers by value, and before text; a cell such as "4.5 ± 0.2" or "12 × 9" by its first number.
  function sorted(rows, column, ascending) {
    const key = (row) => {
      const text = row.cells[column] ? cellText(row.cells[column]) : "";
      const match = /^[+\-\u2212]?[\d,]*\.?\d+(e[+\-]?\d+)?/i.exec(text);
      return match ? Number(match[0].replace("\u2212", "-").replaceAll(",", "")) : text;
    };
    const sign = ascending ? 1 : -1;
    return rows.map((row) => [key(row), row]).sort(([a], [b]) => {
      if (typeof a === "number" && typeof b === "number") return sign * (a - b);
      if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
      return sign * a.localeCompare(b, undefined, { numeric: true });
    }).map(([, row]) => row);
  }

  // --------------------------------------------------------------------------------- start

  document.querySelectorAll("table").forEach(wireTable);
  const drawn = [...document.querySelectorAll("figure.chart")].map(draw);
  Promise.all(drawn).then(
    () => { document.documentElement.dataset.charts = "drawn"; },
    (error) => { document.documentElement.dataset.charts = "failed"; console.error(error); });
})();
