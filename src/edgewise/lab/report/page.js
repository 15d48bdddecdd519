const dark = matchMedia("(prefers-color-scheme: dark)");
const ink = () => dark.matches ? "#e8e8e8" : "#1a1a1a";
function recolor() {
  for (const plot of document.querySelectorAll(".js-plotly-plot")) Plotly.relayout(plot, {"font.color": ink()});
}
dark.addEventListener("change", recolor);

// What is packed in the page: text under gzip, as base64.
function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), sign => sign.charCodeAt());
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
const content = async id => JSON.parse(await unpacked(id));
const number = x => {
  const [mantissa, power] = x.toExponential(2).split("e");
  return power >= -4 && power < 6 ? String(Number(x.toPrecision(3))) : `${Number(mantissa)}e${Number(power)}`;
};

// Rates stand on axes as people write them, at 1, 2, 5 or 1, 3 or powers of ten, however far one zooms.
function logTicks(range) {
  const [low, high] = [Math.min(...range), Math.max(...range)], decades = high - low, ticks = [];
  const digits = decades < 1.5 ? [1, 2, 5] : decades <= 3 ? [1, 3] : [1];
  const stride = Math.max(1, Math.ceil(decades / 8));
  for (let power = Math.floor(low); power <= high; power++) {
    if (power % stride === 0) ticks.push(...digits.map(digit => Number(`${digit}e${power}`)));
  }
  const inside = ticks.filter(tick => Math.log10(tick) >= low - 1e-9 && Math.log10(tick) <= high + 1e-9);
  return inside.length > 1 ? inside : [0.1, 0.5, 0.9].map(share => Number((10 ** (low + share * decades)).toPrecision(2)));
}
function labelLogAxes(plot) {
  const changes = {};
  for (const [name, axis] of Object.entries(plot._fullLayout)) {
    if (!/^[xy]axis\d*$/.test(name) || axis.type !== "log") continue;
    const ticks = logTicks(axis.range);
    if (String(ticks) === String(axis.tickvals)) continue;
    changes[name + ".tickvals"] = ticks;
    changes[name + ".ticktext"] = ticks.map(number);
  }
  if (Object.keys(changes).length) Plotly.relayout(plot, changes);
}

// The buttons of a plot are one stop of the tabulator; the arrows go from one to the next.
function oneStop(plot) {
  const buttons = [...plot.querySelectorAll(".modebar-btn")];
  for (const [i, button] of buttons.entries()) {
    button.setAttribute("role", "button");
    button.setAttribute("aria-label", button.dataset.title || button.getAttribute("aria-label") || "tool");
    button.tabIndex = i ? -1 : 0;
    button.onkeydown = event => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (step) buttons[(i + step + buttons.length) % buttons.length].focus();
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); button.click(); }
    };
  }
}
// Nothing here has points to select, and nothing of a page is sent anywhere.
const WITHOUT = ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d"];
async function drawPlot(place) {
  const {data, layout} = await content("content-" + place.id);
  layout.font.color = ink();
  Plotly.newPlot(place, data, layout, {displaylogo: false, responsive: true, modeBarButtonsToRemove: WITHOUT, plotlyServerURL: ""});
  place.on("plotly_relayout", () => labelLogAxes(place));
  place.on("plotly_afterplot", () => oneStop(place));
  oneStop(place);
  labelLogAxes(place);
}

// A label as plotly shows it unchanged: it reads some HTML, and fields in braces.
const literal = text => text.replace(/[&<>{$]/g, sign => `&#${sign.charCodeAt()};`);
function curvesOf(cell, i, color) {
  const look = {mode: "lines", legendgroup: String(i)};
  return cell.runs.filter(run => run.step).flatMap((run, k) => [
    {...look, x: run.step, y: run.loss, name: "loss, " + literal(cell.name), showlegend: k === 0, line: {color}},
    {...look, x: run.step, y: run.lr, name: "rate, " + literal(cell.name), yaxis: "y2", showlegend: k === 0,
      line: {color, dash: "dot", width: 1.2}},
  ]);
}
function runItem(run, cell) {
  const item = document.createElement("li");
  item.append(`${cell.name}: ${run.says}. Run ${run.id}: ${run.about}. `);
  if (run.link) {
    const link = document.createElement("a");
    link.href = run.link;
    link.textContent = run.to;
    item.append(link);
  }
  return item;
}
// A diverging run does not set the axis, unless there is no other.
function lossRange(cells) {
  const losses = cells.flatMap(cell => cell.runs).filter(run => run.loss && !run.diverged).flatMap(run => run.loss);
  const logs = losses.filter(loss => loss > 0).map(Math.log10);
  return logs.length ? {range: [Math.min(...logs) - 0.1, Math.max(...logs) + 0.3]} : {};
}
function showCells(figure, cells, colors) {
  const axis = {type: "log", gridcolor: "rgba(128,128,128,0.25)"}, place = document.getElementById("curves-" + figure);
  const list = document.getElementById("runs-" + figure);
  list.replaceChildren(...cells.flatMap(cell => cell.runs.map(run => runItem(run, cell))));
  Plotly.react(place, cells.flatMap((cell, i) => curvesOf(cell, i, colors[i])), {
    height: 280, margin: {l: 64, r: 64, t: 10, b: 40}, font: {color: ink(), family: "system-ui, sans-serif", size: 12},
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", legend: {orientation: "h", y: 1.04, yanchor: "bottom"},
    xaxis: {title: {text: "step"}, gridcolor: "rgba(128,128,128,0.25)"},
    yaxis: {...axis, ...lossRange(cells), title: {text: "training loss"}},
    yaxis2: {...axis, title: {text: "learning rate"}, overlaying: "y", side: "right", showgrid: false},
  }, {displayModeBar: false, responsive: true}).then(labelLogAxes);
}

// The first click holds a cell, the second one sets another beside it; a click on one of the two lets go of it.
async function offerCells(section) {
  const figure = section.dataset.figure, cells = await content("data-" + figure);
  const cell = document.getElementById("cell-" + figure), beside = document.getElementById("beside-" + figure);
  for (const select of [cell, beside]) {
    select.append(...Object.entries(cells).map(([key, its]) => new Option(its.name, key)));
  }
  cell.value = section.dataset.first;
  let held = false;
  const show = () => {
    const chosen = [cell.value, beside.value].filter((key, i, keys) => key && keys.indexOf(key) === i);
    showCells(figure, chosen.map(key => cells[key]), section.dataset.colors.split(" "));
  };
  for (const select of [cell, beside]) select.addEventListener("change", () => { held = true; show(); });
  document.getElementById("plot-" + figure).on("plotly_click", event => {
    const point = event.points.find(its => its.data.type === "heatmap");
    const key = point && [point.data.meta, ...point.pointNumber].join("-");
    if (!Object.hasOwn(cells, key)) return;
    if (!held) { cell.value = key; held = true; }
    else if (key === beside.value) beside.value = "";
    else if (key === cell.value) { if (beside.value) { cell.value = beside.value; beside.value = ""; } else held = false; }
    else beside.value = key;
    show();
  });
  show();
  const curves = document.getElementById("curves-" + figure);
  curves.on("plotly_relayout", () => labelLogAxes(curves));
}

// Plotly is the one script that the page's policy lets in beside this one.
async function draw() {
  if (!window.DecompressionStream) {
    document.querySelector("main").prepend("To see the plots, open this page in a browser of 2023 or later.");
    return;
  }
  const plotly = document.createElement("script");
  plotly.textContent = await unpacked("plotly");
  document.head.append(plotly);
  for (const place of document.querySelectorAll(".plot > div")) await drawPlot(place);
  for (const section of document.querySelectorAll(".cells")) await offerCells(section);
}
draw();
