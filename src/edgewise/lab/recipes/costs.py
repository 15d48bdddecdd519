"""About how long the figures take at embedded scale, for who chooses one."""

# Minutes on two cores, 2026-11-29: for each kind of run in a figure the processor time of its first steps, times the
# steps of all such runs, also at rates above the failure boundary, which are not known before. Together 69;
# `figure all` trains shared runs once and none above the boundary, and took 42.
MINUTES = {
    "fig1": 5.6,
    "fig2": 1.9,
    "fig3": 4.5,
    "fig4": 5.8,
    "fig5": 0.1,
    "fig6": 2.8,
    "fig7": 3.0,
    "fig8": 0.5,
    "fig9": 1.5,
    "fig10": 0.5,
    "fig11": 0.7,
    "fig12": 3.8,
    "fig13": 0.9,
    "fig14": 2.2,
    "fig15": 0.4,
    "fig16": 0.5,
    "fig17": 0.2,
    "fig18": 0.2,
    "fig19": 2.2,
    "fig20": 3.9,
    "fig21": 4.2,
    "fig22": 4.5,
    "fig23": 1.8,
    "fig24": 5.1,
    "fig25": 5.8,
    "fig26": 0.1,
    "fig27": 0.1,
    "fig28": 0.1,
    "fig29": 0.1,
    "fig30": 4.1,
    "fig31": 1.9,
    "table1": 0.3,
    "edge-warmup": 34.0,
    "warmups": 15.0,
    "when-warmup": 8.9,
}


def about(figure: str) -> str:
    """Return about how long a figure takes, in words; a dash where it was never measured.

    >>> about("fig4"), about("fig5"), about("mine")
    ('6 min', '< 1 min', '—')
    """
    if figure not in MINUTES:
        return "—"
    minutes = MINUTES[figure]
    return f"{minutes:.0f} min" if minutes >= 1 else "< 1 min"
