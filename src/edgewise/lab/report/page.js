const dark = matchMedia("(prefers-color-scheme: dark)");
const colors = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"];
const ink = () => dark.matches ? "#e8e8e8" : "#1a1a1a";
function recolor() {
  for (const plot of document.querySelectorAll(".js-plotly-plot")) Plotly.relayout(plot, {"font.color": ink()});
}
dark.addEventListener("change", recolor);

const content = id => JSON.parse(document.getElementById(id).textContent);
for (const place of document.querySelectorAll(".plot > div")) {
  const {data, layout} = content("content-" + place.id);
  Plotly.newPlot(place, data, layout, {displaylogo: false, responsive: true});
}

function showCell(select) {
  const runs = content("data-" + select.dataset.figure)[select.value];
  const traces = runs.flatMap((run, i) => [
    {x: run.step, y: run.loss, mode: "lines", name: "loss, seed " + run.seed, line: {color: colors[i % 4]}},
    {x: run.step, y: run.lr, mode: "lines", name: "rate", yaxis: "y2", showlegend: i === 0, line: {color: "gray", dash: "dot"}},
  ]);
  const axis = {type: "log", exponentformat: "power", gridcolor: "rgba(128,128,128,0.25)"};
  Plotly.react("curves-" + select.dataset.figure, traces, {
    height: 240, margin: {l: 60, r: 60, t: 10, b: 40}, font: {color: ink(), family: "system-ui, sans-serif", size: 12},
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", legend: {orientation: "h", y: 1.15},
    xaxis: {title: {text: "step"}, gridcolor: "rgba(128,128,128,0.25)"},
    yaxis: {...axis, title: {text: "training loss"}},
    yaxis2: {...axis, title: {text: "learning rate"}, overlaying: "y", side: "right", showgrid: false},
  }, {displayModeBar: false, responsive: true});
}
for (const select of document.querySelectorAll(".cell select")) {
  select.addEventListener("change", () => showCell(select));
  document.getElementById("plot-" + select.dataset.figure).on("plotly_hover", event => {
    const {data, x, y} = event.points[0];
    const name = `${data.meta} · η ${x} · warmup ${y}`;
    if (name !== select.value && [...select.options].some(option => option.value === name)) {
      select.value = name;
      showCell(select);
    }
  });
  showCell(select);
}
recolor();
