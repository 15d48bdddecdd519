"""The laboratory: configured runs, stored results, figures and reports. The library never imports it."""
