"""EdgeWarmup beside every linear length. Beyond the paper."""

from edgewise.lab.recipes.edge_warmup.cells import panel_label
from edgewise.lab.recipes.edge_warmup.claims import claims
from edgewise.lab.recipes.edge_warmup.grid import configs
from edgewise.lab.recipes.recipe import PhaseDiagrams, Recipe

RECIPE = Recipe(
    id="edge-warmup",
    title="One run instead of the warmup axis: EdgeWarmup beside every length",
    finding="Final test loss over target rate and warmup. The last rows are EdgeWarmup and persistent "
    "catapults, which have no length. Each panel is one optimizer on one task.",
    configs=configs,
    claims=claims,
    layout=PhaseDiagrams(panel=panel_label, columns=4, climbs=False),  # two rows a task, RAdam beside Adam
)
