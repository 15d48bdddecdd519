"""How results are shown: the page, its plots, and what a folder says of its figures."""

from edgewise.lab.report.downloads import write_boundaries
from edgewise.lab.report.page import write_report

__all__ = ["write_boundaries", "write_report"]
