"use strict";
// Each chart is a <figure> with its specification in a <script>, and controls that set the chart's parameters.

// The values of the controls, by the parameters that they set.
function parametersOf(figure) {
  const found = {};
  for (const select of figure.querySelectorAll("select")) found[select.name] = Number(select.value);
  const boxes = [...figure.querySelectorAll("input[name=shown]")];
  if (boxes.length) found.shown = boxes.filter((box) => box.checked).map((box) => Number(box.value));
  return found;
}

// A logarithmic scale, or the linear one in its place.
function withAxis(spec, isLinear) {
  return JSON.parse(spec, (_, value) => {
    if (!isLinear || value?.scale?.type !== "log") return value;
    const { values, ...axis } = value.axis; // the ticks of the logarithmic scale
    return { ...value, axis, scale: { type: "linear", domain: [0, value.scale.domain[1]], clamp: true } };
  });
}

async function draw(figure) {
  const isLinear = figure.querySelector("input[name=linear]")?.checked;
  const spec = withAxis(figure.querySelector("script").textContent, isLinear);
  for (const parameter of spec.params ?? []) {
    const values = parametersOf(figure);
    if (parameter.name in values) parameter.value = values[parameter.name];
  }
  figure.chart?.finalize();
  figure.chart = await vegaEmbed(figure.querySelector(".chart"), spec, { renderer: "svg", actions: false });
}

async function change(figure, control) {
  if (control.name === "linear") return draw(figure);
  for (const [name, value] of Object.entries(parametersOf(figure))) figure.chart.view.signal(name, value);
  await figure.chart.view.runAsync();
}

for (const figure of document.querySelectorAll("figure.drawn")) {
  figure.addEventListener("change", (event) => change(figure, event.target));
  draw(figure);
}
