"""What both pages are asked in a browser."""

import shutil

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# The words of plots that lie under a plot's buttons, which a touch screen shows all the time.
UNDER_BUTTONS = """(() => {
  const over = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  return [...document.querySelectorAll(".js-plotly-plot")].flatMap(plot => {
    const buttons = [...plot.querySelectorAll(".modebar-btn")].map(its => its.getBoundingClientRect());
    const words = [...plot.querySelectorAll("svg text")].filter(its => its.textContent.trim());
    return words.filter(its => buttons.some(box => over(box, its.getBoundingClientRect()))).map(its => its.textContent);
  });
})()"""
BUTTONS = "[...document.querySelectorAll('.modebar-btn')].map(button => button.ariaLabel)"
OFFERED = {
    "Download plot as a PNG",
    "Zoom",
    "Pan",
    "Zoom in",
    "Zoom out",
    "Reset axes",
}  # none sends a plot anywhere
